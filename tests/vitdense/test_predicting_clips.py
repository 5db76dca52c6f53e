"""Videos through models of clips and models that name classes: every frame is there, tables and overlays fit it."""

import csv
from fractions import Fraction
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
from vitdense.build import create_backbone
from vitdense.contracts import Level
from vitdense.engine.evaluation import _panel
from vitdense.errors import DataError, UserError
from vitdense.inference import InferenceConfig
from vitdense.model import Model
from vitdense.predicting import find_pictures, predict_files
from vitdense.predicting_clips import predict_frames
from vitdense.videos import Film, read_frames, read_parts

PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0))
pytest.importorskip("av")


class Brightness(MapsAlone):
    """A stand-in for clips whose map is the brightness of each frame's cells; it remembers how long clips were."""

    levels = (Level(1, 4, 1),)
    embed_dim = 1

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []

    def forward(self, images: Tensor) -> list[Tensor]:
        self.lengths.append(images.shape[2])
        bright = images.mean(1, keepdim=True)
        height, width = images.shape[-2:]
        return [F.avg_pool3d(F.pad(bright, (0, -width % 4, 0, -height % 4)), (1, 4, 4))]

    def embed(self, images: Tensor) -> Tensor:
        self.lengths.append(images.shape[2])
        return images.mean((1, 2, 3, 4))[:, None]


class ClipModel(Model):
    """Normalises nothing, whatever axes there are."""

    def normalise(self, images: Tensor) -> Tensor:
        return images if images.is_floating_point() else images.float() / 255


def clip_model(name: str, **inference: Any) -> Model:
    """Of three classes, dark, grey and bright: logits -(brightness - level)^2 up to what all have."""
    options: dict[str, Any] = {"norm": "none"} if name == "linear_3d" else {}
    head = create_head(name, Brightness(), num_classes=3, **options)
    levels = torch.tensor([0.0, 0.5, 1.0])
    with torch.no_grad():
        for parameter in head.parameters():
            value = 40 * levels if parameter.ndim > 1 else -20 * levels.square()
            parameter.copy_(value.reshape(-1, *parameter.shape[1:]))
    config = InferenceConfig.model_validate(inference)
    return ClipModel(
        head=head, backbone=Brightness(), classes=["dark", "grey", "bright"], palette=PALETTE, inference=config
    ).eval()


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Eleven frames: four dark, three grey, four bright."""
    with Film(tmp_path / "walk.mp4", Fraction(10)) as out:
        for grey in [20] * 4 + [128] * 3 + [240] * 4:
            out.add(np.full((48, 64, 3), grey, np.uint8))
    return tmp_path / "walk.mp4"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_video_is_named_clip_by_clip_and_as_a_whole(film: Path, tmp_path: Path) -> None:
    model = clip_model("classify", frames=2, frame_stride=2)
    done = predict_files(model, find_pictures([film]), tmp_path / "out")
    assert done.written == [film]
    found = rows(done.places[0])
    assert [(row["start_frame"], row["end_frame"], row["class1"]) for row in found[1:]] == [
        ("0", "4", "dark"),
        ("4", "8", "grey"),
        ("8", "11", "bright"),
    ]
    assert (found[0]["start_frame"], found[0]["end_frame"]) == ("0", "11")
    assert sum(float(found[0][f"score{place}"]) for place in (1, 2, 3)) == pytest.approx(1, abs=1e-3)
    frames = list(read_frames(tmp_path / "out" / "overlays" / "walk.mp4"))
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 11
    assert isinstance(model.backbone, Brightness)
    assert model.backbone.lengths == [2, 2, 2]


def test_a_video_that_is_one_clip_has_one_row(film: Path, tmp_path: Path) -> None:
    predict_files(clip_model("classify", frames=16), find_pictures([film]), tmp_path / "out")
    assert [(row["start_frame"], row["end_frame"]) for row in rows(tmp_path / "out" / "classes.csv")] == [("0", "11")]


def test_every_frame_of_a_video_has_its_mask(film: Path, tmp_path: Path) -> None:
    model = clip_model("linear_3d", frames=4)
    predict_files(model, find_pictures([film]), tmp_path / "out")
    masks = sorted((tmp_path / "out" / "masks" / "walk").iterdir())
    assert [path.name for path in masks] == [f"{number:06d}.png" for number in range(11)]
    assert [np.asarray(Image.open(path))[5, 5] for path in masks] == [0] * 4 + [1] * 3 + [2] * 4
    assert len(list(read_frames(tmp_path / "out" / "overlays" / "walk.mp4"))) == 11
    assert isinstance(model.backbone, Brightness)
    assert model.backbone.lengths == [4, 4, 4]


def test_a_video_shorter_than_a_clip_is_predicted_as_it_is(film: Path) -> None:
    model = clip_model("linear_3d", frames=32)
    found = [mask for _, mask in predict_frames(model, film)]
    assert [tuple(mask.shape) for mask in found] == [(48, 64)] * 11
    assert isinstance(model.backbone, Brightness)
    assert model.backbone.lengths == [11]


def test_pictures_and_videos_are_named_by_models_of_pictures(film: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (9, 9, 9)).save(tmp_path / "still.png")
    backbone = create_backbone("vit_nano_patch8")
    model = Model(backbone, create_head("classify", backbone, num_classes=7), classes=list("abcdefg")).eval()
    predict_files(model, find_pictures([tmp_path / "still.png", film]), tmp_path / "out")
    found = rows(tmp_path / "out" / "classes.csv")
    assert [Path(row["file"]).name for row in found] == ["still.png"] + ["walk.mp4"] * 12
    assert len([key for key in found[0] if key.startswith("class")]) == 5
    assert Image.open(tmp_path / "out" / "overlays" / "still.jpg").size == (40, 30)


def test_a_model_of_clips_says_what_it_needs(film: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "still.png")
    with pytest.raises(UserError, match=r"inference\.frames"):
        predict_files(clip_model("classify"), find_pictures([film]), tmp_path / "out")
    with pytest.raises(UserError, match="is a picture, and the model takes clips"):
        predict_files(clip_model("classify", frames=4), find_pictures([tmp_path / "still.png"]), tmp_path / "out")


def test_a_video_without_frames_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.mp4: the file is empty"):
        predict_files(clip_model("classify", frames=4), find_pictures([tmp_path / "empty.mp4"]), tmp_path / "out")
    done = predict_files(
        clip_model("linear_3d", frames=4), find_pictures([tmp_path / "empty.mp4"]), tmp_path / "out", skip_bad=True
    )
    assert len(done.skipped) == 1


def test_parts_hold_every_frame(film: Path) -> None:
    assert [len(part) for part in read_parts(film, 4)] == [4, 4, 3]
    assert [len(part) for part in read_parts(film, 11)] == [11]


def test_panels_show_the_middle_frame() -> None:
    model = clip_model("linear_3d", frames=4)
    images = torch.randint(0, 256, (1, 3, 5, 16, 24), dtype=torch.uint8)
    masks = torch.zeros(1, 5, 16, 24, dtype=torch.int16)
    for given in (images, images[:, :1].float() / 255):
        panel = _panel({"images": given, "masks": masks, "sizes": [(16, 24)]}, [masks[0]], 0, model)
        assert panel is not None
        assert panel.width > 48
    assert _panel({"images": images, "sizes": [(16, 24)]}, [torch.zeros(3)], 0, clip_model("classify")) is None
