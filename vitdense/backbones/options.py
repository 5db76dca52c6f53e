"""What all backbones do with their common options: output indices, pixel statistics, frozen parts."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from torch import nn

from vitdense.contracts import BackboneConfig
from vitdense.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Pixel statistics of published families, as presets take them.
HALVES: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
OPENAI: dict[str, Any] = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


def resolve_out_indices(given: tuple[int, ...] | None, count: int, default: tuple[int, ...]) -> tuple[int, ...]:
    """Indices from 0 to count - 1, increasing; negative ones count from the end."""
    if given is None:
        return default
    resolved = tuple(i + count if i < 0 else i for i in given)
    inside = all(0 <= i < count for i in resolved)
    if not resolved or not inside or any(a >= b for a, b in pairwise(resolved)):
        raise UserError(f"out_indices {list(given)}: give increasing indices from {-count} to {count - 1}")
    return resolved


def evenly_spaced(count: int, parts: int = 4) -> tuple[int, ...]:
    """The last of each of `parts` equal runs of blocks: 12 -> 2, 5, 8, 11."""
    return tuple(sorted({(i + 1) * count // parts - 1 for i in range(parts)} - {-1}))


def pixel_statistics(
    config: BackboneConfig,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for each input channel: the config's, or these."""
    return (
        _for_channels("mean", config.mean or mean, config.in_channels),
        _for_channels("std", config.std or std, config.in_channels),
    )


def _for_channels(name: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Colour statistics follow the weights of the first layer: averaged for one channel, repeated for others."""
    if len(values) == channels:
        return values
    if len(values) != 3:
        raise UserError(f"{name} has {len(values)} values for {channels} input channels; give {channels}")
    if channels == 1:
        return (sum(values) / 3,)
    return tuple(values[i % 3] for i in range(channels))


def check_frozen_stages(config: BackboneConfig, most: int) -> None:
    """Refuses to freeze more than there is."""
    if config.frozen_stages > most:
        raise UserError(f"frozen_stages {config.frozen_stages}: this backbone has {most} (the embedding counts as one)")


def freeze(modules: Iterable[nn.Module]) -> None:
    """Parameters without gradient, and dropout off."""
    for module in modules:
        module.requires_grad_(False)
        module.eval()
