"""Propagation on content: drifting shapes are followed, which a mask that stands still is not."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vitdense import create_backbone
from vitdense.contracts import Backbone
from vitdense.data.clips.moving import render_clip
from vitdense.metrics.video_objects import Floats, score_objects, summarise
from vitdense.propagation import PropagationConfig, propagate

Masks = NDArray[np.integer]

FRAMES = 10


def curves(truth: Masks, found: Sequence[Masks]) -> list[Floats]:
    """J and F (2, T) of each object of the first mask, in all frames but the first and the last."""
    objects = [int(value) for value in np.unique(truth[0]) if value]
    scores = np.stack([score_objects(truth[each], found[each], objects) for each in range(1, FRAMES - 1)], axis=-1)
    return list(scores.swapaxes(0, 1))


def follow(backbone: Backbone, level: int | None) -> tuple[dict[str, float], dict[str, float]]:
    """Scores of what is followed, and of the first masks kept still."""
    followed: list[Floats] = []
    still: list[Floats] = []
    for seed in range(4):
        clip = render_clip(seed, 0, (96, 128), FRAMES)
        config = PropagationConfig(short_side=None, level=level)
        found = list(propagate(backbone, clip.frames, clip.semantic[0], config))
        followed += curves(clip.semantic, found)
        still += curves(clip.semantic, [clip.semantic[0]] * FRAMES)
    return dict(summarise(followed)), dict(summarise(still))


def told(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {scores[name]:.2f}" for name in ("J&F-Mean", "J-Mean", "F-Mean"))


@pytest.fixture(scope="module")
def random_swin() -> Backbone:
    torch.manual_seed(0)
    return create_backbone("swin_nano").eval()


@pytest.fixture(scope="module")
def fine(random_swin: Backbone) -> tuple[dict[str, float], dict[str, float]]:
    return follow(random_swin, level=0)


def test_shapes_are_followed_by_fine_features_even_of_random_weights(
    fine: tuple[dict[str, float], dict[str, float]],
) -> None:
    followed, still = fine
    print(f"\ncells of 4 pixels: {told(followed)}; the first mask kept still: {told(still)}")
    for name in ("J-Mean", "F-Mean", "J-Recall", "F-Recall"):
        assert followed[name] > still[name] + 0.3, name


def test_coarser_cells_follow_less(random_swin: Backbone, fine: tuple[dict[str, float], dict[str, float]]) -> None:
    coarse, _ = follow(random_swin, level=None)
    print(f"\ncells of 32 pixels: {told(coarse)}")
    assert fine[0]["J&F-Mean"] > coarse["J&F-Mean"] + 0.3
