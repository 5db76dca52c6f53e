"""Things and stuff through the commands: files that score as the pictures do, that are data again, and instances."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as runs

from heads import create_head
from vitdense import cli
from vitdense.build import create_backbone
from vitdense.contracts import Predictions, Segments
from vitdense.data.boxes.coco_panoptic import read_panoptic
from vitdense.data.shapes_panoptic import ShapesPanopticConfig
from vitdense.inference import InferenceConfig
from vitdense.loading import load_model
from vitdense.model import Model
from vitdense.predicting import find_pictures, predict_files, read_image_ids

Tool = Callable[..., int]
Ints = NDArray[np.int64]
NUMBERS = (5, 0, 17, 90, 2, 31)
"""The category id of each class of the shapes, with gaps and a 0."""
RECIPE = """
backbone: {name: swin_nano, depths: [1, 1, 1, 1], embed_dim: 8, num_heads: [1, 1, 2, 2]}
head: {name: mask_transformer, channels: 32, pixel_channels: 32, num_heads: 2, mask_channels: 8, mlp_channels: 16,
       encoder_mlp_channels: 16, encoder_layers: 1, decoder_layers: 1, num_queries: 6, points: {count: 32},
       threshold: 0.0, overlap_threshold: 0.0, mask_threshold: 0.0}
data: {name: coco_panoptic, root: ROOT/set, batch_size: 2, workers: 0}
metric: {name: panoptic}
schedule: {steps: 1}
engine: {run_dir: ROOT/run, accelerator: cpu, precision: 32-true, log_every: 1, pictures: 0}
"""


def write_truth(folder: Path, split: str, count: int) -> list[tuple[Ints, list[int]]]:
    """Pictures of shapes in COCO's panoptic form, with ids of three bytes -> the ids of each, and their classes."""
    samples = ShapesPanopticConfig(size=48).build("val")
    maps = folder / f"annotations/panoptic_{split}"
    for place in (maps, folder / f"images/{split}"):
        place.mkdir(parents=True)
    images, annotations, known = [], [], []
    for index in range(count):
        sample, number, name = samples[0, index], 100 + 7 * index, f"{split}_{index}"
        ids, segments = np.zeros((48, 48), np.int64), []
        masks, labels = sample["target"]["masks"].numpy(), sample["target"]["labels"].tolist()
        for place_, (mask, label) in enumerate(zip(masks, labels, strict=True)):
            own = 1 + place_ * 70_001
            ids[mask] = own
            rows, columns = mask.nonzero()
            x, y = int(columns.min()), int(rows.min())
            box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
            kept = {"id": own, "category_id": NUMBERS[label], "area": int(mask.sum()), "bbox": box, "iscrowd": 0}
            segments.append(kept)
        Image.fromarray(sample["image"].permute(1, 2, 0).numpy()).save(folder / f"images/{split}/{name}.png")
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
        Image.fromarray(colours.astype(np.uint8)).save(maps / f"{name}.png")
        images.append({"id": number, "file_name": f"{name}.png", "width": 48, "height": 48})
        annotations.append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
        known.append((ids, labels))
    categories = [
        {"id": number, "name": name, "isthing": int(thing)}
        for number, name, thing in zip(NUMBERS, samples.classes, samples.things, strict=True)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"annotations/panoptic_{split}.json").write_text(json.dumps(content))
    return known


class Knowing(Model):
    """A stand-in that knows what to find in each picture, in turn."""

    answers: list[Segments]

    def predict(self, pictures: Sequence[object], inference: InferenceConfig | None = None) -> Predictions:
        return [self.answers.pop(0).named(self.category_ids)]


def guess(ids: Ints, labels: list[int]) -> Segments:
    """Nearly the truth: moved by two pixels, nothing said at the left, and the last thing of another class."""
    found = torch.zeros(ids.shape, dtype=torch.int32)
    for index, own in enumerate(sorted(set(ids.ravel().tolist()) - {0})):
        found[torch.from_numpy(ids == own)] = index + 1
    wrong = [*labels[:-1], 1 + labels[-1] % 5]
    moved = found.roll(2, 1)
    moved[:, :3] = 0
    return Segments(moved, torch.tensor(wrong), torch.ones(len(wrong)))


def quality(known: list[tuple[Ints, list[int]]], found: list[Segments]) -> float:
    """PQ by its definition, pair by pair (https://arxiv.org/abs/1801.00868, equation 1)."""
    overlap, counts = np.zeros(6), np.zeros((3, 6))  # matched, made up, missed
    for (ids, labels), segments in zip(known, found, strict=True):
        guesses = segments.ids.numpy()
        truths = [ids == own for own in sorted(set(ids.ravel().tolist()) - {0})]
        masks = [guesses == index + 1 for index in range(len(segments))]
        pairs = [
            (one, other, float((truths[one] & masks[other]).sum() / ((truths[one] | masks[other]) & (ids > 0)).sum()))
            for one in range(len(truths))
            for other in range(len(masks))
            if labels[one] == int(segments.labels[other])
        ]
        matched = [pair for pair in pairs if pair[2] > 0.5]
        for one, _, shared in matched:
            overlap[labels[one]] += shared
            counts[0, labels[one]] += 1
        for other, label in enumerate(segments.labels.tolist()):
            counts[1, label] += bool(masks[other].any()) and other not in {pair[1] for pair in matched}
        for one, label in enumerate(labels):
            counts[2, label] += one not in {pair[0] for pair in matched}
    seen = counts.sum(0) > 0
    return float((overlap / np.maximum(counts[0] + counts[1:].sum(0) / 2, 0.5))[seen].mean())


def test_files_score_as_what_was_found(run_tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = write_truth(tmp_path / "set", "val", 4)
    backbone = create_backbone("swin_nano")
    head = create_head("mask_transformer", backbone, num_classes=6, stuff=(0,))
    palette = ((0, 0, 0), (200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (9, 9, 9))
    model = Knowing(backbone, head, classes=list("abcdef"), palette=palette, category_ids=NUMBERS)
    answers = [guess(ids, labels) for ids, labels in known]
    model.answers = list(answers)
    truth, out = tmp_path / "set/annotations/panoptic_val.json", tmp_path / "out"
    pictures = find_pictures([tmp_path / "set/images/val"])
    done = predict_files(model, pictures, out, image_ids=read_image_ids(truth))
    assert done.places == [out / "panoptic.json"]

    arguments = (truth, truth.with_suffix(""), out / "panoptic.json", out / "panoptic")
    assert run_tool("score", "panoptic", *arguments, "--json") == 0
    scored = json.loads(capsys.readouterr().out)
    expected = quality(known, answers)
    assert scored["PQ"] == pytest.approx(expected, abs=1e-9)
    assert 0.2 < expected < 0.95
    content = json.loads((out / "panoptic.json").read_text())
    things = [(each["id"], each["isthing"]) for each in content["categories"]]
    assert things == [(number, int(number != 5)) for number in NUMBERS]
    assert content["categories"][1]["color"] == [200, 30, 30]
    for answer, record in zip(answers, content["annotations"], strict=True):
        read_as_panopticapi_does(out / "panoptic", record, answer)
        assert Image.open(out / "overlays" / record["file_name"].replace(".png", ".jpg")).width > 2 * 48


def read_as_panopticapi_does(folder: Path, record: dict[str, Any], answer: Segments) -> None:
    """Its pq_compute: red + 256 green + 65536 blue of an RGB picture; every id of the map but 0 is in segments_info,
    and every id there is in the map. What it reads is `answer`."""
    colours = np.array(Image.open(folder / record["file_name"]), dtype=np.uint32)
    assert colours.shape == (48, 48, 3)
    ids = colours[..., 0] + 256 * colours[..., 1] + 256 * 256 * colours[..., 2]
    segments = {each["id"]: each for each in record["segments_info"]}
    labels, counts = np.unique(ids, return_counts=True)
    assert set(labels.tolist()) - {0} == set(segments)
    classes = answer.classes().numpy()
    for number, count in zip(labels.tolist(), counts.tolist(), strict=True):
        own = ids == number
        assert len(np.unique(answer.ids.numpy()[own])) == 1
        if number == 0:
            assert (classes[own] == -1).all()
            continue
        assert segments[number]["area"] == count
        assert {NUMBERS[label] for label in classes[own].tolist()} == {segments[number]["category_id"]}


@pytest.fixture(scope="module")
def root(load_tool: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with such files in `set`, and a run of one step on them in `run`."""
    folder = tmp_path_factory.mktemp("panoptic")
    write_truth(folder / "set", "train", 2)
    write_truth(folder / "set", "val", 3)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("ROOT", str(folder)))
    assert cli.run(load_tool("train").main, [str(recipe)]) == 0
    return folder


def test_predictions_are_data_again(run_tool: Tool, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out, truth = root / "run/best", root / "out", root / "set/annotations/panoptic_val.json"
    assert run_tool("predict", run, root / "set/images/val", "--out", out, "--ids-from", truth) == 0
    shown = capsys.readouterr().out
    assert f"3 files -> {out / 'panoptic.json'}" in shown
    found = read_panoptic(out / "panoptic.json", root / "set/images/val", out / "panoptic")
    assert (found.records.faults, found.records.category_ids) == ((), tuple(sorted(NUMBERS)))
    assert found.things == tuple(number != 5 for number in sorted(NUMBERS))
    sure = load_model(run)
    assert sum(len(record.labels) for record in found.records.records) >= 3
    for record in found.records.records:
        segments = sure.predict([record.image])[0]
        seen = sorted(
            label for index, label in enumerate(segments.labels.tolist()) if (segments.ids == index + 1).any()
        )
        assert sorted(record.labels.tolist()) == seen

    # Judged by itself, by the files and by the metric of training.
    arguments = (out / "panoptic.json", out / "panoptic")
    assert run_tool("score", "panoptic", *arguments, *arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out)["PQ"] == 1
    assert run_tool("score", "panoptic", truth, truth.with_suffix(""), *arguments, "--json") == 0
    scored = json.loads(capsys.readouterr().out)
    for more, expected in (((), scored["PQ"]), (("val_annotations", "val_maps"), 1)):
        places = [f"data.{name}=../out/panoptic{'.json' if 'ann' in name else ''}" for name in more]
        assert run_tool("evaluate", run, *places, "--json") == 0
        assert json.loads(capsys.readouterr().out)["PQ"] == pytest.approx(expected, abs=1e-9)


def test_instances_are_results_with_masks(run_tool: Tool, root: Path, tmp_path: Path) -> None:
    run, out, truth = root / "run/best", tmp_path / "out", root / "set/annotations/panoptic_val.json"
    pictures = root / "set/images/val"
    asked = ("--set", "head.task=instance", "--ids-from", truth)
    assert run_tool("predict", run, pictures, "--out", out, *asked) == 0
    results = json.loads((out / "predictions.json").read_text())
    assert {each["image_id"] for each in results} == {100, 107, 114}
    assert {each["category_id"] for each in results} <= set(NUMBERS) - {5}  # 5 is stuff
    model = load_model(run, ["head.task=instance"])
    for index, number in enumerate((100, 107, 114)):
        found = model.predict([pictures / f"val_{index}.png"])[0]
        own = [each for each in results if each["image_id"] == number]
        assert len(own) == len(found) > 0
        stored = np.stack([runs.decode(each["segmentation"]) for each in own])
        assert found.masks is not None
        assert (stored.astype(bool) == found.masks.numpy()).all()
        assert [each["category_id"] for each in own] == found.category_ids.tolist()
        assert [each["score"] for each in own] == pytest.approx(found.scores.tolist(), abs=1e-7)
    assert (out / "overlays/val_2.jpg").exists()


def test_films_have_a_map_for_each_frame(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from fractions import Fraction

    from vitdense.videos import Film, read_frames

    with Film(tmp_path / "walk.mp4", Fraction(10)) as film:
        for number in range(3):
            film.add(np.full((40, 48, 3), 60 * number, np.uint8))
    backbone = create_backbone("vit_nano_patch8")
    head = create_head("eomt", backbone, num_classes=2, num_queries=3, blocks=1, stuff=(0,))
    model = Knowing(backbone, head, classes=["ground", "ball"], palette=((90, 90, 90), (250, 0, 0)))
    ids = torch.ones(40, 48, dtype=torch.int32)
    ids[10:20, 10:20] = 2
    model.answers = [Segments(ids, torch.tensor([0, 1]), torch.ones(2)) for _ in range(3)]
    predict_files(model, find_pictures([tmp_path / "walk.mp4"]), tmp_path / "out")
    content = json.loads((tmp_path / "out/panoptic.json").read_text())
    assert [each["file_name"] for each in content["annotations"]] == [f"walk/{n:06d}.png" for n in range(3)]
    assert all((tmp_path / "out/panoptic" / each["file_name"]).exists() for each in content["annotations"])
    (segments,) = {json.dumps(each["segments_info"]) for each in content["annotations"]}
    assert [(each["category_id"], each["area"]) for each in json.loads(segments)] == [(0, 1820), (1, 100)]
    assert [frame.shape for frame in read_frames(tmp_path / "out/overlays/walk.mp4")] == [(40, 48, 3)] * 3
