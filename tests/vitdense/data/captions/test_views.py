"""Views: validation pictures are open_clip's byte for byte, training views depend on the generator alone."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from vitdense.data.captions.views import Picture, PictureDataConfig, ViewAugment, crop_box
from vitdense.errors import DataError
from vitdense.preprocessing import Preprocess

SIZES = [(120, 80), (81, 200), (64, 64), (33, 47), (300, 31)]


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(sum(size)).integers(0, 256, (*size, 3)).astype(np.uint8))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(64, 64), (57, 57), (48, 72)])
def test_validation_pictures_are_open_clips(mode: str, interpolation: str, size: tuple[int, int]) -> None:
    if mode == "shortest" and size[0] != size[1] and interpolation == "bilinear":
        pytest.skip("open_clip takes bicubic there, whatever is asked for")
    theirs = open_clip.image_transform(
        size, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3, resize_mode=mode, interpolation=interpolation
    )
    ours = Preprocess(size, mode, interpolation)  # type: ignore[arg-type]
    for given in SIZES:
        image = noise(given)
        pixels = torch.from_numpy(np.array(ours(image))).permute(2, 0, 1)
        assert torch.equal(pixels, (theirs(image) * 255).round().to(torch.uint8))


def test_a_validation_sample_is_the_same_picture(tmp_path: Path) -> None:
    image = noise((120, 80))
    image.save(tmp_path / "x.png")
    views = PictureDataConfig(size=32).views()
    expected = np.array(Preprocess((32, 32), "shortest")(image)).transpose(2, 0, 1)
    assert np.array_equal(views.whole(Picture(tmp_path / "x.png")).numpy(), expected)
    content = (tmp_path / "x.png").read_bytes()
    assert np.array_equal(views.whole(Picture("in a tar", content)).numpy(), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": None},
        {"flip_prob": 0.5},
        {"color_jitter_prob": 0.8, "gray_scale_prob": 0.3},
        {"scale": (0.1, 1.0)},
    ],
)
def test_training_views_depend_on_the_generator_alone(options: dict[str, object], tmp_path: Path) -> None:
    noise((60, 64)).save(tmp_path / "x.png")
    views = PictureDataConfig(size=24, augment=ViewAugment(**options)).views()  # type: ignore[arg-type]
    drawn = [views.drawn(Picture(tmp_path / "x.png"), np.random.default_rng(seed)) for seed in (0, 1, 2, 3, 0)]
    assert all(view.shape == (3, 24, 24) and view.dtype == torch.uint8 for view in drawn)
    assert torch.equal(drawn[0], drawn[4])
    same = [torch.equal(drawn[0], view) for view in drawn[1:4]]
    assert all(same) == (options == {"scale": None})


def test_grey_and_mirrored_views_are_that(tmp_path: Path) -> None:
    image = noise((24, 24))
    image.save(tmp_path / "x.png")
    read = {}
    for name, options in {"grey": {"gray_scale_prob": 1.0}, "mirrored": {"flip_prob": 1.0}}.items():
        views = PictureDataConfig(size=24, augment=ViewAugment(scale=None, **options)).views()  # type: ignore[arg-type]
        read[name] = views.drawn(Picture(tmp_path / "x.png"), np.random.default_rng(0)).numpy()
    assert (read["grey"] == read["grey"][:1]).all()
    assert np.array_equal(read["mirrored"], np.array(image).transpose(2, 0, 1)[:, :, ::-1])


def test_crops_have_the_scale_and_ratio_that_are_asked_for() -> None:
    generator = np.random.default_rng(0)
    for size in ((100, 80), (500, 375)):
        for _ in range(200):
            left, top, right, bottom = crop_box(generator, size, (0.5, 0.8), (3 / 4, 4 / 3))
            assert 0 <= left < right <= size[0]
            assert 0 <= top < bottom <= size[1]
            share = (right - left) * (bottom - top) / (size[0] * size[1])
            assert 0.48 < share < 0.82
            assert 0.73 < (right - left) / (bottom - top) < 1.36
    assert crop_box(generator, (1000, 10), (0.9, 1.0), (3 / 4, 4 / 3)) == (493, 0, 506, 10)


def test_a_line_that_can_not_be_fitted_in_is_named(tmp_path: Path) -> None:
    noise((2, 900)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x\.png: 900 x 2 pixels are too narrow to fit 32 x 32"):
        PictureDataConfig(size=32, resize="longest").views().whole(Picture(tmp_path / "x.png"))


def test_a_faster_decoder_leaves_the_crop_above_its_size(tmp_path: Path) -> None:
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)).resize((400, 300))
    smooth.save(tmp_path / "x.jpg", quality=95)
    seen = []
    for fast in (False, True):
        views = PictureDataConfig(size=48, fast_decode=fast).views()
        seen.append(views.drawn(Picture(tmp_path / "x.jpg"), np.random.default_rng(0)).float())
    assert views._shrink(Picture(tmp_path / "x.jpg")) == 4
    assert 0 < (seen[0] - seen[1]).abs().mean() < 4


@pytest.mark.parametrize(
    "options", [{"scale": (0.9, 0.5)}, {"scale": (0.5, 1.2)}, {"ratio": (2.0, 1.0)}, {"color_jitter": (0, 0, 0, 0.7)}]
)
def test_options_that_can_not_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"first|most"):
        ViewAugment(**options)  # type: ignore[arg-type]
