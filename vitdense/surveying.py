"""A survey of backbones: what works for one member of each family, measured, as rows and as a table for the docs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import version
from itertools import groupby
from typing import Any

import torch

from vitdense.backbones.alignment import measure_alignment
from vitdense.backbones.examples import examples
from vitdense.contracts import BACKBONES, Backbone
from vitdense.errors import UserError

_SIZES = ((64, 96), (250, 333))
# What libraries raise where they can't do what is asked, after our own refusal.
_REFUSALS = (UserError, RuntimeError, ValueError, TypeError, AssertionError, AttributeError, LookupError, ImportError)
_LONGEST_NOTE = 110
_PACKAGES = {"hf": "transformers", "open_clip": "open-clip-torch"}
_BEGIN, _END = "<!-- tables by tools/survey.py -->", "<!-- end of tables -->"


@dataclass(frozen=True)
class Row:
    """One backbone: the strides of its levels, and "yes", "no" or more for each thing that was tried."""

    name: str
    strides: str = ""
    any_size: str = ""
    gradients: str = ""
    recompute: str = ""
    four_channels: str = ""
    aligned: str = ""
    note: str = ""


def survey(pattern: str = "*") -> Iterator[Row]:
    """A row for each representative whose name matches a shell pattern, as soon as it is measured."""
    for name, options in examples().items():
        if fnmatch(name, pattern):
            yield survey_one(name, options)


def survey_one(name: str, options: Mapping[str, Any]) -> Row:
    """Builds a backbone with these options, and tries what the contract promises.

    One that takes a single size is built for 224 or 256 pixels, and tried with smaller pictures.
    """
    refusal = ""
    for size in (None, 224, 256):
        chosen = dict(options) if size is None else {**options, "image_size": size}
        try:
            backbone = _create(name, chosen)
        except _REFUSALS as error:
            refusal = refusal or _short(name, error)
            if "image_size" not in str(error):
                break
            continue
        sizes = _SIZES if size is None else ((size // 3, size // 2), (size - 23, size - 6))
        return _row(name, backbone, chosen, sizes, size)
    return Row(name, note=refusal)


def _row(
    name: str, backbone: Backbone, options: dict[str, Any], sizes: Sequence[tuple[int, int]], only: int | None
) -> Row:
    held = _tried(lambda: _levels_hold(backbone, sizes))
    return Row(
        name,
        strides=_counted([level.stride for level in backbone.levels]),
        any_size=held if only is None else f"up to image_size={only}" if held == "yes" else held,
        gradients=_tried(lambda: _gradients_hold(backbone, sizes[0])),
        recompute=_tried(lambda: _create(name, {**options, "grad_checkpointing": True}) is not backbone),
        four_channels=_tried(lambda: _create(name, {**options, "in_channels": 4}) is not backbone),
        aligned=_verdicts([level.verdict for level in measure_alignment(backbone.eval(), sizes[1])]),
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown: a table for each library, with what it counts and the versions that were measured."""
    parts = []
    for library, group in groupby(rows, key=lambda row: row.name.rpartition("/")[0].partition("/")[0]):
        found = list(group)
        working = [row for row in found if not row.note]
        package = _PACKAGES.get(library, library)
        title = f"`{library}/`, {package} {version(package)}" if library else "Our own"
        parts.append(f"### {title}: {len(working)} of {len(found)} give maps\n")
        parts.append("| name | strides | any size | gradients | recompute | 4 channels | aligned |")
        parts.append("|---|---|---|---|---|---|---|")
        for row in working:
            cells = (row.strides, row.any_size, row.gradients, row.recompute, row.four_channels, row.aligned)
            parts.append(f"| `{row.name}` | {' | '.join(cells)} |")
        refused = [row for row in found if row.note]
        if refused:
            parts.append("\n| refused | why |\n|---|---|")
            parts.extend(f"| `{row.name}` | {row.note.replace('|', '/')} |" for row in refused)
        parts.append("")
    return "\n".join(parts)


def put_into(page: str, tables: str) -> str:
    """The page with its tables replaced: they stand between two comments."""
    before, found, rest = page.partition(_BEGIN)
    _, ended, after = rest.partition(_END)
    if not found or not ended:
        raise UserError(f"the page has no place for tables: {_BEGIN} ... {_END}")
    return f"{before}{_BEGIN}\n\n{tables}\n{_END}{after}"


def _create(name: str, options: Mapping[str, Any]) -> Backbone:
    torch.manual_seed(0)
    return BACKBONES.create(name, options).build()


def _tried(work: Callable[[], bool]) -> str:
    try:
        return "yes" if work() else "no"
    except _REFUSALS:
        return "no"


@torch.no_grad()
def _levels_hold(backbone: Backbone, sizes: Sequence[tuple[int, int]]) -> bool:
    backbone.eval()
    for height, width in sizes:
        maps = backbone(torch.randn(1, len(backbone.mean), height, width))
        promised = [(1, each.channels, -(-height // each.stride), -(-width // each.stride)) for each in backbone.levels]
        if [tuple(each.shape) for each in maps] != promised:
            return False
    return True


def _gradients_hold(backbone: Backbone, size: tuple[int, int]) -> bool:
    """Finite for every parameter that the maps need, in training mode."""
    maps = backbone.train()(torch.randn(2, len(backbone.mean), *size))
    torch.stack([each.square().mean() for each in maps]).sum().backward()
    found = [parameter.grad for parameter in backbone.parameters() if parameter.grad is not None]
    backbone.zero_grad()
    return bool(found) and all(bool(gradient.isfinite().all()) for gradient in found)


def _counted(strides: Sequence[int]) -> str:
    """[16, 16, 16, 16] -> "4 x 16", [4, 8, 16, 32] -> "4 8 16 32"."""
    return f"{len(strides)} x {strides[0]}" if len(set(strides)) == 1 else " ".join(map(str, strides))


def _verdicts(verdicts: Sequence[str]) -> str:
    """One word where all levels agree; else how many are what."""
    counted = {verdict: verdicts.count(verdict) for verdict in ("yes", "no", "unclear") if verdict in verdicts}
    return next(iter(counted)) if len(counted) == 1 else ", ".join(f"{count} {v}" for v, count in counted.items())


def _short(name: str, error: BaseException) -> str:
    """What an error says, on one line, without the name that stands beside it."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
    text = text.removeprefix(name).lstrip(": ")
    return text if len(text) <= _LONGEST_NOTE else f"{text[:_LONGEST_NOTE]} ..."
