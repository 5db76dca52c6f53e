"""tools/zero_shot.py from pictures to numbers, files and messages, beside open_clip's own way to the same."""

import base64
import copy
import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.datasets import ImageFolder

from tests.tools.zero_shot_by_open_clip import by_open_clip
from vitdense.recipe import load_recipe
from vitdense.zero_shot.features import Features
from vitdense.zero_shot.probes import fit_linear_probe, nearest_logits

Tool = Callable[..., int]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def clip(publish_clip: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, open_clip's own model)."""
    folder = tmp_path_factory.mktemp("clip")
    return folder, publish_clip(folder)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two pictures for each of three classes."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog", "t_shirt"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(2):
            coarse = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
            coarse.resize((60, 44), Image.Resampling.BICUBIC).save(tmp_path / "pets" / name / f"{number}.png")
    return tmp_path / "pets"


def numbers(run_tool: Tool, capsys: Capture, *arguments: str | Path) -> dict[str, Any]:
    assert run_tool("zero_shot", *arguments, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(("data", "templates"), [("clothing", "imagenet"), ("cifar10_subset", "CIFAR10")])
def test_numbers_are_open_clips(
    run_tool: Tool, clip: Any, shared_data: Path, tmp_path: Path, capsys: Capture, data: str, templates: str
) -> None:
    """By the 80 templates of ImageNet, and by a set that brings its own class names."""
    folder, theirs = clip
    sets = shared_data / "clip_prompts" / "prompts.json"
    own = open_clip.OPENAI_IMAGENET_TEMPLATES
    given = templates if templates == "imagenet" else f"{sets}:{templates}"
    names = None
    if templates != "imagenet":
        described = json.loads(sets.read_text())[templates]
        own, names = [lambda c, t=t: t.replace("{}", c) for t in described["templates"]], described["classes"]
    root = shared_data / data / "test"
    probabilities, labels = by_open_clip(theirs, root, own, names)
    found = numbers(run_tool, capsys, folder, root, "--templates", given, "--out", tmp_path)
    order = probabilities.argsort(dim=1, descending=True)
    for rank in (1, 5):
        assert found[f"top{rank}"] == (order[:, :rank] == labels[:, None]).any(1).double().mean().item()
    assert 0 < found["top1"] < found["top5"] < 1
    assert found["pictures"] == len(labels) == sum(found["per_class"]["pictures"])
    sure, predicted = probabilities.max(1)
    kinds = found["per_class"]["classes"]
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open(encoding="utf-8")))
    assert [row["predicted"] for row in rows] == [kinds[place] for place in predicted]
    assert [row["true"] for row in rows] == [kinds[place] for place in labels]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], sure, atol=2e-5)


def pictures_of(page: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'base64,([^"]+)"', page)]


def test_the_page_shows_what_was_found(run_tool: Tool, clip: Any, pets: Path, tmp_path: Path, capsys: Capture) -> None:
    (pets / "cat").rename(pets / "<b>cat [red]")
    out = tmp_path / "out"
    arguments = (clip[0], pets, "--templates", "simple", "--each-template", "--out", out)
    assert run_tool("zero_shot", *arguments) == 0
    told = capsys.readouterr().out
    assert "<b>cat [red]" in told
    assert "top1 " in told
    assert "all of them" in told
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;cat [red]" in page
    assert "<b>" not in page
    assert "6 pictures of 3 classes, 3 to choose from" in page
    headings = ["Classes", "What was taken for what", "Calibration", "Templates", "Surest misses", "Surest hits"]
    assert re.findall("<h2>(.*?)</h2>", page) == headings
    shown = pictures_of(page)
    assert len(shown) == 2 + 6
    assert all(max(image.size) == 60 for image in shown[2:])
    rows = list(csv.DictReader((out / "predictions.csv").open(encoding="utf-8")))
    misses = sorted(
        (row for row in rows if row["true"] != row["predicted"]), key=lambda row: -float(row["probability"])
    )
    captions = re.findall(r"<figcaption[^>]*>(.*?)</figcaption>", page)
    assert len(misses) not in (0, 6)
    for caption, row in zip(captions, misses, strict=False):
        assert caption.endswith(
            f"taken for {row['predicted']} ({float(row['probability']):.0%})".replace("<b>", "&lt;b&gt;")
        )
    assert "taken for" not in captions[len(misses)]
    first = np.asarray(shown[2].convert("RGB"), float)
    saved = np.asarray(Image.open(misses[0]["path"]), float)
    assert np.abs(first - saved).mean() < 10  # a JPEG of this very picture


def test_each_template_and_probes(run_tool: Tool, clip: Any, pets: Path, capsys: Capture) -> None:
    found = numbers(run_tool, capsys, clip[0], pets, "--templates", "simple", "--each-template", "--probe", pets)
    assert len(found["templates"]) == 8
    assert found["templates"][-1] == {"template": "all of them", "top1": found["top1"], "top5": found["top5"]}
    with torch.no_grad():  # open_clip's tower before its projection
        visual = copy.deepcopy(clip[1].visual)
        visual.proj = None
        pictures = ImageFolder(str(pets), open_clip.image_transform((40, 40), False))
        features = Features(visual(torch.stack([image for image, _ in pictures])), torch.tensor(pictures.targets))
    linear = fit_linear_probe(features, 3)
    expected = {"knn": nearest_logits(features, features.vectors, 3), "linear_probe": linear.logits(features.vectors)}
    for name, logits in expected.items():
        assert found[f"{name}_top1"] == (logits.argmax(1) == features.labels).double().mean().item()
    assert found["linear_probe_penalty"] == linear.penalty


def test_own_names_and_more_of_them(run_tool: Tool, clip: Any, pets: Path, capsys: Capture) -> None:
    given = "zebra,T-Shirt=tee|shirt,dog,cat"
    found = numbers(run_tool, capsys, clip[0], pets, "--classes", given, "--templates", "a {}")
    assert found["per_class"]["classes"] == ["zebra", "T-Shirt", "dog", "cat"]
    assert found["per_class"]["pictures"] == [0, 2, 2, 2]
    assert found["notes"] == []
    found = numbers(run_tool, capsys, clip[0], pets, "--classes", "kitten,puppy,tee", "--templates", "a {}")
    assert "cat is 'kitten'" in found["notes"][0]


def test_a_name_of_10_000_words_is_cut_as_open_clip_cuts_it(
    run_tool: Tool, clip: Any, pets: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "names.txt").write_text(f"cat\ndog\nt_shirt={'long ' * 10_000}\n")
    found = numbers(run_tool, capsys, clip[0], pets, "--classes", tmp_path / "names.txt", "--templates", "simple")
    names = ["cat", "dog", ("long " * 10_000).strip()]
    probabilities, labels = by_open_clip(clip[1], pets, open_clip.SIMPLE_IMAGENET_TEMPLATES, names)
    assert found["top1"] == (probabilities.argmax(1) == labels).double().mean().item()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", ""], "no class names in the list"),
        (["--classes", "cat,dog,cat,t shirt"], "class names stand twice in the list: 'cat'"),
        (["--classes", "cat,dog=,t shirt"], "a class name in the list is empty"),
        (["--classes", "cat,d\udce9g,t shirt"], "a class name in the list is not UTF-8"),
        (["--classes", "cat,horse"], "'dog', 't_shirt' of them are not among the 2 class names"),
        (["--classes", "gone.txt"], "gone.txt: no such file"),
        (["--templates", "imagnet"], "did you mean 'imagenet'"),
        (["--templates", "a \udce9 {}"], "a template of prompts 'given' is not UTF-8"),
        (["--probe", "gone"], "gone: no such folder or table"),
        (["--segment"], "--segment needs --out FOLDER"),
        (["--segment", "--out", "x"], "no class names in --classes"),
        (["--set", "head.dim=3"], "a published model has no recipe: head can't be set"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    run_tool: Tool, clip: Any, pets: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    assert run_tool("zero_shot", clip[0], pets, *arguments) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert message in told.err
    assert len(told.err.splitlines()) == 1
    assert not told.out


@pytest.mark.parametrize("kind", ["names", "templates"])
def test_files_that_are_not_utf_8_are_named(
    run_tool: Tool, clip: Any, pets: Path, tmp_path: Path, capsys: Capture, kind: str
) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 {}\n")
    option = "--classes" if kind == "names" else "--templates"
    assert run_tool("zero_shot", clip[0], pets, option, tmp_path / "latin.txt") == 2
    assert "latin.txt: can't be read" in capsys.readouterr().err


def test_missing_pictures_stop_or_are_named(
    run_tool: Tool, clip: Any, pets: Path, tmp_path: Path, capsys: Capture
) -> None:
    rows = "path,label\npets/cat/0.png,cat\npets/gone.png,dog\npets/dog/0.png,dog\n"
    (tmp_path / "list.csv").write_text(rows)
    assert run_tool("zero_shot", clip[0], tmp_path / "list.csv") == 2
    assert "gone.png: no such file" in capsys.readouterr().err
    skipping = (clip[0], tmp_path / "list.csv", "--on-bad-picture", "skip", "--templates", "plain")
    found = numbers(run_tool, capsys, *skipping)
    assert found["pictures"] == 2
    assert len(found["notes"]) == 1
    assert "gone.png: no such file" in found["notes"][0]
    assert run_tool("zero_shot", *skipping) == 0
    assert "skipped: " in capsys.readouterr().err


def test_pictures_and_words_are_read_before_the_model(run_tool: Tool, pets: Path, capsys: Capture) -> None:
    assert run_tool("zero_shot", "no/such/model", pets, "--classes", "horse") == 2
    assert "not among the 1 class names" in capsys.readouterr().err
    assert run_tool("zero_shot", "no/such/model", pets) == 2
    assert "no/such/model" in capsys.readouterr().err


def test_towers_of_different_widths_are_told(
    run_tool: Tool, clip: Any, pets: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/open_clip_config.json").write_bytes((clip[0] / "open_clip_config.json").read_bytes())
    state = load_file(clip[0] / "open_clip_model.safetensors")
    state["text_projection"] = torch.randn(32, 20)
    save_file(state, tmp_path / "bad/open_clip_model.safetensors")
    assert run_tool("zero_shot", tmp_path / "bad", pets) == 2
    told = capsys.readouterr().err
    assert "text_proj.weight" in told
    assert "20" in told


def test_masks_of_own_classes(run_tool: Tool, clip: Any, pets: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    arguments = (clip[0], pets / "cat", "--segment", "--classes", "cat,sky,sand", "--templates", "simple")
    assert run_tool("zero_shot", *arguments, "--out", out) == 0
    assert "2 files -> " in capsys.readouterr().out
    for name in ("0", "1"):
        mask = np.asarray(Image.open(out / "masks" / f"{name}.png"))
        assert mask.shape == (44, 60)
        assert set(np.unique(mask)) <= {0, 1, 2}
        assert (out / "overlays" / f"{name}.jpg").exists()
    whole = numbers(run_tool, capsys, *arguments, "--set", "inference.mode=whole", "--out", tmp_path / "whole")
    assert whole["written"] == 2
    other = np.asarray(Image.open(tmp_path / "whole/masks/0.png"))
    assert (other != np.asarray(Image.open(out / "masks/0.png"))).any()


TASKS = """
backbone: {name: vit_nano_patch8, depth: 1}
adapter: {name: simple_pyramid, channels: 16}
heads:
  semantic: {name: linear, metric: {name: miou}}
  captions: {name: clip, dim: 16, text: {name: clip_text_nano, depth: 1, context: 16}, metric: {name: retrieval}}
data: {name: shapes_tasks, labels: [masks, captions], size: 32, batch_size: 4, train_size: 4, val_size: 2, workers: 0}
schedule: {steps: 1}
engine: {run_dir: RUN, accelerator: cpu, precision: 32-true, pictures: 0}
"""


def test_a_checkpoint_whose_head_has_several_tasks(run_tool: Tool, pets: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "tasks.yaml").write_text(TASKS.replace("RUN", str(tmp_path / "run")))
    assert run_tool("train", tmp_path / "tasks.yaml") == 0
    capsys.readouterr()
    found = numbers(run_tool, capsys, tmp_path / "run/best", pets, "--templates", "plain")
    assert found["pictures"] == 6
    segmented = numbers(
        run_tool, capsys, tmp_path / "run/best", pets, "--segment", "--classes", "a,b", "--out", tmp_path / "out"
    )
    assert segmented["written"] == 6


CAPTIONS = """
backbone: {name: vit_nano_patch8, depth: 1, image_size: 16}
head: {name: clip, dim: 16, text: {name: clip_text_nano, depth: 1, context: 16}}
data: {name: caption_folder, root: ROOT, val_every: 3, size: 24, resize: squash, batch_size: 2, workers: 0}
metric: {name: retrieval}
schedule: {steps: 1}
engine: {run_dir: RUN, accelerator: cpu, precision: 32-true, pictures: 0}
zero_shot:
  pets: {data: {name: class_folder, root: PETS, size: 24, resize: squash, workers: 0}, templates: simple}
"""


def test_a_checkpoint_scores_as_its_run_did(run_tool: Tool, pets: Path, tmp_path: Path, capsys: Capture) -> None:
    """Pictures are prepared as the recipe says: at 24 pixels, squashed."""
    (tmp_path / "captions").mkdir()
    for number in range(3):
        Image.open(pets / "cat/0.png").save(tmp_path / f"captions/{number}.png")
        (tmp_path / f"captions/{number}.txt").write_text(f"number {number}")
    text = CAPTIONS.replace("ROOT", str(tmp_path / "captions"))
    (tmp_path / "run.yaml").write_text(text.replace("RUN", str(tmp_path / "run")).replace("PETS", str(pets)))
    assert run_tool("train", tmp_path / "run.yaml") == 0
    capsys.readouterr()
    assert run_tool("evaluate", tmp_path / "run/best", "--json") == 0
    evaluated = json.loads(capsys.readouterr().out)
    found = numbers(run_tool, capsys, tmp_path / "run/best", pets, "--templates", "simple")
    assert (found["top1"], found["top5"]) == (evaluated["pets_top1"], evaluated["pets_top5"])
    assert load_recipe(tmp_path / "run/recipe.yaml").zero_shot["pets"].data_name == "class_folder"
