"""Clips, their maps, and how far apart those of two networks are."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SINGLE, DOUBLE = 1e-5, 1e-9


def clip(frames: int, height: int, width: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, channels, frames, height, width, generator=generator)


def apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    assert max(float(b.abs().mean()) for b in theirs) > 0.3, "the reference carries no signal"
    return max(float((a - b).abs().max() / b.abs().mean().clamp(min=1)) for a, b in zip(ours, theirs, strict=True))


def assert_equal(ours: Any, theirs: Any, clips: Tensor, expected: Callable[[Any, Tensor], list[Tensor]]) -> None:
    for to, bound in ((torch.float32, SINGLE), (torch.float64, DOUBLE)):
        ours, theirs = ours.to(to), theirs.to(to)
        found = [*ours(clips.to(to)), ours.tokens(clips.to(to)).patches, ours.embed(clips.to(to))]
        assert apart(found, expected(theirs, clips.to(to))) < bound


def frames_first(clips: Tensor) -> Tensor:
    return clips.transpose(1, 2)


def as_map(tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
    return torch.unflatten(tokens.mT, 2, grid)
