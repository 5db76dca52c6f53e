"""Masks of whole clips equal the published protocol's; what can't be propagated is named."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitdense import create_backbone
from vitdense.data.clips.moving import render_clip
from vitdense.errors import DataError, UserError
from vitdense.propagation import PropagationConfig, propagate
from vitdense.propagation.features import features_of, fitted_size
from vitdense.propagation.masks import labels_of, middles, stretched

AS_THEY_ARE: dict[str, Any] = {"short_side": None}


def clip(size: tuple[int, int] = (56, 72), frames: int = 6, seed: int = 3) -> tuple[list[Any], Any]:
    drawn = render_clip(seed, 0, size, frames, plain=True)
    return list(drawn.frames), drawn.semantic.astype(np.int32)


@pytest.mark.parametrize("size", [(56, 72), (53, 75), (50, 31)])
@pytest.mark.parametrize(
    "options",
    [
        {"last_frames": 7, "neighbourhood": 12, "topk": 5, "temperature": 0.1},
        {"last_frames": 2, "neighbourhood": 2, "topk": 3, "temperature": 0.05},
        {"last_frames": 0, "neighbourhood": 0, "topk": 4, "temperature": 0.1},
    ],
)
def test_masks_equal_the_protocols(patches: Any, protocol: Any, size: tuple[int, int], options: dict[str, Any]) -> None:
    frames, masks = clip(size)
    backbone = patches(8).double()
    found = list(propagate(backbone, frames, masks[0], PropagationConfig(**options, **AS_THEY_ARE)))
    expected = protocol(backbone, frames, masks[0], **options)
    assert len(found) == len(frames)
    assert len(np.unique(found[1])) > 1
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_objects_keep_the_numbers_that_they_have(patches: Any) -> None:
    frames, masks = clip()
    numbers = np.array([0, 7, 40, 200, 254, 3])[masks[0]].astype(np.uint8)
    config = PropagationConfig(**AS_THEY_ARE)
    plain = list(propagate(patches(8), frames, masks[0], config))
    named = list(propagate(patches(8), frames, numbers, config))
    values, order = np.unique(masks[0]), np.unique(numbers)
    assert set(np.unique(named)) <= set(order.tolist())
    # Background is first in both; other channels may stand in another order, which only ties can tell.
    translated = np.vectorize(dict(zip(values, np.array([0, 7, 40, 200, 254, 3])[values], strict=True)).get)(plain)
    np.testing.assert_array_equal(np.stack(named), translated)


def test_frames_are_resized_as_published() -> None:
    published = PropagationConfig()
    assert fitted_size((480, 854), published) == (480, 832)
    assert fitted_size((854, 480), published) == (832, 480)
    assert fitted_size((1080, 1920), published) == (480, 832)
    assert fitted_size((480, 910), published) == (480, 896)
    assert fitted_size((333, 500), PropagationConfig(short_side=64, multiple=16)) == (64, 96)
    assert fitted_size((333, 500), PropagationConfig(short_side=None)) == (333, 500)


def test_resized_clips_have_masks_of_their_own_size(patches: Any) -> None:
    frames, masks = clip((40, 60))
    found = list(propagate(patches(8), frames, masks[0], PropagationConfig(short_side=64, multiple=16)))
    assert {mask.shape for mask in found} == {(40, 60)}
    # The clip hardly moves from one frame to the next, so that most of the first mask is still there.
    assert (found[1] == masks[1]).mean() > 0.9


def test_labels_are_the_pixels_in_the_middle_of_cells(patches: Any) -> None:
    mask = np.arange(40 * 60, dtype=np.int32).reshape(40, 60)
    features = features_of(patches(16), np.zeros((40, 60, 3), np.uint8), PropagationConfig(**AS_THEY_ARE))
    found = labels_of(mask, np.unique(mask), features).argmax(-1)
    rows, columns = [8, 24, 39], [8, 24, 40, 56]  # the last row of cells reaches beyond the picture
    assert found.tolist() == [[row * 60 + column for column in columns] for row in rows]


@pytest.mark.parametrize(
    ("pixels", "seen", "stride"),
    [(854, 832, 1), (854, 832, 16), (832, 854, 1), (480, 480, 16), (1920, 896, 8), (101, 64, 4), (33, 64, 1)],
)
def test_pixels_are_chosen_as_pillow_does(pixels: int, seen: int, stride: int) -> None:
    row = Image.fromarray(np.arange(pixels, dtype=np.int32)[None])
    expected = np.asarray(row.resize((seen // stride, 1), Image.Resampling.NEAREST))[0]
    np.testing.assert_array_equal(middles(seen // stride, stride, seen, pixels), expected)


def test_labels_are_stretched_to_the_whole_range() -> None:
    maps = torch.tensor([[[0.2, 0.4], [0.6, 0.2]], [[0.0, 0.0], [0.0, 0.0]], [[0.3, 0.3], [0.3, 0.3]]])
    found = stretched(maps)
    torch.testing.assert_close(found[0], torch.tensor([[0.0, 0.5], [1.0, 0.0]]))
    assert found[1].eq(0).all()
    assert found[2].eq(1).all()


def test_levels_are_looked_at_as_well_as_the_last_layer() -> None:
    backbone = create_backbone("swin_nano").eval()
    frame = render_clip(0, 0, (50, 70), 1).frames[0]
    for level, expected in ((None, backbone.levels[-1]), (0, backbone.levels[0]), (-2, backbone.levels[-2])):
        with torch.no_grad():
            features = features_of(backbone, frame, PropagationConfig(level=level, **AS_THEY_ARE))
        grid = (-(-50 // expected.stride), -(-70 // expected.stride))
        assert (features.stride, features.vectors.shape) == (expected.stride, (*grid, expected.channels))
        torch.testing.assert_close(features.vectors.norm(dim=-1), torch.ones(grid))


@pytest.mark.parametrize("name", ["vit_nano_patch8", "timm/vit_tiny_patch16_224"])
def test_backbones_with_prefix_tokens_serve_too(name: str) -> None:
    backbone = create_backbone(name)
    backbone.train()
    frames, masks = clip((44, 60), frames=3)
    found = list(propagate(backbone, frames, masks[0], PropagationConfig(**AS_THEY_ARE)))
    assert [mask.shape for mask in found] == [(44, 60)] * 3
    assert backbone.training


def test_an_object_that_fills_the_frame_stays(patches: Any) -> None:
    frames, _ = clip()
    found = list(propagate(patches(8).double(), frames, np.ones((56, 72), np.uint8), PropagationConfig(**AS_THEY_ARE)))
    assert all((mask == 1).mean() > 0.99 for mask in found)


def test_mistakes_are_named(patches: Any) -> None:
    frames, masks = clip()
    config = PropagationConfig(**AS_THEY_ARE)
    with pytest.raises(UserError, match="no objects"):
        next(propagate(patches(8), frames, np.zeros((56, 72), np.uint8), config))
    with pytest.raises(UserError, match=r"first mask is \(H, W\) of whole numbers, given \(6, 56, 72\)"):
        next(propagate(patches(8), frames, masks, config))
    with pytest.raises(DataError, match=r"frame 1 is \(50, 72\), the first mask is \(56, 72\)"):
        list(propagate(patches(8), [frames[0], frames[1][:50]], masks[0], config))
    with pytest.raises(UserError, match="no level 4: there are 1, 0 to 0"):
        next(propagate(patches(8), frames, masks[0], PropagationConfig(level=4)))
    with pytest.raises(UserError, match="takes clips"):
        next(propagate(create_backbone("videomae_nano_patch8"), frames, masks[0], config))
