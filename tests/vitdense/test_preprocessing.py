"""Pictures come out of `Preprocess` byte for byte as the libraries that publish the models make them."""

from typing import Any

import numpy as np
import pytest
from open_clip.transform import image_transform
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from vitdense.preprocessing import Preprocess

SIZES = [(64, 64), (67, 45), (31, 120), (200, 97)]
MODES = ["RGB", "L", "P", "RGBA"]


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, 4), dtype=np.uint8)
    made = Image.fromarray(noise, "RGBA")
    return made if mode == "RGBA" else made.convert("RGB").convert(mode)


def pixels(image: Image.Image) -> Any:
    return np.asarray(image)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("how", "target"), [("shortest", 32), ("squash", 32), ("longest", 32), ("shortest", (33, 48))])
def test_as_open_clip(how: Any, target: Any, interpolation: Any, mode: str, size: tuple[int, int]) -> None:
    given = picture(*size, mode)
    theirs = image_transform(target, is_train=False, resize_mode=how, interpolation=interpolation)
    before_pixels_are_floats = theirs.transforms[:-2]
    expected = given
    for step in before_pixels_are_floats:
        expected = step(expected)
    pair = (target, target) if isinstance(target, int) else target
    if how == "shortest" and not isinstance(target, int):
        interpolation = "bicubic"  # the only one that open_clip has where the target isn't square
    ours = Preprocess(pair, how, interpolation)(given)
    assert (pixels(ours) == pixels(expected)).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("short", "cut"), [(32, 32), (40, 33), (30, 33)], ids=str)
def test_as_transformers_clip(short: int, cut: int, mode: str, size: tuple[int, int]) -> None:
    given = picture(*size, mode)
    plain: Any = {"do_rescale": False, "do_normalize": False}
    processor = CLIPImageProcessorPil(size={"shortest_edge": short}, crop_size={"height": cut, "width": cut}, **plain)
    expected = processor(given, return_tensors="np")["pixel_values"][0]
    ours = Preprocess((cut, cut), "shortest", short_side=short, like="transformers")(given)
    assert (pixels(ours).transpose(2, 0, 1) == expected).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_as_transformers_siglip(mode: str, size: tuple[int, int]) -> None:
    given = picture(*size, mode)
    plain: Any = {"do_rescale": False, "do_normalize": False}
    processor = SiglipImageProcessorPil(size={"height": 48, "width": 40}, **plain)
    expected = processor(given, return_tensors="np")["pixel_values"][0]
    ours = Preprocess((48, 40), "squash", like="transformers")(given)
    assert (pixels(ours).transpose(2, 0, 1) == expected).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_as_siglip_2_cuts_pictures_of_any_shape_into_patches(size: tuple[int, int]) -> None:
    given = picture(*size)
    plain: Any = {"do_rescale": False, "do_normalize": False}
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=25, **plain)
    found = processor(given, return_tensors="np")
    down, across = found["spatial_shapes"][0]
    patches = found["pixel_values"][0][: down * across].reshape(down, across, 8, 8, 3)
    expected = patches.transpose(0, 2, 1, 3, 4).reshape(down * 8, across * 8, 3)
    ours = Preprocess((40, 40), "patches", "bilinear", patch=8, like="transformers")(given)
    assert (pixels(ours) == expected).all()
