"""A recipe: files and command line merged by OmegaConf, typed by pydantic, all of its faults said at once."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, ValidationError

from vitdense.contracts import (
    ADAPTERS,
    BACKBONES,
    DATA,
    HEADS,
    METRICS,
    AdapterConfig,
    BackboneConfig,
    DataConfig,
    HeadConfig,
    MetricConfig,
)
from vitdense.errors import RecipeError, UserError
from vitdense.inference import InferenceConfig
from vitdense.optim import OptimConfig, ScheduleConfig
from vitdense.registry import Config, Registry, faults_of, nearest

C = TypeVar("C", bound=Config)
COMMAND_LINE = "command line"


class EngineConfig(Config):
    """How the run is carried out. `run_dir` defaults to runs/<recipe>.

    `precision: auto` is bf16-mixed on CUDA and on CPUs with bf16 instructions (AVX512-BF16), else 32-true.
    """

    run_dir: str | None = None
    seed: NonNegativeInt = 0
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: PositiveInt | Literal["auto"] = "auto"
    strategy: Literal["auto", "ddp"] = "auto"
    accumulate: PositiveInt = 1
    clip: NonNegativeFloat | None = None
    ema: float | None = Field(default=None, gt=0.0, lt=1.0)
    compile: bool = False
    sync_batchnorm: bool = False
    log_every: PositiveInt = 50
    eval_every: PositiveInt = 1000
    save_every: PositiveInt = 1000
    keep: PositiveInt = 2
    pictures: NonNegativeInt = 4
    log_samples: bool = False


class TeacherConfig(Config):
    """A trained model to learn from: a checkpoint or a published name, and what its term of the loss weighs."""

    model: str
    weight: NonNegativeFloat = 1.0


class Recipe(Config):
    """Everything that one run needs, checked; `names` holds the registry names of the sections that have one."""

    name: str
    names: dict[str, str]
    backbone: BackboneConfig
    adapter: AdapterConfig | None
    head: HeadConfig
    data: DataConfig
    metric: MetricConfig
    inference: InferenceConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    engine: EngineConfig
    teacher: TeacherConfig | None = None

    @property
    def run_dir(self) -> Path:
        """Where the run writes."""
        return Path(self.engine.run_dir or f"runs/{self.name}")

    def to_yaml(self) -> str:
        """The recipe with every option spelled out; loading it gives the same recipe."""
        sections: dict[str, Any] = {"name": self.name}
        for section in SECTIONS:
            config = getattr(self, section)
            if config is not None:
                named = {"name": self.names[section]} if section in self.names else {}
                sections[section] = named | config.model_dump(mode="json")
        return str(yaml.safe_dump(sections, sort_keys=False))


NAMED: dict[str, Registry[Any]] = {
    "backbone": BACKBONES,
    "adapter": ADAPTERS,
    "head": HEADS,
    "data": DATA,
    "metric": METRICS,
}
PLAIN: dict[str, type[Config]] = {
    "inference": InferenceConfig,
    "optim": OptimConfig,
    "schedule": ScheduleConfig,
    "engine": EngineConfig,
    "teacher": TeacherConfig,
}
SECTIONS = (*NAMED, *PLAIN)
OPTIONAL = ("adapter", "teacher")
DEFAULTS: dict[str, dict[str, Any]] = {"metric": {"name": "miou"}, "inference": {}, "optim": {}, "engine": {}}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe with its `base:` fragments and `key.sub=value` overrides; RecipeError lists every fault of it."""
    path = Path(path)
    merged, origins = _merge(path, overrides)
    return _Parser(path, origins).recipe(merged)


def _merge(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Fragments left to right, the recipe, the command line; and for every dotted key where it was written."""
    recipe = _read(path)
    origins: dict[str, str] = {}
    layers: list[DictConfig] = []
    fragments = recipe.pop("base", None) or []
    for fragment in [fragments] if isinstance(fragments, str) else fragments:
        file = path.parent / fragment
        layer = _read(file, named_in=path)
        if "base" in layer:
            raise RecipeError(f"{file}: a fragment can't have a `base:` of its own (fragments go one level deep)")
        layers.append(layer)
        origins |= _lines(file)
    layers.append(recipe)
    origins |= _lines(path)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"{COMMAND_LINE}: {override!r} is no override; expected key.sub=value")
        origins[key] = COMMAND_LINE
    try:
        merged = OmegaConf.merge(*layers, OmegaConf.from_dotlist(list(overrides)))
        plain = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise RecipeError(f"{path}: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}, origins


def _read(path: Path, named_in: Path | None = None) -> DictConfig:
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError as error:
        where = f" (named in `base:` of {named_in})" if named_in else ""
        raise RecipeError(f"no recipe at {path}{where}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException, OSError) as error:
        raise RecipeError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, DictConfig) or not loaded:
        raise RecipeError(f"{path}: expected a mapping of sections ({', '.join(SECTIONS)})")
    return loaded


def _lines(path: Path) -> dict[str, str]:
    """Dotted key -> file:line."""
    found: dict[str, str] = {}

    def walk(node: yaml.Node | None, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                dotted = f"{prefix}{key.value}"
                found[dotted] = f"{path}:{key.start_mark.line + 1}"
                walk(value, f"{dotted}.")

    walk(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), "")
    return found


class _Parser:
    """Turns the merged mapping into a Recipe and gathers faults instead of stopping at the first."""

    def __init__(self, path: Path, origins: Mapping[str, str]) -> None:
        self.path = path
        self.origins = origins
        self.faults: list[str] = []

    def recipe(self, merged: dict[str, Any]) -> Recipe:
        name = merged.pop("name", self.path.stem)
        for key in merged.keys() - set(SECTIONS):
            self.fault(key, f"unknown section{nearest(key, SECTIONS)}; allowed: {', '.join(SECTIONS)}")
        sections: dict[str, Any] = {}
        names: dict[str, str] = {}
        for section in SECTIONS:
            given = merged.get(section, DEFAULTS.get(section))
            if given is None and section in OPTIONAL:
                sections[section] = None
            elif given is None:
                self.fault(section, "missing section")
            elif not isinstance(given, dict):
                self.fault(section, f"expected a mapping, given {given!r}")
            elif section in NAMED:
                sections[section] = self.named(section, dict(given), names)
            else:
                kind = PLAIN[section]
                sections[section] = self.typed(section, kind, partial(kind.model_validate, dict(given)))
        self.cross_check(sections)
        if self.faults:
            count = f"{len(self.faults)} fault{'s' if len(self.faults) > 1 else ''}"
            raise RecipeError(f"{self.path}: {count}\n" + "\n".join(f"  {fault}" for fault in self.faults))
        # model_construct: every section is validated already, and its own class must be kept.
        return Recipe.model_construct(name=str(name), names=names, **sections)

    def named(self, section: str, given: dict[str, Any], names: dict[str, str]) -> Config | None:
        """A section whose `name` a registry knows."""
        name = given.pop("name", None)
        registry = NAMED[section]
        if not isinstance(name, str):
            self.fault(f"{section}.name", f"expected the name of a {registry.kind}, given {name!r}")
            return None
        names[section] = name
        try:
            kind, _ = registry.find(name)
        except UserError as error:
            self.fault(f"{section}.name", str(error))
            return None
        return self.typed(section, kind, partial(registry.create, name, given))

    def typed(self, section: str, kind: type[C], create: Callable[[], C]) -> C | None:
        """A section of a known class."""
        try:
            return create()
        except ValidationError as error:
            for option, message in faults_of(error, kind, also=("name",) if section in NAMED else ()):
                self.fault(f"{section}.{option}" if option else section, message)
            return None

    def cross_check(self, sections: Mapping[str, Any]) -> None:
        """Faults that only two sections together show."""
        engine, data = sections.get("engine"), sections.get("data")
        if engine is not None and data is not None and data.batch_size % engine.accumulate:
            self.fault(
                "engine.accumulate", f"must divide data.batch_size ({data.batch_size}), given {engine.accumulate}"
            )

    def fault(self, key: str, message: str) -> None:
        """Remember one fault, with the file and line of the key or of the nearest section around it."""
        place = key
        while place and place not in self.origins:
            place = place.rpartition(".")[0]
        self.faults.append(f"{self.origins.get(place, self.path)}: {key}: {message}")
