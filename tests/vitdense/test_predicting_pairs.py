"""Pairs in A/ and B/ through a model of change: masks, sheets, and what is told of pairs that are none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from heads import create_head
from tests.stubs import MapsAlone
from vitdense.contracts import Level
from vitdense.engine.evaluation import _panel
from vitdense.errors import DataError, UserError
from vitdense.model import Model
from vitdense.predicting import find_pictures, predict_files
from vitdense.predicting_pairs import match_pairs

PALETTE = ((44, 52, 74), (236, 90, 76))
SIZE = (32, 48)


class Brightness(MapsAlone):
    """A stand-in whose map is the brightness of each picture's cells of 4 x 4."""

    levels = (Level(1, 4, 1),)
    embed_dim = 1

    def forward(self, images: Tensor) -> list[Tensor]:
        return [F.avg_pool3d(images.mean(1, keepdim=True), (1, 4, 4))]


@pytest.fixture
def model() -> Model:
    """Changed is what is brighter or darker by more than a quarter."""
    inner = {"name": "linear", "norm": "none", "dropout": 0.0, "num_classes": 2}
    head: Any = create_head("change", Brightness.levels, head=inner)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.tensor([0.0, 8.0 if parameter.ndim > 1 else -2.0]).view(parameter.shape))
    return Model(Brightness(), head, classes=["unchanged", "changed"], palette=PALETTE).eval()


def picture(changed: bool, size: tuple[int, int] = SIZE) -> Image.Image:
    pixels = np.full((*size, 3), 60, np.uint8)
    if changed:
        pixels[8:24, 16:40] = 220
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pairs, one of them in a folder, with labels beside them."""
    for name in ("p0", "city/p1"):
        for side, changed in (("A", False), ("B", name == "p0"), ("label", False)):
            path = tmp_path / "pairs" / side / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(changed).save(path)
    return tmp_path / "pairs"


def test_each_pair_has_a_mask_and_a_sheet(model: Model, folder: Path, tmp_path: Path) -> None:
    done = predict_files(model, find_pictures([folder]), tmp_path / "out")
    assert sorted(path.relative_to(folder).as_posix() for path in done.written) == ["A/city/p1.png", "A/p0.png"]
    mask = np.array(Image.open(tmp_path / "out" / "masks" / "p0.png"))
    assert mask.shape == SIZE
    assert (mask[10:22, 18:38] == 1).all()
    assert (mask[:6] == 0).all()
    assert not np.array(Image.open(tmp_path / "out" / "masks" / "city" / "p1.png")).any()
    with Image.open(tmp_path / "out" / "overlays" / "p0.jpg") as sheet:
        assert sheet.width > 3 * 500
        assert sheet.height > 350
    assert done.places == [tmp_path / "out" / "masks"]


def test_splits_of_a_data_set_keep_their_names(model: Model, folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "val")
    (tmp_path / "set").mkdir()
    (tmp_path / "val").rename(tmp_path / "set" / "val")
    predict_files(model, find_pictures([tmp_path / "set"]), tmp_path / "out")
    assert (tmp_path / "out" / "masks" / "val" / "city" / "p1.png").is_file()


@pytest.mark.parametrize(("gone", "left"), [("A", "B"), ("B", "A")])
def test_a_picture_without_its_partner_is_told(
    gone: str, left: str, model: Model, folder: Path, tmp_path: Path
) -> None:
    (folder / gone / "p0.png").unlink()
    found = find_pictures([folder])
    with pytest.raises(DataError, match=rf"{left}/p0\.png: no picture of this name in {gone}/"):
        predict_files(model, found, tmp_path / "out")
    done = predict_files(model, found, tmp_path / "out", skip_bad=True)
    assert [path.name for path in done.written] == ["p1.png"]
    assert len(done.skipped) == 1


def test_pictures_of_two_sizes_are_told(model: Model, folder: Path, tmp_path: Path) -> None:
    picture(False, (32, 40)).save(folder / "B" / "p0.png")
    with pytest.raises(DataError, match=r"B/p0\.png: the second picture is 40 x 32, but .*A/p0\.png is 48 x 32 pixels"):
        predict_files(model, find_pictures([folder]), tmp_path / "out")


def test_files_that_are_no_pairs_are_told(model: Model, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give a folder that holds A/ and B/"):
        predict_files(model, find_pictures([folder / "A"]), tmp_path / "out")


def test_the_innermost_folder_named_a_or_b_decides() -> None:
    found = {Path(f"/x/A/{side}/p.png"): Path(f"A/{side}/p") for side in ("A", "B")}
    assert match_pairs(found) == {Path("/x/A/A/p.png"): (Path("/x/A/A/p.png"), Path("/x/A/B/p.png"), Path("A/p"))}


def test_evaluation_shows_before_after_truth_and_prediction(model: Model) -> None:
    pair = torch.stack([torch.from_numpy(np.array(picture(changed))) for changed in (False, True)])
    batch: Any = {"images": pair.permute(3, 0, 1, 2)[None], "masks": torch.zeros(1, *SIZE, dtype=torch.int16)}
    panel = _panel(batch, model.predict([pair.numpy()]), 0, model)
    assert panel is not None
    assert panel.width > 4 * 500


def test_the_command_predicts_pairs(
    load_command: Callable[..., int], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_command(folder, "--out", tmp_path / "o") == 0
    assert capsys.readouterr().out == f"2 files -> {tmp_path / 'o' / 'masks'}, and overlays beside\n"
    assert (tmp_path / "o" / "masks" / "p0.png").is_file()


@pytest.fixture
def load_command(model: Model, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The exit code of tools/predict.py with these arguments, of the model above in place of a trained one."""
    import importlib.util

    from vitdense import cli

    spec = importlib.util.spec_from_file_location("predict", Path(__file__).parents[2] / "tools" / "predict.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "load_model", lambda name, overrides: model)
    return lambda *given: cli.run(tool.main, ["runs/x/best", *map(str, given)])
