"""Heads of several tasks in use: one look at a picture, each task what its head alone gives, each in its folder."""

import csv
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from heads import create_head
from heads.tasks import TaskConfig, Tasks, TasksConfig
from vitdense.build import create_backbone
from vitdense.contracts import HEADS, Batch, Detections, Embeddings, Segments
from vitdense.errors import UserError
from vitdense.inference import InferenceConfig, infer
from vitdense.model import Model
from vitdense.predicting import find_pictures, predict_files

MASKS: dict[str, Any] = {
    "name": "mask_transformer",
    "channels": 32,
    "pixel_channels": 32,
    "num_heads": 4,
    "mask_channels": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_queries": 40,
    "threshold": 0.0,
    "overlap_threshold": 0.0,
    "mask_threshold": 0.0,
}
DETR: dict[str, Any] = {
    "name": "detr",
    "channels": 16,
    "num_heads": 2,
    "mlp_channels": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_queries": 4,
    "dropout": 0.0,
}
CLIP: dict[str, Any] = {"name": "clip", "dim": 16, "text": {"name": "clip_text_nano", "context": 20}}
HEADS_OF: dict[str, dict[str, Any]] = {
    "semantic": {"name": "linear"},
    "metres": {"name": "linear_depth"},
    "things": DETR,
    "parts": MASKS,
    "regions": {**MASKS, "task": "semantic"},
    "kind": {"name": "classify"},
    "words": CLIP,
}
PALETTE = ((0, 0, 0), (200, 30, 30), (30, 200, 30))


def model_of(*tasks: str, **inference: Any) -> Model:
    torch.manual_seed(1)
    backbone = create_backbone("swin_nano")
    named = {task: HEADS.create(HEADS_OF[task]["name"], _options(task)) for task in tasks}
    config = TasksConfig(tasks={task: TaskConfig(head=head) for task, head in named.items()})
    head = config.for_classes(3).for_things((False, True, True)).build_for(backbone)
    with torch.no_grad():  # of a start near 0 nothing could be told apart
        for name, tensor in head.named_parameters():
            scale = 0.2 if tensor.ndim < 2 else 2 * tensor[0].numel() ** -0.5
            scale *= 4.0 if "class_predictor" in name and tensor.ndim == 2 else 1.0
            scale = 2.0 if "quer" in name and "proj" not in name else scale
            tensor.copy_(float("norm" in name and name.endswith("weight")) + scale * torch.randn_like(tensor))
    seen = InferenceConfig.model_validate(inference)
    names = ["ground", "cat", "dog"]
    return Model(
        backbone,
        head,
        classes=names,
        palette=PALETTE,
        category_ids=[7, 0, 90] if "kind" not in tasks else [],
        inference=seen,
    ).eval()


def _options(task: str) -> dict[str, Any]:
    return {key: value for key, value in HEADS_OF[task].items() if key != "name"}


def blocks() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A picture (53, 70, 3) of blocks of one colour each, so that masks have something to lie on."""
    colours = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.repeat(np.repeat(colours, 14, axis=0), 14, axis=1)[:53, :70]


def looks(model: Model) -> list[int]:
    """A list that grows with each pass through the trunk."""
    calls: list[int] = []
    embedding = next(module for name, module in model.named_modules() if name.endswith("patch_embed"))
    embedding.register_forward_hook(lambda *_: calls.append(1))
    return calls


def same(one: Any, other: Any) -> None:
    """Both within 1e-5, whatever they are."""
    if isinstance(one, Segments | Detections | Embeddings):
        assert type(one) is type(other)
        for name, value in vars(one).items():
            same(value, getattr(other, name))
    elif one is None:
        assert other is None
    else:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [{}, {"short_side": 40}, {"size": (48, 33)}])
def test_one_pass_gives_what_each_head_gives_alone(config: dict[str, Any]) -> None:
    model = model_of(*HEADS_OF, **config)
    picture = blocks()
    calls = looks(model)
    found = model.predict([picture])[0]
    assert len(calls) == 1
    assert list(found) == list(HEADS_OF)
    for task in HEADS_OF:
        same(found[task], model.alone(task).predict([picture])[0])
    assert len(found["parts"]) > 0
    assert len(found["things"]) == 4
    assert len(found["semantic"].unique()) > 1
    assert found["words"].texts.shape == (0, 16)


def test_views_are_looked_at_by_each_head_for_itself() -> None:
    model = model_of("semantic", "metres", scales=(0.75, 1.0), flip=True)
    picture = blocks()
    found = model.predict([picture])[0]
    for task in ("semantic", "metres"):
        same(found[task], model.alone(task).predict([picture])[0])


def test_padding_is_cut_off_for_each_head() -> None:
    model = model_of("semantic", "things")
    sizes = [(40, 64), (64, 50)]
    batch: Batch = {"images": torch.rand(2, 3, 64, 64), "extents": torch.tensor(sizes), "sizes": sizes}
    found = infer(model, batch, InferenceConfig())
    for task in ("semantic", "things"):
        for each, alone in zip(found, infer(model.alone(task), batch, InferenceConfig()), strict=True):
            same(each[task], alone)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two pictures, one of them in a folder."""
    generator = np.random.default_rng(1)
    (tmp_path / "given/more").mkdir(parents=True)
    for name, size in (("a.png", (40, 56)), ("more/b.png", (48, 33))):
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / "given" / name)
    return tmp_path / "given"


def test_each_task_has_its_folder(pictures: Path, tmp_path: Path) -> None:
    model, out = model_of(*HEADS_OF), tmp_path / "out"
    calls = looks(model)
    done = predict_files(model, find_pictures([pictures]), out)
    assert len(calls) == len(done.written) == 2
    kinds = {
        "semantic": "masks",
        "metres": "depth",
        "things": "predictions.json",
        "parts": "panoptic.json",
        "regions": "masks",
        "kind": "classes.csv",
    }
    assert done.places == [out / task / kind for task, kind in kinds.items()]
    assert all(place.exists() for place in done.places)
    assert sorted(path.name for path in out.iterdir()) == sorted(kinds)
    (told,) = done.silent
    assert told.startswith("task words compares pictures with texts")
    for task in kinds:
        assert {path.name for path in (out / task / "overlays").rglob("*.jpg")} == {"a.jpg", "b.jpg"}

    found = model.predict([pictures / "more/b.png"])[0]
    for task in ("semantic", "regions"):
        stored = np.asarray(Image.open(out / task / "masks/more/b.png"))
        assert (stored == found[task].numpy()).all()
    millimetres = np.asarray(Image.open(out / "metres/depth/more/b.png")).astype(float)
    assert np.abs(millimetres / 1000 - found["metres"].numpy()).max() < 6e-4
    things = json.loads((out / "things/predictions.json").read_text())
    own = [each["category_id"] for each in things if each["image_id"] == "more/b"]
    assert own == found["things"].category_ids.tolist()
    segments = json.loads((out / "parts/panoptic.json").read_text())
    assert [each["isthing"] for each in segments["categories"]] == [0, 1, 1]
    assert [each["file_name"] for each in segments["annotations"]] == ["a.png", "more/b.png"]
    with (out / "kind/classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["class1"] == model.classes[int(found["kind"].argmax())]


def test_frames_of_a_film_are_looked_at_once(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from vitdense.videos import Film, read_frames

    with Film(tmp_path / "walk.mp4", Fraction(10)) as film:
        for number in range(3):
            film.add(np.full((40, 48, 3), 60 * number, np.uint8))
    model, out = model_of("semantic", "metres", "kind"), tmp_path / "out"
    calls = looks(model)
    predict_files(model, find_pictures([tmp_path / "walk.mp4"]), out)
    assert len(calls) == 3
    widths = {"semantic": 48, "metres": 96, "kind": 48}
    for task, width in widths.items():
        frames = list(read_frames(out / task / "overlays/walk.mp4"))
        assert [frame.shape for frame in frames] == [(40, width, 3)] * 3
    assert len(list((out / "semantic/masks/walk").iterdir())) == len(list((out / "metres/depth/walk").iterdir())) == 3
    with (out / "kind/classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["start_frame"], row["end_frame"]) for row in rows] == [("0", "3"), ("0", "1"), ("1", "2"), ("2", "3")]


def test_heads_that_compare_have_nothing_to_write(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no head has results to write.*tools/zero_shot"):
        predict_files(model_of("words"), find_pictures([pictures]), tmp_path / "out")
    backbone = create_backbone("swin_nano")
    lone = Model(backbone, create_head("clip", backbone, **{key: CLIP[key] for key in ("dim", "text")}))
    with pytest.raises(UserError, match=r"Clip: .*compares pictures with texts"):
        predict_files(lone, find_pictures([pictures]), tmp_path / "out")
    (found,) = lone.predict([pictures / "a.png"])
    assert found.image.norm().item() == pytest.approx(1, abs=1e-5)
    assert found.texts.shape == (0, 16)


RECIPE = """
backbone: {name: swin_nano, depths: [1, 1, 1, 1], embed_dim: 8, num_heads: [1, 1, 2, 2]}
heads:
  semantic: {name: linear, metric: {name: miou}}
  metres: {name: linear_depth, metric: {name: depth}}
data: {name: shapes_tasks, labels: [masks, depth], size: 32, batch_size: 2, workers: 0}
schedule: {steps: 1}
engine: {run_dir: ROOT/run, accelerator: cpu, precision: 32-true, pictures: 0}
"""


def test_a_run_of_several_heads_is_predicted_by_its_checkpoint(pictures: Path, tmp_path: Path) -> None:
    from vitdense.build import build_model
    from vitdense.checkpoint import RECIPE as RECIPE_FILE
    from vitdense.checkpoint import WEIGHTS, save, write_tensors, write_text
    from vitdense.loading import load_model
    from vitdense.recipe import load_recipe

    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.replace("ROOT", str(tmp_path)))
    recipe = load_recipe(file)
    samples = recipe.data.build("val")
    model = build_model(recipe, samples.classes, samples.palette)
    writers = {RECIPE_FILE: write_text(file.read_text()), WEIGHTS: write_tensors(model.state_dict())}
    folder = save(tmp_path / "run", 1, writers, {"classes": samples.classes, "palette": samples.palette})
    done = predict_files(load_model(folder), find_pictures([pictures]), tmp_path / "out")
    assert done.places == [tmp_path / "out/semantic/masks", tmp_path / "out/metres/depth"]
    assert isinstance(model.head, Tasks)
    assert (tmp_path / "out/metres/depth/more/b.png").exists()
