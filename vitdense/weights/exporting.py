"""Backbones written down in another library's terms: its names of tensors, and the files it builds its network from."""

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file

from vitdense.contracts import Backbone, BackboneConfig
from vitdense.errors import UserError
from vitdense.weights.dialect import Dialect, Export
from vitdense.weights.families import DIALECTS
from vitdense.weights.rows import translate

Names = Literal["timm", "transformers"]

# Options that are not of the network, or not of the part of it that others know.
_NEUTRAL = frozenset({"weights", "in_channels", "out_indices", "drop_path", "grad_checkpointing", "frozen_stages"})
_NEUTRAL |= {"mean", "std", "norm_maps", "position_interpolation", "position_antialias", "position_offset"}


@dataclass(frozen=True)
class SaveReport:
    """What was written; `left_behind` are keys that have no place there, `notes` say what differs all the same."""

    folder: Path
    family: str
    written: int
    left_behind: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.written} tensors as {self.family}"]
        if self.left_behind:
            parts.append(f"{len(self.left_behind)} left behind ({', '.join(self.left_behind[:4])})")
        return f"{self.folder}: {'; '.join([*parts, *self.notes])}"


def save_pretrained(backbone: Backbone, folder: str | Path, names: Names) -> SaveReport:
    """Writes model.safetensors and config.json into `folder`, for `timm.create_model` or transformers' `AutoModel`.

    UserError where the other library has no network like this one; the message names the option.
    """
    if names not in get_args(Names):
        raise UserError(f"names {names!r}: give one of {', '.join(get_args(Names))}")
    config = backbone.config
    if config is None:
        raise UserError("save_pretrained needs backbone.config: make the backbone with create_backbone")
    dialect, export = choose_dialect(config, names)
    _refuse_others(backbone, config)
    state = {key: tensor.detach().cpu() for key, tensor in backbone.state_dict().items()}
    done = translate(export.finish(state), dialect.table, "out")
    left_behind = [key for key in done.strange if any(fnmatchcase(key, pattern) for pattern in export.dropped)]
    assert left_behind == done.strange, f"{dialect.publisher} {dialect.family} has no rows for {done.strange}"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.contiguous().clone() for key, tensor in done.state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name, content in export.files(backbone, config.model_dump()).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    family = f"{dialect.publisher} {dialect.family}"
    return SaveReport(folder, family, len(tensors), tuple(left_behind), tuple(export.notes(config.model_dump())))


def _refuse_others(backbone: Backbone, config: BackboneConfig) -> None:
    """Refuses what holds more than its config says, such as a backbone inside an adapter."""
    with torch.device("meta"):
        plain = config.build().state_dict().keys()
    others = sorted(backbone.state_dict().keys() ^ plain)
    if others:
        raise UserError(
            f"this is not {config.preset} alone ({', '.join(others[:3])}, ...): give the backbone itself, "
            "without an adapter"
        )


def choose_dialect(config: BackboneConfig, names: Names) -> tuple[Dialect, Export]:
    """The first dialect that has words for all options; UserError with the fewest that one has no words for."""
    kind = type(config).__name__.removesuffix("Config").lower()
    known = [each for each in DIALECTS if (each.publisher, each.architecture) == (names, kind)]
    refusals: list[tuple[Dialect, list[str]]] = []
    for dialect in known:
        if dialect.export is not None:
            unsaid = _unsaid(config, dialect.export)
            if not unsaid:
                return dialect, dialect.export
            refusals.append((dialect, unsaid))
    if not refusals:
        raise UserError(f"{config.preset} can't be written for {names}: it has no such network")
    nearest, unsaid = min(refusals, key=lambda refusal: len(refusal[1]))
    raise UserError(f"{config.preset} can't be written for {names}: its {nearest.family} {'; '.join(unsaid)}")


def _unsaid(config: BackboneConfig, export: Export) -> list[str]:
    """The options of a backbone that a dialect's files can't hold."""
    faults = []
    for name, field in type(config).model_fields.items():
        ours = getattr(config, name)
        if name in export.needs and not ours:
            faults.append(f"needs {name}")
        if name in export.says | export.needs | _NEUTRAL:
            continue
        fixed: Any = export.fixed.get(name, field.default)
        theirs = sorted(fixed, key=str) if isinstance(fixed, frozenset) else [fixed]
        if ours not in theirs:
            faults.append(f"has {name} {' or '.join(map(repr, theirs))}, and here it is {ours!r}")
    return faults or export.refuses(config.model_dump())
