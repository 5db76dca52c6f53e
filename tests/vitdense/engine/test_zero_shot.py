"""Zero-shot accuracy while a run goes on: the recipe's section, its numbers, and what is told before the first step."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vitdense import create_backbone
from vitdense.contracts import DATA, HEADS, DataConfig, Sample, Samples, Split
from vitdense.engine import fit
from vitdense.engine.zero_shot import check_zero_shot, evaluate_zero_shot
from vitdense.errors import DataError, RecipeError, UserError
from vitdense.loading import load_model
from vitdense.model import Model
from vitdense.recipe import Recipe, load_recipe

Records = Callable[[Path], list[dict[str, Any]]]
TEXT = """
backbone: {name: vit_nano_patch8, depth: 1, image_size: 16}
head: {name: clip, dim: 16, text: {name: clip_text_nano, depth: 1, context: 16}}
data: {name: shapes_captions, size: 16, batch_size: 4, train_size: 8, val_size: 3, workers: 0}
metric: {name: retrieval}
schedule: {steps: 2}
engine: {run_dir: RUN, log_every: 1, eval_every: 1, accelerator: cpu, precision: 32-true, pictures: 0}
zero_shot:
  kinds:
    data: {name: shapes_kinds, size: 16, val_size: 21, eval_batch_size: 4, workers: 0}
    templates: simple
  colours: {data: {name: shapes_colours, size: 16, val_size: 10, workers: 0}}
"""


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Recipe]:
    def write(*changes: tuple[str, str]) -> Recipe:
        text = TEXT.replace("RUN", str(tmp_path / "run"))
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "recipe.yaml").write_text(text)
        return load_recipe(tmp_path / "recipe.yaml")

    return write


@torch.no_grad()
def by_hand(model: Model, recipe: Recipe, name: str, rank: int) -> float:
    """Each picture alone beside the mean of each class's prompts."""
    config = recipe.zero_shot[name]
    samples = config.data.build("val")
    right = 0
    rows = []
    for own in samples.classes:
        texts = [template.replace("{}", own) for template in config.prompts().templates]
        mean = torch.stack([model.encode_text([text])[0] for text in texts]).mean(0)
        rows.append(mean / mean.norm())
    for index in range(len(samples)):
        sample = samples[0, index]
        scores = torch.stack(rows) @ model.encode_image(sample["image"][None])[0]
        right += sample["label"] in scores.topk(min(rank, len(rows))).indices.tolist()
    return right / len(samples)


def test_each_evaluation_of_a_run_scores_the_recipes_sets(
    make: Callable[..., Recipe], tmp_path: Path, records: Records
) -> None:
    recipe = make()
    result = fit(recipe)
    names = ["kinds_top1", "kinds_top5", "colours_top1", "colours_top5"]
    assert next(iter(result.metrics)) == "image_to_text_R@1"  # what `best` follows stays the metric of the recipe
    assert list(result.metrics)[-4:] == names
    logged = [record for record in records(tmp_path / "run") if "kinds_top1" in record]
    assert [record["step"] for record in logged] == [1, 2]
    model = load_model(tmp_path / "run")
    for name in names:
        data, rank = name.split("_top")
        assert result.metrics[name] == pytest.approx(by_hand(model, recipe, data, int(rank)), abs=1e-12)
    again = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert again.zero_shot["kinds"].prompts() == recipe.zero_shot["kinds"].prompts()


class Fabric(SimpleNamespace):
    """As much of Fabric as an evaluation asks for; what each process counted adds up."""

    device = torch.device("cpu")

    def autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.half else nullcontext()

    def all_reduce(self, counts: Tensor, reduce_op: str) -> Tensor:
        self.counted.append(counts)
        return torch.stack(self.counted).sum(0)


def small(recipe: Recipe) -> Model:
    from vitdense.build import build_model

    return build_model(recipe, (), (), ()).eval()


@pytest.mark.parametrize("limit", [None, 5])
def test_processes_share_the_pictures(make: Callable[..., Recipe], limit: int | None) -> None:
    recipe = make(("  colours: {data: {name: shapes_colours, size: 16, val_size: 10, workers: 0}}\n", ""))
    model = small(recipe)

    def run(rank: int, world: int, counted: list[Tensor]) -> dict[str, float]:
        fabric: Any = Fabric(global_rank=rank, world_size=world, counted=counted, half=False)
        return evaluate_zero_shot(fabric, model, recipe, limit=limit)

    counted: list[Tensor] = []
    run(0, 2, counted)
    assert run(1, 2, counted) == run(0, 1, [])
    assert sum(int(counts[0].sum()) for counts in counted) == (limit or 21)


def test_half_precision_works(make: Callable[..., Recipe]) -> None:
    recipe = make()
    fabric: Any = Fabric(global_rank=0, world_size=1, counted=[], half=True)
    assert all(0 <= value <= 1 for value in evaluate_zero_shot(fabric, small(recipe), recipe).values())


def test_several_heads_are_looked_through(make: Callable[..., Recipe]) -> None:
    """The same numbers as with the head alone."""
    recipe = make()
    line = next(line for line in TEXT.splitlines() if line.startswith("head:"))
    words = line.removeprefix("head: {").removesuffix("}")
    heads = (
        "heads:\n  words: {"
        + words
        + ", metric: {name: retrieval}}\n  masks: {name: linear, num_classes: 2, metric: {name: miou}}"
    )
    several = make((line, heads), ("metric: {name: retrieval}\nschedule", "schedule"))
    alone, both = small(recipe), small(several)
    both.load_state_dict(
        {key.replace("head.", "head.heads.words."): each for key, each in alone.state_dict().items()}, strict=False
    )
    fabric: Any = Fabric(global_rank=0, world_size=1, counted=[], half=False)
    assert evaluate_zero_shot(fabric, both, several) == evaluate_zero_shot(fabric, alone, recipe)


def test_names_of_a_prompt_file_stand_in_for_the_data_sets_own(make: Callable[..., Recipe], tmp_path: Path) -> None:
    """And the recipe that a run keeps doesn't need the file."""
    classes = ["Square", ["circle", "disc"], "STAR", "moon", "triangle", "ring"]
    (tmp_path / "words.json").write_text(json.dumps({"Kinds": {"templates": ["one {}"], "classes": classes}}))
    recipe = make(("templates: simple", f"templates: {tmp_path}/words.json:Kinds"))
    own = recipe.zero_shot["kinds"].data.build("val").classes
    matched = recipe.zero_shot["kinds"].matched(own)
    assert [matched.classes[place].name.lower() for place in matched.places] == list(own)
    written = tmp_path / "written.yaml"
    written.write_text(recipe.to_yaml())
    (tmp_path / "words.json").unlink()
    again = load_recipe(written).zero_shot["kinds"]
    assert again.matched(own) == matched
    assert again.prompts().templates == ("one {}",)
    fabric: Any = Fabric(global_rank=0, world_size=1, counted=[], half=False)
    assert "kinds_top1" in evaluate_zero_shot(fabric, small(recipe), load_recipe(written))


@DATA.register("bad_first")
class BadFirstConfig(DataConfig):
    """The first picture can't be read; labels where `labelled`."""

    labelled: bool = True

    def build(self, split: Split) -> Samples:
        return BadFirst(self.labelled)


class BadFirst(Samples):
    classes, palette = ("disc", "square"), ()

    def __init__(self, labelled: bool) -> None:
        self.labelled = labelled

    def __len__(self) -> int:
        return 3

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        if key[1] == 0:
            raise DataError("first.png: no such file")
        sample = Sample(id=str(key[1]), image=torch.zeros(3, 16, 16, dtype=torch.uint8))
        return Sample(**sample, label=1) if self.labelled else sample

    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        return []


COLOURS = "{data: {name: shapes_colours, size: 16, val_size: 10, workers: 0}}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("templates: simple", "classes: 'circle,moon'"), "not among the 2 class"),
        (
            (COLOURS, "{data: {name: shapes_captions, workers: 0}}"),
            "zero_shot.colours.data: shapes_captions has no label",
        ),
        ((COLOURS, "{data: {name: bad_first, workers: 0}}"), "first.png: no such file"),
        ((COLOURS, "{data: {name: bad_first, workers: 0, labelled: false, on_bad_sample: skip}}"), "has no label"),
    ],
)
def test_what_would_fail_later_is_told_before_the_first_step(
    make: Callable[..., Recipe], change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    recipe = make(change)
    with pytest.raises(UserError, match=message):
        fit(recipe)
    assert not list((tmp_path / "run").glob("step-*"))


def test_a_head_without_texts_is_told(make: Callable[..., Recipe]) -> None:
    backbone = create_backbone("vit_nano_patch8", depth=1)
    model = Model(backbone, HEADS.create("linear", {"num_classes": 2}).build_for(backbone))
    with pytest.raises(UserError, match="has no text tower"):
        check_zero_shot(make(), model)


def test_a_picture_that_can_not_be_read_is_skipped_where_asked(make: Callable[..., Recipe]) -> None:
    recipe = make((COLOURS, "{data: {name: bad_first, workers: 0, on_bad_sample: skip}}"))
    assert fit(recipe).metrics["colours_top5"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("templates: simple", "templates: simpel"), r"zero_shot\.kinds\.templates: .*did you mean 'simple'"),
        (("templates: simple", "templates: [a photo]"), r"has no \{\} for the class name"),
        (("templates: simple", "classes: ''"), r"zero_shot\.kinds\.classes: .*no class names"),
        (("templates: simple", "classes: [disc, disc]"), "class names stand twice"),
        (("templates: simple", "template: simple"), r"zero_shot\.kinds\.template.*did you mean 'templates'"),
        (("name: shapes_kinds", "name: shapes_kind"), r"zero_shot\.kinds\.data\.name: .*did you mean 'shapes_kinds'"),
        ((f"colours: {COLOURS}", "colours: 3"), r"zero_shot\.colours: expected \{data"),
    ],
)
def test_faults_of_the_section_are_faults_of_the_recipe(
    make: Callable[..., Recipe], change: tuple[str, str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        make(change)
