"""Pictures for people: the right colours in the right places, and masks that survive a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitdense.errors import UserError
from vitdense.pictures import contact_sheet, make_palette, outlines, overlay, panel, save_palette_png

RED_GREEN_BLUE = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
GREY = np.full((24, 32, 3), 128, dtype=np.uint8)


def halves() -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    mask = np.zeros((24, 32), dtype=np.int64)
    mask[:, 16:] = 2
    return mask


def test_palette_colours_differ_by_far() -> None:
    colours = np.array(make_palette(20), dtype=int)
    apart = np.abs(colours[:, None] - colours[None]).sum(axis=-1) + np.eye(20, dtype=int) * 1000
    assert apart.min() > 50


@pytest.mark.parametrize("count", [0, 1, 150, 1000])
def test_palette_has_a_colour_of_its_own_for_each_class(count: int) -> None:
    assert len(set(make_palette(count))) == count


def test_palette_of_more_classes_begins_with_that_of_fewer() -> None:
    assert make_palette(150)[:19] == make_palette(19)


def test_overlay_paints_classes_and_a_white_line_between_them() -> None:
    pixels = np.asarray(overlay(GREY, halves(), RED_GREEN_BLUE, alpha=1.0))
    assert tuple(pixels[5, 5]) == RED_GREEN_BLUE[0]
    assert tuple(pixels[5, 25]) == RED_GREEN_BLUE[2]
    assert pixels[5, 15].min() > 200


def test_overlay_shows_the_picture_through() -> None:
    pixels = np.asarray(overlay(GREY, halves(), RED_GREEN_BLUE, alpha=0.5))
    assert tuple(pixels[5, 5]) == (192, 64, 64)


def test_ignored_pixels_are_hatched_in_grey() -> None:
    pixels = np.asarray(overlay(GREY, np.full((24, 32), -1), RED_GREEN_BLUE, alpha=1.0)).astype(int)
    assert np.abs(pixels - pixels[..., :1]).max() < 15
    assert len(np.unique(pixels[..., 0])) == 2


def test_outlines_are_one_pixel_wide() -> None:
    edge = outlines(halves())
    assert edge.sum() == 24
    assert edge[:, 15].all()


def test_tensors_and_pil_images_are_taken_as_well() -> None:
    from_arrays = overlay(GREY, halves(), RED_GREEN_BLUE)
    from_others = overlay(Image.fromarray(GREY), torch.from_numpy(halves()).to(torch.int16), RED_GREEN_BLUE)
    assert from_arrays.tobytes() == from_others.tobytes()


def test_panel_grows_by_a_tile_with_the_truth() -> None:
    classes = ("sky", "road", "car")
    without = panel(GREY, None, halves(), classes, RED_GREEN_BLUE)
    truth = halves()
    truth[:4] = -1
    with_truth = panel(GREY, truth, halves(), classes, RED_GREEN_BLUE)
    assert with_truth.width > without.width
    assert with_truth.height == without.height


def test_panel_legend_names_only_classes_that_occur() -> None:
    canvas = np.asarray(panel(GREY, None, halves(), ("sky", "road", "car"), RED_GREEN_BLUE)).reshape(-1, 3)
    colours = {tuple(pixel) for pixel in np.unique(canvas, axis=0).tolist()}
    assert {RED_GREEN_BLUE[0], RED_GREEN_BLUE[2]} <= colours
    assert RED_GREEN_BLUE[1] not in colours


def test_panel_of_many_classes_breaks_its_legend_into_rows() -> None:
    mask = np.arange(24 * 32).reshape(24, 32) % 150
    names = [f"a rather long name {index}" for index in range(150)]
    many = panel(GREY, None, mask, names, make_palette(150))
    assert many.height > panel(GREY, None, halves(), names, make_palette(150)).height


def test_contact_sheet_lays_panels_in_rows() -> None:
    panels = [Image.new("RGB", size) for size in ((40, 20), (30, 30), (40, 25))]
    assert contact_sheet(panels).size == (40, 90)
    assert contact_sheet(panels, columns=2).size == (80, 60)


def test_palette_png_keeps_indices_and_colours(tmp_path: Path) -> None:
    mask = halves()
    mask[0, 0] = -1
    save_palette_png(mask, RED_GREEN_BLUE, tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as read:
        assert read.mode == "P"
        assert np.array_equal(np.asarray(read), np.where(mask == -1, 255, mask))
        assert read.convert("RGB").getpixel((20, 5)) == RED_GREEN_BLUE[2]


def test_more_classes_than_a_palette_holds_are_saved_in_sixteen_bits(tmp_path: Path) -> None:
    mask = halves() * 200
    mask[0, 0] = -1
    save_palette_png(mask, make_palette(500), tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as read:
        assert np.array_equal(np.asarray(read), np.where(mask == -1, 65535, mask))


def test_255_classes_fit_into_a_palette_beside_ignored(tmp_path: Path) -> None:
    save_palette_png(np.array([[254, -1]]), make_palette(255), tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as read:
        assert np.asarray(read).tolist() == [[254, 255]]


def test_sizes_that_differ_are_named() -> None:
    with pytest.raises(UserError, match=r"the mask is \(4, 4\) and the picture \(24, 32\)"):
        overlay(GREY, np.zeros((4, 4), dtype=int), RED_GREEN_BLUE)


def test_a_class_without_a_colour_is_named() -> None:
    with pytest.raises(UserError, match=r"the mask holds 0..2, but the palette has 2 colours"):
        overlay(GREY, halves(), RED_GREEN_BLUE[:2])


def test_what_is_no_picture_and_no_mask_is_named() -> None:
    with pytest.raises(UserError, match=r"a picture must be \(H, W, 3\) in uint8, got \(24, 32, 3\) in float64"):
        overlay(GREY / 255, halves(), RED_GREEN_BLUE)
    with pytest.raises(UserError, match=r"a mask must be \(H, W\) class indices, got \(24, 32\) in float64"):
        overlay(GREY, halves() / 2, RED_GREEN_BLUE)
