"""Measuring what another library's network really gives: strides, channels, and the sizes it takes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitdense.contracts import Level
from vitdense.errors import UserError

Features = Callable[[Tensor], list[Tensor]]
Size = tuple[int, int]

# Divisible by the strides and windows in use (7, 14, 16, 32).
_EASY = (224, 224)
# Sizes that show a network which loses the last rows or columns.
_ODD = ((65, 97), (94, 127))


@dataclass(frozen=True)
class Measured:
    """Levels as they come out, the multiple that pictures must be padded to, and a size that is known to work."""

    levels: tuple[Level, ...]
    multiple: int
    size: Size


def measure(name: str, features: Features, in_channels: int, native: Size) -> Measured:
    """Tries a network at several sizes; raises UserError where no padding makes it take any size."""
    faults: list[str] = []
    size, maps = _first_that_works(features, in_channels, (_EASY, native), faults)
    if maps is None:
        raise UserError(f"timm runs {name} neither at {_EASY} nor at its own {native}: {faults[-1]}")
    levels = _levels(name, maps, size)
    strides = [level.stride for level in levels]
    smallest, largest = min(strides), max(strides)
    for multiple in (1, smallest, largest, *_windows(size, native)):
        probes = _ODD if multiple == 1 else _probes(multiple)
        if all(_fits(features, in_channels, probe, levels, faults) for probe in probes):
            return Measured(levels, multiple, size)
    raise UserError(
        f"{name} takes pictures of {native[0]} x {native[1]} only ({faults[-1]}), and maps are promised for any size; "
        "a network with relative or resizable positions works, such as timm/vit_*, timm/swin_*, timm/convnext_*"
    )


def saved_for_backward(features: Features, images: Tensor) -> int:
    """The number of values that autograd keeps for the backward pass."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        features(images.requires_grad_(True))
    return kept


def _windows(*sizes: Size) -> list[int]:
    return sorted({size[0] for size in sizes if size[0] == size[1]})


def _probes(multiple: int) -> tuple[Size, ...]:
    rows = max(1, -(-64 // multiple))
    return ((rows * multiple, (rows + 1) * multiple),)


def _first_that_works(
    features: Features, in_channels: int, sizes: tuple[Size, ...], faults: list[str]
) -> tuple[Size, list[Tensor] | None]:
    for size in sizes:
        maps = _attempt(features, in_channels, size, faults)
        if maps is not None:
            return size, maps
    return sizes[-1], None


@torch.no_grad()
def _attempt(features: Features, in_channels: int, size: Size, faults: list[str]) -> list[Tensor] | None:
    """The maps, or None where the network refuses; timm refuses by all of these errors."""
    try:
        return features(torch.zeros(1, in_channels, *size))
    except (AssertionError, RuntimeError, ValueError, IndexError) as error:
        faults.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
        return None


def _levels(name: str, maps: list[Tensor], size: Size) -> tuple[Level, ...]:
    levels = []
    for each in maps:
        if each.ndim != 4 or size[0] % each.shape[2] or size[0] // each.shape[2] * each.shape[3] != size[1]:
            raise UserError(f"{name} gives {tuple(each.shape)} for a picture of {size}: not a map of one whole stride")
        levels.append(Level(each.shape[1], size[0] // each.shape[2]))
    return tuple(levels)


def _fits(features: Features, in_channels: int, size: Size, levels: tuple[Level, ...], faults: list[str]) -> bool:
    maps = _attempt(features, in_channels, size, faults)
    if maps is None:
        return False
    given = [tuple(each.shape[1:]) for each in maps]
    promised = [(level.channels, -(-size[0] // level.stride), -(-size[1] // level.stride)) for level in levels]
    if given != promised:
        faults.append(f"a picture of {size} gives {given}")
    return given == promised
