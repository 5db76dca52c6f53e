"""From a name to its config class and preset: one kind of registry for backbones, adapters, heads, data and metrics."""

import difflib
import fnmatch
import importlib
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    WrapSerializer,
)

from vitdense.errors import UserError

PLUGINS = "vitdense.plugins"


class Config(BaseModel):
    """A frozen set of options that refuses unknown keys; `build` makes the thing it describes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    _preset: str | None = PrivateAttr(default=None)
    _given: frozenset[str] = PrivateAttr(default=frozenset())

    @property
    def preset(self) -> str:
        """The registered name this was made by; the class's own where it was made without one."""
        return self._preset or type(self).__name__.removesuffix("Config")

    @property
    def given(self) -> dict[str, Any]:
        """The options that a user set, as against those of the preset and the defaults."""
        return {name: getattr(self, name) for name in self._given}

    def with_defaults(self, options: Mapping[str, Any]) -> Self:
        """The same with `options` above the preset, and below what the user set."""
        config = type(self).model_validate({**dict(self), **options, **self.given})
        config._preset, config._given = self._preset, self._given
        return config


C = TypeVar("C", bound=Config)


class Registry(Generic[C]):
    """Names of one kind. `modules` are imported at the first look-up, so that a name costs nothing until it is used."""

    def __init__(self, kind: str, modules: tuple[str, ...] = (), *, plugins: bool = True) -> None:
        self.kind = kind
        self._modules = modules
        self._plugins = plugins
        self._entries: dict[str, tuple[type[C], dict[str, Any]]] = {}
        self._families: dict[str, type[C]] = {}

    def register(self, name: str, **preset: Any) -> Callable[[type[C]], type[C]]:
        """Stand above a config class, once for each preset: the variants read as a table."""

        def add(config: type[C]) -> type[C]:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            unknown = preset.keys() - config.model_fields.keys()
            assert not unknown, f"{config.__name__} has no option {sorted(unknown)}"
            self._entries[name] = (config, preset)
            return config

        return add

    def register_family(self, prefix: str) -> Callable[[type[C]], type[C]]:
        """Names of the form `prefix/anything`; the class's field `architecture` receives the part behind the slash."""

        def add(config: type[C]) -> type[C]:
            assert "architecture" in config.model_fields, f"{config.__name__} needs a field 'architecture'"
            self._families[prefix] = config
            return config

        return add

    def names(self, pattern: str = "*") -> list[str]:
        """Registered names that match a shell pattern, sorted; names of families are theirs to list."""
        self._load()
        return sorted(fnmatch.filter(self._entries, pattern))

    def families(self) -> list[str]:
        """Prefixes that lead to other libraries' names, such as `timm`."""
        self._load()
        return sorted(self._families)

    def find(self, name: str) -> tuple[type[C], dict[str, Any]]:
        """The config class of a name and its preset; an unknown name raises with the nearest ones."""
        self._load()
        prefix, slash, rest = name.partition("/")
        if slash and prefix in self._families:
            return self._families[prefix], {"architecture": rest}
        if name in self._entries:
            return self._entries[name]
        raise UserError(self._unknown(name))

    def create(self, name: str, options: Mapping[str, Any] | None = None) -> C:
        """The config of a name with its preset and `options` on top; pydantic's ValidationError names bad options."""
        kind, preset = self.find(name)
        config = kind.model_validate({**preset, **(options or {})})
        config._preset, config._given = name, frozenset(options or {})
        return config

    def create_or_tell(self, name: str, options: Mapping[str, Any] | None = None) -> C:
        """As `create`; UserError says which options are bad, one after the other."""
        try:
            return self.create(name, options)
        except ValidationError as error:
            faults = faults_of(error, self.find(name)[0])
            raise UserError(
                "; ".join(f"{name}.{key}: {told}" if key else f"{name}: {told}" for key, told in faults)
            ) from None

    def _load(self) -> None:
        modules, self._modules = self._modules, ()
        for module in modules:
            importlib.import_module(module)
        if self._plugins:
            self._plugins = False
            for entry in entry_points(group=PLUGINS):
                entry.load()

    def _unknown(self, name: str) -> str:
        known = sorted(self._entries) + [f"{prefix}/..." for prefix in sorted(self._families)]
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(map(repr, nearest))}?" if nearest else f"known: {', '.join(known)}"
        return f"no {self.kind} named {name!r}; {hint}"


def by_name(registry: Registry[Any]) -> tuple[BeforeValidator, WrapSerializer]:
    """For `Annotated[SerializeAsAny[C], *by_name(registry)]`: a field given by a name, or as {"name": ..., options}."""

    def made(given: object) -> object:
        if isinstance(given, str):
            return registry.create_or_tell(given)
        if not isinstance(given, Mapping):
            return given
        options = dict(given)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(f"needs the name of a {registry.kind}")
        return registry.create_or_tell(name, options)

    def told(config: Config, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"name": config.preset, **dump(config)}

    return BeforeValidator(made), WrapSerializer(told)


def faults_of(error: ValidationError, kind: type[Config], *, also: Iterable[str] = ()) -> list[tuple[str, str]]:
    """(dotted key, what is wrong) of each bad option of a config class; `also` are keys allowed beside its own."""
    found = []
    for problem in error.errors(include_url=False, include_context=False):
        key = ".".join(str(part) for part in problem["loc"] if not _is_branch(part))
        if problem["type"] == "extra_forbidden":
            allowed = sorted({*also, *kind.model_fields})
            found.append(
                (key, f"unknown key{nearest(str(problem['loc'][-1]), allowed)}; allowed: {', '.join(allowed)}")
            )
        elif problem["type"] == "missing":
            found.append((key, "missing key"))
        else:
            found.append((key, f"{problem['msg'][0].lower()}{problem['msg'][1:]}, given {problem['input']!r}"))
    return found


def nearest(given: str, allowed: Iterable[str]) -> str:
    """The words ", did you mean ...?", or none where no allowed name is near."""
    found = difflib.get_close_matches(given, list(allowed), n=1)
    return f", did you mean {found[0]!r}?" if found else ""


def _is_branch(part: int | str) -> bool:
    """Whether pydantic added this part to name a branch of a union, such as `constrained-int` or `literal['auto']`."""
    return isinstance(part, str) and ("[" in part or "-" in part or part in ("int", "float", "str", "bool"))
