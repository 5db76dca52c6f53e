"""Slides to vectors: which tiles are looked at, what their vectors are, and what is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitdense.errors import DataError, UserError
from vitdense.model import Model
from vitdense.rasters.probing import embed_slides, read_slides, score_probes
from vitdense.rasters.slides import Encoder, SlideConfig, embed_slide, pool, shown
from vitdense.zero_shot.features import encoder_of

Save = Callable[..., Path]


class Counting:
    """An encoder that counts the tiles that it is given."""

    def __init__(self, model: Model) -> None:
        self.encode, self.tiles = encoder_of(model), 0

    def __call__(self, tiles: Tensor) -> Tensor:
        self.tiles += len(tiles)
        return self.encode(tiles)


@pytest.fixture
def counting(make: Callable[..., Model]) -> Counting:
    return Counting(make(channels=3))


@pytest.fixture
def encoder(counting: Counting) -> Encoder:
    return Encoder(counting, (0.4, 0.5, 0.45), "one")


def slide(seed: int = 0, red: int = 0) -> NDArray[np.uint8]:
    """(70, 100, 3): glass, and noise of some colour in rows 10 to 69 of columns 20 to 99."""
    pixels = np.full((70, 100, 3), 250, np.uint8)
    pixels[10:, 20:] = np.random.default_rng(seed).integers(40, 120, (60, 80, 3))
    pixels[10:, 20:, 0] += red
    return pixels


def config(**options: Any) -> SlideConfig:
    return SlideConfig.model_validate({"tile": 32, "tile_batch": 4, **options})


def test_tiles_are_embedded_as_pictures_of_their_own(
    encoder: Encoder, make: Callable[..., Model], save: Save, tmp_path: Path
) -> None:
    pixels, model = slide(), make(channels=3)
    found = embed_slide(encoder, save(pixels), config(tile_stride=30), tmp_path / "kept.npz")
    assert found.places.tolist() == [[top, left] for top in (0, 30, 38) for left in (0, 30, 60, 68)]
    for vector, (top, left) in zip(found.vectors, found.places, strict=True):
        tile = torch.from_numpy(pixels[top : top + 32, left : left + 32].copy()).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = model.backbone.embed(model.normalise(tile))[0]
        torch.testing.assert_close(vector, expected, rtol=0, atol=1e-5)


def test_background_and_missing_pixels_decide_by_their_share(encoder: Encoder, save: Save, tmp_path: Path) -> None:
    pixels = slide()
    pixels[40:, 60:] = 0
    path = save(pixels)

    def places(**options: Any) -> list[list[int]]:
        options = {"tile": 20, "background": "white", "nodata": 0, **options}
        found: list[list[int]] = embed_slide(
            encoder, path, config(**options), tmp_path / f"{options}.npz"
        ).places.tolist()
        return found

    half = [[0, left] for left in (20, 40, 60, 80)]  # rows 0 to 19, of which 10 to 19 show something
    full = [[20, left] for left in (20, 40, 60, 80)]
    lower = [[40, 20], [40, 40], [50, 20], [50, 40]]
    assert places(foreground=0.5) == half + full + lower
    assert places(foreground=0.51) == full + lower
    assert [0, 0] in places(background="none", foreground=1.0)
    assert [40, 60] not in places(background="none", foreground=0.0)  # nothing but missing pixels
    assert [40, 60] not in places(background="black", nodata=None)
    with pytest.raises(DataError, match=r"not one tile of 64 pixels shows anything: .*\(white\) leave less than 100%"):
        places(tile=64, foreground=1.0)


def test_the_share_that_shows_something() -> None:
    pixels = torch.full((3, 2, 4), 0.95)
    pixels[1, 0, :3] = 0.5  # one channel is enough not to be white
    pixels[:, 1, 0] = 0.01
    missing = np.zeros((2, 4), bool)
    missing[0, 0] = True
    assert shown(pixels, missing, "none") == 7 / 8
    assert shown(pixels, missing, "white") == 3 / 8
    assert shown(pixels, missing, "black") == 6 / 8


def test_pooling() -> None:
    vectors = torch.randn(5, 3)
    torch.testing.assert_close(pool(vectors, "mean"), vectors.mean(0))
    torch.testing.assert_close(pool(vectors, "max"), vectors.max(0).values)
    expected = torch.cat([vectors.mean(0), vectors.var(0, correction=0).sqrt()])
    torch.testing.assert_close(pool(vectors, "mean_std"), expected)
    assert pool(vectors[:1], "mean_std")[3:].tolist() == [0, 0, 0]


def test_a_slide_that_was_embedded_is_not_walked_again_unless_something_changed(
    encoder: Encoder, counting: Counting, save: Save, tmp_path: Path
) -> None:
    path, keep = save(slide()), tmp_path / "kept.npz"
    first = embed_slide(encoder, path, config(), keep)
    walked = counting.tiles
    again = embed_slide(encoder, path, config(pool="max", tile_batch=2), keep)
    assert counting.tiles == walked
    assert torch.equal(first.vectors, again.vectors)
    embed_slide(encoder, path, config(background="white"), keep)
    assert counting.tiles > walked
    walked = counting.tiles
    embed_slide(encoder._replace(digest="two"), path, config(background="white"), keep)
    assert counting.tiles > walked


def test_a_large_tile_is_brought_to_the_side_that_is_asked_for(
    make: Callable[..., Model], save: Save, tmp_path: Path
) -> None:
    seen: list[tuple[int, ...]] = []
    encode = encoder_of(make(channels=3))

    def remember(tiles: Tensor) -> Tensor:
        seen.append(tuple(tiles.shape))
        return encode(tiles)

    encoder = Encoder(remember, (0.4, 0.5, 0.45), "one")
    embed_slide(encoder, save(slide()), config(tile=50, resize_to=24), tmp_path / "kept.npz")
    assert seen == [(4, 3, 24, 24)]


@pytest.fixture
def table(save: Save, tmp_path: Path) -> Path:
    """Eight slides of two colours, two of them to score by."""
    rows = ["file,label,split"]
    for number in range(8):
        label, split = ("red", "grey")[number % 2], "test" if number >= 6 else "train"
        save(slide(number, red=90 * (label == "red")), f"s{number}")
        rows.append(f"s{number}.npy,{label},{split}")
    (tmp_path / "slides.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "slides.csv"


def test_probes_learn_from_train_and_are_scored_on_the_others(encoder: Encoder, table: Path, tmp_path: Path) -> None:
    found = embed_slides(encoder, read_slides(table), config(background="white"), tmp_path / "out")
    assert found.names == ("grey", "red")
    assert found.labels.tolist() == [1, 0] * 4
    scores = score_probes(found)
    assert scores["test"]["slides"] == 2
    assert scores["test"]["linear_top1"] == scores["test"]["knn_top1"] == 1.0
    saved = np.load(tmp_path / "out/features.npz", allow_pickle=False)
    np.testing.assert_array_equal(saved["features"], found.vectors.numpy())
    assert saved["classes"].tolist() == ["grey", "red"]
    assert saved["splits"].tolist() == ["train"] * 6 + ["test"] * 2
    tiles = np.load(tmp_path / "out/tiles/s3.npz", allow_pickle=False)["vectors"]
    np.testing.assert_allclose(saved["features"][3], tiles.mean(0), atol=1e-6)
    assert saved["tiles"][3] == len(tiles)


def test_without_splits_there_are_features_and_no_scores(encoder: Encoder, table: Path, tmp_path: Path) -> None:
    lines = [line.rsplit(",", 1)[0] for line in table.read_text().splitlines()]
    table.write_text("\n".join(lines[:4]))
    found = embed_slides(encoder, read_slides(table), config(), tmp_path / "out")
    assert len(found.vectors) == 3
    assert score_probes(found) == {}
    table.write_text("file,label,split\ns0.npy,red,test\n")
    with pytest.raises(UserError, match="probes learn from the split train, the list has test"):
        score_probes(embed_slides(encoder, read_slides(table), config(), tmp_path / "out"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the file is empty"),
        ("file,label\n", "no slides; expected a header file,label"),
        ("name,label\na.npy,x\n", "no column for file"),
        ("file,label\n,x\n", "slides.csv:2: file is empty"),
        ("file,label\na.npy\n", "1 cells, the header has 2"),
    ],
)
def test_lists_that_cannot_be_used_are_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "slides.csv").write_text(text)
    with pytest.raises(DataError, match=told):
        read_slides(tmp_path / "slides.csv")


def test_two_slides_of_one_name_are_refused(encoder: Encoder, table: Path, tmp_path: Path) -> None:
    table.write_text("file,label\ns0.npy,red\nother/s0.tif,red\n")
    with pytest.raises(DataError, match=r"s0.tif: another slide is called s0 too"):
        embed_slides(encoder, read_slides(table), config(), tmp_path / "out")
