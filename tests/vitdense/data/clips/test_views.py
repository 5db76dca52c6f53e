"""Crops and colours of clips: one draw for all frames, the right size from any size."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vitdense.data.clips.decoding import Picture
from vitdense.data.clips.views import ClipViewConfig, training_clip, validation_clips

EVERYTHING: dict[str, Any] = {
    "rand_augment": [2, 20],
    "color_jitter": [0.4, 0.4, 0.4, 0.1],
    "erase_prob": 1.0,
    "flip_prob": 0.5,
}


def config(**options: object) -> ClipViewConfig:
    return ClipViewConfig.model_validate({"size": [24, 32], **options})


def still(count: int, size: tuple[int, int] = (50, 70)) -> list[Picture]:
    """The same picture again and again."""
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    return [picture] * count


@pytest.mark.parametrize("size", [(50, 70), (70, 50), (10, 12), (24, 32), (200, 30)])
@pytest.mark.parametrize("augment", [{"scale": [0.3, 1.0]}, {"scale": None, "short_sides": [26, 40]}])
def test_a_training_clip_has_the_size_and_the_same_change_in_every_frame(
    size: tuple[int, int], augment: dict[str, Any]
) -> None:
    drawn = config(augment={**EVERYTHING, **augment})
    clips = [training_clip(still(3, size), drawn, np.random.default_rng(seed)) for seed in range(4)]
    for clip in clips:
        assert clip.shape == (3, 3, 24, 32)
        assert clip.dtype == torch.uint8
        assert torch.equal(clip[:, 0], clip[:, 1])
        assert torch.equal(clip[:, 0], clip[:, 2])
    assert not torch.equal(clips[0], clips[1])


def test_the_draw_depends_on_the_generator_alone() -> None:
    drawn = config(augment=EVERYTHING)
    before = torch.random.get_rng_state()
    one = training_clip(still(2), drawn, np.random.default_rng(7))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(one, training_clip(still(2), drawn, np.random.default_rng(7)))


def test_a_mirrored_clip_is_the_same_clip_mirrored() -> None:
    frames = still(2)
    plain, mirrored = (
        training_clip(frames, config(augment={"flip_prob": chance}), np.random.default_rng(3)) for chance in (0.0, 1.0)
    )
    assert torch.equal(plain.flip(-1), mirrored)


def test_validation_takes_the_middle_or_three_along_the_long_side() -> None:
    wide = [np.broadcast_to(np.arange(100, dtype=np.uint8)[None, :, None], (24, 100, 3)).copy()] * 2
    (middle,) = validation_clips(wide, config())
    assert middle.shape == (3, 2, 24, 32)
    assert middle[0, 0, 0].tolist() == list(range(34, 66))
    crops = validation_clips(wide, config(crops=3))
    assert [int(crop[0, 0, 0, 0]) for crop in crops] == [0, 34, 68]
    tall = [frame.transpose(1, 0, 2) for frame in wide]
    crops = validation_clips(tall, config(size=[32, 24], crops=3))
    assert [int(crop[0, 0, 0, 0]) for crop in crops] == [0, 34, 68]


@pytest.mark.parametrize("size", [(50, 70), (70, 50), (10, 12), (200, 30), (24, 32)])
@pytest.mark.parametrize("short_side", [None, 20, 40])
def test_validation_fits_any_size(size: tuple[int, int], short_side: int | None) -> None:
    for clip in validation_clips(still(2, size), config(short_side=short_side, crops=3)):
        assert clip.shape == (3, 2, 24, 32)


def test_options_that_contradict_are_told() -> None:
    with pytest.raises(ValidationError, match="two ways to crop"):
        config(augment={"short_sides": [20, 30]})
    with pytest.raises(ValidationError, match="two ways to crop"):
        config(augment={"scale": None})
    with pytest.raises(ValidationError, match="the smaller first"):
        config(augment={"scale": [1.0, 0.5]})
    with pytest.raises(ValidationError, match="magnitude of 30"):
        config(augment={"rand_augment": [2, 31]})
