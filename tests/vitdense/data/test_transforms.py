"""Training augmentation: what comes out belongs together, has the crop's size, and depends on three numbers alone."""

import numpy as np
import pytest

from vitdense.contracts import IGNORE
from vitdense.data.transforms import Augment, Geometry, Photometric, base_factor, cut, pad, resize, resize_image

YS, XS = np.mgrid[0:60, 0:80]
IMAGE = np.stack([XS * 3, YS * 4, np.zeros_like(XS)], 2).astype(np.uint8)
MASK = (XS // 10 + 8 * (YS // 10)).astype(np.int16)


def augment(crop: tuple[int, int] = (32, 48), seed: int = 0, **options: object) -> Augment:
    return Augment(Geometry(crop, **options), Photometric(), seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("crop", [(32, 48), (200, 150), (60, 200)])
def test_the_output_has_the_crops_size(crop: tuple[int, int]) -> None:
    for epoch in range(5):
        image, mask = augment(crop)(IMAGE, MASK, epoch=epoch, index=0)
        assert image.shape == (*crop, 3)
        assert mask.shape == crop
        assert str(image.dtype) == "uint8"
        assert str(mask.dtype) == "int16"


def test_equal_numbers_give_equal_pixels_in_any_instance() -> None:
    one, other = (augment()(IMAGE, MASK, epoch=3, index=5) for _ in range(2))
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])


@pytest.mark.parametrize("changed", [{"epoch": 4}, {"index": 6}, {"seed": 1}])
def test_seed_epoch_and_index_each_change_the_draw(changed: dict[str, int]) -> None:
    numbers = {"seed": 0, "epoch": 3, "index": 5, **changed}
    before = augment()(IMAGE, MASK, epoch=3, index=5)
    after = augment(seed=numbers["seed"])(IMAGE, MASK, epoch=numbers["epoch"], index=numbers["index"])
    assert not np.array_equal(before[0], after[0])


def test_a_smaller_picture_is_surrounded_by_ignore() -> None:
    image, mask = augment((100, 120), scale=(1.0, 1.0))(IMAGE, MASK, epoch=0, index=0)
    assert (mask[60:] == IGNORE).all()
    assert (mask[:, 80:] == IGNORE).all()
    assert (mask[:60, :80] != IGNORE).all()
    assert (image[60:] == (124, 116, 104)).all()


def test_the_mask_follows_the_picture_through_scale_crop_and_flip() -> None:
    for index in range(20):
        move = Augment(Geometry((32, 48), scale=(1.0, 3.0)), None, seed=0)
        image, mask = move(IMAGE, MASK, epoch=0, index=index)
        column, row = image[..., 0] / 3, image[..., 1] / 4
        inside = (np.abs(column % 10 - 5) < 4) & (np.abs(row % 10 - 5) < 4) & (mask != IGNORE)
        expected = np.floor(column / 10) + 8 * np.floor(row / 10)
        assert inside.any()
        assert (mask[inside] == expected[inside]).mean() > 0.97


@pytest.mark.parametrize("factor", [0.5, 0.8, 2.0])
def test_cutting_before_resizing_gives_the_picture_of_resizing_before_cutting(factor: float) -> None:
    # In a ramp, a pixel's value tells where it came from.
    image, _ = cut(IMAGE, MASK, Geometry((20, 30), scale=(factor, factor)), np.random.default_rng(1))
    whole, _ = resize(IMAGE, MASK, (round(60 * factor), round(80 * factor)))
    columns, rows = image[10, 2:-2, 0].astype(float) / 3, image[2:-2, 10, 1].astype(float) / 4
    assert np.abs(np.diff(columns) - 1 / factor).max() < 0.7
    assert np.abs(np.diff(rows) - 1 / factor).max() < 0.7
    distance = np.abs(whole.astype(int) - image[10, 15].astype(int)).sum(2).min()
    assert distance <= 3.5 / factor + 2  # half a pixel in either direction, and rounding


def test_a_window_with_more_than_one_class_is_preferred() -> None:
    mask = np.zeros((100, 100), np.int16)
    mask[40:60, 40:60] = 1
    image = np.zeros((100, 100, 3), np.uint8)
    shares = []
    for ratio in (0.75, 1.0):
        geometry = Geometry((20, 20), scale=(1.0, 1.0), category_ratio=ratio)
        found = [cut(image, mask, geometry, np.random.default_rng(seed))[1] for seed in range(60)]
        shares.append(np.mean([0.0 < (part == 1).mean() < 1.0 for part in found]))
    assert shares[0] > 1.5 * shares[1]


def test_ignored_pixels_do_not_count_as_a_class() -> None:
    mask = np.full((40, 40), IGNORE, np.int16)
    assert (cut(np.zeros((40, 40, 3), np.uint8), mask, Geometry((20, 20)), np.random.default_rng(0))[1] == IGNORE).all()


@pytest.mark.parametrize(("size", "factor"), [((512, 683), 1.0), ((256, 256), 2.0), ((100, 1000), 2.048)])
def test_the_base_scale_fits_short_and_long_side(size: tuple[int, int], factor: float) -> None:
    assert base_factor(size, 512, 2048) == pytest.approx(factor)


def test_masks_are_resized_to_the_exactly_nearest_pixel() -> None:
    mask = np.arange(12, dtype=np.int16)[None].repeat(12, 0)
    _, small = resize(np.zeros((12, 12, 3), np.uint8), mask, (4, 4))
    assert small[0].tolist() == [1, 4, 7, 10]


def test_padding_leaves_a_full_array_alone() -> None:
    assert pad(MASK, (60, 80), IGNORE) is MASK


def test_colours_change_and_shapes_stay() -> None:
    colours = Photometric()
    images = [colours(IMAGE, seed) for seed in range(20)]
    assert all(image.shape == IMAGE.shape for image in images)
    assert sum(not np.array_equal(image, IMAGE) for image in images) >= 14


def test_colour_transforms_act_independently_of_one_another() -> None:
    colours = Photometric()
    grey = np.full((4, 4, 3), 100, np.uint8)
    brightness = [int(colours(grey, seed)[0, 0, 0]) for seed in range(60)]
    unchanged = sum(value == 100 for value in brightness)
    assert 6 <= unchanged <= 26  # a quarter: neither brightness nor contrast; half, if they acted together
    assert len(set(brightness)) > 20


@pytest.mark.parametrize("channels", [1, 2, 5, 9])
@pytest.mark.parametrize("size", [(23, 31), (90, 130)])
def test_any_number_of_channels_is_resized_as_each_alone(channels: int, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random((59, 80, channels)).astype(np.float32)
    found = resize_image(image, size)
    assert found.dtype == np.float32
    for index in range(channels):
        alone = resize_image(image[..., [index] * 3], size)[..., 0]
        # OpenCV rounds places in fp32 in other ways for two channels than for three.
        np.testing.assert_allclose(found[..., index], alone, rtol=0, atol=1e-5)
