"""A recipe: files and command line merged by OmegaConf, typed by pydantic, all of its faults said at once."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
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
from vitdense.recipe_files import read_files
from vitdense.registry import Config, Registry, faults_of, nearest
from vitdense.zero_shot.config import ZeroShotConfig

C = TypeVar("C", bound=Config)


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
    zero_shot: dict[str, ZeroShotConfig] = Field(default_factory=dict)

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
        if self.zero_shot:
            sections[ZERO_SHOT] = {name: config.written() for name, config in self.zero_shot.items()}
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
ZERO_SHOT = "zero_shot"
OPTIONAL = ("adapter", "teacher")
DEFAULTS: dict[str, dict[str, Any]] = {"metric": {"name": "miou"}, "inference": {}, "optim": {}, "engine": {}}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe with its `base:` fragments and `key.sub=value` overrides; RecipeError lists every fault of it."""
    path = Path(path)
    merged, origins = read_files(path, overrides)
    return _Parser(path, origins).recipe(merged)


class _Parser:
    """Turns the merged mapping into a Recipe and gathers faults instead of stopping at the first."""

    def __init__(self, path: Path, origins: Mapping[str, str]) -> None:
        self.path = path
        self.origins = origins
        self.faults: list[str] = []

    def recipe(self, merged: dict[str, Any]) -> Recipe:
        name = merged.pop("name", self.path.stem)
        allowed = (*SECTIONS, "heads", ZERO_SHOT)
        for key in merged.keys() - set(allowed):
            self.fault(key, f"unknown section{nearest(key, allowed)}; allowed: {', '.join(allowed)}")
        sections: dict[str, Any] = {}
        names: dict[str, str] = {}
        self.gather_heads(merged)
        for section in SECTIONS:
            given = merged.get(section, DEFAULTS.get(section))
            if given is None and section in OPTIONAL:
                sections[section] = None
            elif given is None:
                self.missing(section)
            elif not isinstance(given, dict):
                self.fault(section, f"expected a mapping, given {given!r}")
            elif section in NAMED:
                sections[section] = self.named(section, dict(given), names)
            else:
                kind = PLAIN[section]
                sections[section] = self.typed(section, kind, partial(kind.model_validate, dict(given)))
        zero_shot = self.zero_shot(merged.get(ZERO_SHOT))
        self.cross_check(sections)
        if self.faults:
            count = f"{len(self.faults)} fault{'s' if len(self.faults) > 1 else ''}"
            raise RecipeError(f"{self.path}: {count}\n" + "\n".join(f"  {fault}" for fault in self.faults))
        # model_construct: every section is validated already, and its own class must be kept.
        return Recipe.model_construct(name=str(name), names=names, zero_shot=zero_shot, **sections)

    def gather_heads(self, merged: dict[str, Any]) -> None:
        """`heads: {task: {name, options, loss_weight, metric}}` as one head of several, with a metric for each."""
        if "heads" not in merged:
            return
        heads = merged.pop("heads")
        for section in ("head", "metric"):
            if section in merged:
                self.fault(section, "can't stand beside heads, each of which has its own")
        if not isinstance(heads, dict) or not heads or not all(isinstance(head, dict) for head in heads.values()):
            self.fault("heads", f"expected a mapping of tasks to heads, given {heads!r}")
            return
        tasks, metrics, before = {}, {}, len(self.faults)
        for name, given in heads.items():
            options = dict(given)
            metric = options.pop("metric", None)
            if metric is None:
                self.fault(f"heads.{name}.metric", "missing key: each task has a metric, such as {name: miou}")
            elif isinstance(metric, dict):
                metric = self.named(f"heads.{name}.metric", dict(metric), {}, METRICS)
            weight = {"loss_weight": options.pop("loss_weight")} if "loss_weight" in options else {}
            head = self.named(f"heads.{name}", options, {}, HEADS)
            tasks[name], metrics[name] = {"head": head, **weight}, metric
        if len(self.faults) == before:
            merged["head"], merged["metric"] = {"name": "tasks", "tasks": tasks}, {"name": "tasks", "metrics": metrics}

    def missing(self, section: str) -> None:
        """A section that has to be there; what is wrong with heads has been told of already."""
        if section not in ("head", "metric") or not any(": heads" in fault for fault in self.faults):
            self.fault(section, "missing section")

    def zero_shot(self, given: object) -> dict[str, ZeroShotConfig]:
        """Entries of data, templates and classes, by the name that their results bear."""
        if given is None:
            return {}
        if not isinstance(given, dict):
            self.fault(ZERO_SHOT, f"expected a mapping of names to data, templates and classes, given {given!r}")
            return {}
        found = {}
        for name, entry in given.items():
            section = f"{ZERO_SHOT}.{name}"
            if not isinstance(entry, dict) or not isinstance(entry.get("data"), dict):
                self.fault(section, f"expected {{data: {{name: ...}}, templates: ...}}, given {entry!r}")
                continue
            names: dict[str, str] = {}
            data = self.named(f"{section}.data", dict(entry["data"]), names, DATA)
            if data is None:
                continue
            options = {**entry, "data": data, "data_name": names[f"{section}.data"]}
            config = self.typed(section, ZeroShotConfig, partial(ZeroShotConfig.model_validate, options))
            if config is not None:
                found[str(name)] = config
        return found

    def named(
        self, section: str, given: dict[str, Any], names: dict[str, str], registry: Registry[Any] | None = None
    ) -> Config | None:
        """A section whose `name` a registry knows."""
        name = given.pop("name", None)
        registry = registry or NAMED[section]
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
            for option, message in faults_of(error, kind, also=_keys_beside(section)):
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
        key = _in_heads(key)
        place = key
        while place and place not in self.origins:
            place = place.rpartition(".")[0]
        self.faults.append(f"{self.origins.get(place, self.path)}: {key}: {message}")


def _keys_beside(section: str) -> tuple[str, ...]:
    """Keys that a section has besides the options of its class."""
    if section.startswith("heads.") and not section.endswith(".metric"):
        return ("name", "loss_weight", "metric")
    return ("name",) if section in NAMED or section.endswith((".data", ".metric")) else ()


def _in_heads(key: str) -> str:
    """The key as it stands in `heads:` of an option of one head of several."""
    for made, end in (("head.tasks.", ""), ("metric.metrics.", ".metric")):
        if key.startswith(made):
            task, _, option = key.removeprefix(made).removesuffix(".head").partition(".")
            option = option.removeprefix("head.")
            return f"heads.{task}{end}" + (f".{option}" if option else "")
    return key
