"""First masks and frames in files: values, colours, order, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdense.errors import DataError, UserError
from vitdense.propagation.config import read_options
from vitdense.propagation.files import find_clip, read_first_mask

VALUES = np.array([[0, 1, 1], [0, 7, 255]], np.uint8)


def test_palette_masks_bring_their_colours(tmp_path: Path) -> None:
    stored = Image.fromarray(VALUES, mode="P")
    colours = np.random.default_rng(0).integers(0, 256, (256, 3))
    stored.putpalette(colours.ravel().tolist())
    stored.save(tmp_path / "first.png")
    mask, palette = read_first_mask(tmp_path / "first.png")
    assert mask.tolist() == [[0, 1, 1], [0, 7, 0]]
    assert palette == [tuple(each) for each in colours[:255].tolist()]


def test_grey_masks_get_colours_for_their_values(tmp_path: Path) -> None:
    Image.fromarray(VALUES).save(tmp_path / "first.png")
    mask, palette = read_first_mask(tmp_path / "first.png")
    assert mask.tolist() == [[0, 1, 1], [0, 7, 0]]
    assert len(set(palette)) == len(palette) == 8


def test_sixteen_bits_have_more_objects_than_a_byte(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255, 300]], np.uint16)).save(tmp_path / "first.png")
    mask, palette = read_first_mask(tmp_path / "first.png")
    assert mask.tolist() == [[0, 255, 300]]
    assert len(palette) == 301


@pytest.mark.parametrize(
    ("value", "message"), [(0, "holds only 0, which is no object"), (255, "only 0 and 255, which")]
)
def test_masks_without_objects_are_refused(tmp_path: Path, value: int, message: str) -> None:
    Image.fromarray(np.array([[0, value]], np.uint8)).save(tmp_path / "first.png")
    with pytest.raises(DataError, match=message):
        read_first_mask(tmp_path / "first.png")


def test_colours_are_no_objects(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "first.png")
    with pytest.raises(DataError, match=r"first\.png: .*one class index for each pixel"):
        read_first_mask(tmp_path / "first.png")


def test_frames_are_in_order_and_have_one_name_each(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for name in ("b.jpg", "a10.jpg", "a9.jpg"):
        Image.new("RGB", (4, 4)).save(folder / name)
    (folder / "notes.txt").write_text("no frame")
    frames = find_clip(folder, tmp_path / "first.png").frames
    assert frames is not None
    assert [file.stem for file in frames] == ["a10", "a9", "b"]
    Image.new("RGB", (4, 4)).save(folder / "b.png")
    with pytest.raises(DataError, match="two frames are called 'b'"):
        find_clip(folder, tmp_path / "first.png")


def test_options_are_read_as_written() -> None:
    config, backbone = read_options(["topk=7", "short_side=null", "temperature=0.07", "backbone.drop_path=0.1"])
    assert (config.topk, config.short_side, config.temperature, config.last_frames) == (7, None, 0.07, 7)
    assert backbone == {"drop_path": 0.1}
    with pytest.raises(UserError, match=r"short_side: .*given 0"):
        read_options(["short_side=0"])
    with pytest.raises(UserError, match=r"backbone\.KEY=VALUE"):
        read_options(["backbone=vit"])
