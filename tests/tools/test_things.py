"""Detection through the commands: train, evaluate, predict, score and export agree, and numbers of classes survive."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitdense.data.shapes import ShapesBoxesConfig
from vitdense.loading import load_model

Tool = Callable[..., int]
RECIPE = """
backbone: {name: swin_nano, depths: [1, 1, 1, 1], embed_dim: 8, num_heads: [1, 1, 2, 2]}
head: {name: detr, level: 1, channels: 16, num_heads: 2, mlp_channels: 16, encoder_layers: 1, decoder_layers: 2,
       num_queries: 6, dropout: 0.0}
data: {name: coco, root: ROOT/set, batch_size: 2, workers: 0}
metric: {name: coco}
schedule: {steps: 2}
engine: {run_dir: ROOT/run, accelerator: cpu, precision: 32-true, log_every: 1, pictures: 2}
"""
NUMBERS = {0: 5, 1: 0, 2: 17, 3: 90, 4: 2}  # class of the shapes -> category id, with gaps and a 0


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Six pictures of shapes in COCO's format, and a recipe that trains on them."""
    for split in ("train", "val"):
        samples = ShapesBoxesConfig(size=48).build(split)
        folder = tmp_path / "set" / "images" / split
        folder.mkdir(parents=True)
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for index in range(6):
            sample = samples[0, index]
            name, number = f"{split}_{index}.png", 100 + 7 * index
            Image.fromarray(sample["image"].permute(1, 2, 0).numpy()).save(folder / name)
            images.append({"id": number, "file_name": name, "width": 48, "height": 48})
            target = sample["target"]
            for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
                x0, y0, x1, y1 = box
                corner = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
                known = {"id": len(annotations) + 1, "image_id": number, "category_id": NUMBERS[label]}
                annotations.append(known | corner)
        categories = [{"id": id_, "name": samples.classes[label]} for label, id_ in NUMBERS.items()]
        file = tmp_path / "set" / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    path = tmp_path / "things.yaml"
    path.write_text(RECIPE.replace("ROOT", str(tmp_path)))
    return path


def test_what_is_predicted_scores_as_evaluation_says(
    run_tool: Tool, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("train", recipe) == 0
    run, out, truth = tmp_path / "run", tmp_path / "out", tmp_path / "set/annotations/instances_val.json"
    assert (run / "samples" / "step-2.png").exists()
    assert load_model(run / "best").category_ids == (0, 2, 5, 17, 90)
    capsys.readouterr()
    assert run_tool("evaluate", run / "best", "--json") == 0
    evaluated = json.loads(capsys.readouterr().out)

    pictures = tmp_path / "set/images/val"
    assert run_tool("predict", run / "best", pictures, "--out", out, "--ids-from", truth) == 0
    assert "predictions.json" in capsys.readouterr().out
    results = json.loads((out / "predictions.json").read_text())
    assert {result["image_id"] for result in results} == {100 + 7 * index for index in range(6)}
    assert {result["category_id"] for result in results} <= set(NUMBERS.values())
    assert len(results) == 6 * 6
    assert sorted(path.name for path in (out / "overlays").iterdir()) == [f"val_{i}.jpg" for i in range(6)]

    assert run_tool("score", "boxes", truth, out / "predictions.json", "--json") == 0
    scored = json.loads(capsys.readouterr().out)
    for name in ("AP", "AP50", "AR100"):
        assert scored[name] == pytest.approx(evaluated[name], abs=1e-9)


def test_pictures_without_numbers_are_named_by_their_files(run_tool: Tool, recipe: Path, tmp_path: Path) -> None:
    assert run_tool("train", recipe) == 0
    out, pictures = tmp_path / "out", tmp_path / "set/images"
    assert run_tool("predict", tmp_path / "run/best", pictures, "--out", out) == 0
    results = json.loads((out / "predictions.json").read_text())
    assert {"train/train_0", "val/val_5"} <= {result["image_id"] for result in results}
    assert (out / "overlays/train/train_3.jpg").exists()
    stray = tmp_path / "stray.png"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(stray)
    truth = tmp_path / "set/annotations/instances_val.json"
    assert run_tool("predict", tmp_path / "run/best", stray, "--out", out, "--ids-from", truth) == 2
    assert run_tool("predict", tmp_path / "run/best", stray, "--out", out, "--ids-from", recipe) == 2


@pytest.mark.parametrize("to", ["onnx", "torch_export"])
def test_an_exported_detector_gives_boxes_in_pixels(run_tool: Tool, recipe: Path, tmp_path: Path, to: str) -> None:
    # Swin's own export is tested with the backbones, and takes its time.
    text = re.sub("backbone: .*", "backbone: {name: vit_nano_patch8, depth: 1}", recipe.read_text())
    recipe.write_text(text.replace("level: 1", "level: 0"))
    assert run_tool("train", recipe) == 0
    file = tmp_path / f"model.{to}"
    arguments = ["--to", to, "--out", file, "--size", "256", "288"]
    assert run_tool("export", tmp_path / "run/best", *arguments) == 0
    model, images = load_model(tmp_path / "run/best"), torch.rand(1, 3, 256, 300)
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        assert [each.name for each in session.get_outputs()] == ["boxes", "scores", "labels"]
        boxes = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    else:
        boxes = torch.export.load(file).module()(images)["boxes"]
    picture = (images[0].permute(1, 2, 0) * 255).round().byte()
    found = model.predict([picture.numpy()])[0]
    clipped = torch.minimum(boxes[0].clamp_min(0), torch.tensor([300.0, 256.0, 300.0, 256.0]))
    assert torch.allclose(clipped, found.boxes, atol=1.0)
