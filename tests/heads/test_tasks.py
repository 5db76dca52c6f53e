"""Several heads on one trunk: each is what it is alone, and the trunk runs once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vitdense
from vitdense.build import build_model
from vitdense.contracts import Batch
from vitdense.data.loader import collate
from vitdense.errors import RecipeError, UserError
from vitdense.model import Model
from vitdense.recipe import Recipe, load_recipe

CLIP = "{name: clip, dim: 16, text: {name: clip_text_nano, context: 20}, metric: {name: retrieval}}"
RECIPE = """
backbone: {{name: {backbone}}}
{adapter}
heads:
  semantic: 
    {{name: upernet, channels: 8, auxiliary_channels: 8, dropout: 0.0, loss_weight: 0.5, metric: {{name: miou}}}}
  captions: {clip}
data: {{name: shapes_tasks, labels: [masks, captions], size: 32, batch_size: 4, workers: 0}}
schedule: {{steps: 2}}
"""


def recipe_of(folder: Path, backbone: str = "swin_nano", adapter: str = "", clip: str = CLIP) -> Recipe:
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(backbone=backbone, adapter=adapter, clip=clip))
    return load_recipe(file)


def made(recipe: Recipe) -> tuple[Model, Batch]:
    samples = recipe.data.build("val")
    batch = collate([samples[0, index] for index in range(3)], tokenize=recipe.head.tokenizer())
    return build_model(recipe, samples.classes, samples.palette), batch


BACKBONES = [
    ("swin_nano", ""),
    ("vit_nano_patch8", "adapter: {name: simple_pyramid, channels: 16}"),
    ("vit_nano_patch8", "adapter: {name: vit_adapter}"),
    ("vit_nano_r_s16", "adapter: {name: reassemble, channels: [8, 8, 8, 8]}"),
]


@pytest.mark.parametrize(("backbone", "adapter"), BACKBONES)
def test_each_head_gives_what_it_gives_alone(tmp_path: Path, backbone: str, adapter: str) -> None:
    model, batch = made(recipe_of(tmp_path, backbone, adapter))
    model.eval()
    outputs = model(batch)
    for task in ("semantic", "captions"):
        for name, value in model.alone(task)(batch).items():
            torch.testing.assert_close(outputs[f"{task}.{name}"], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("backbone", "adapter"), BACKBONES)
def test_every_parameter_learns(tmp_path: Path, backbone: str, adapter: str) -> None:
    model, batch = made(recipe_of(tmp_path, backbone, adapter))
    losses = model.head.losses(model.train()(batch), batch)
    torch.stack([*losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
    still = {name for name, each in model.named_parameters() if each.requires_grad and each.grad is None}
    assert not still
    assert {name.split("_")[1] for name in losses} == {"semantic", "captions"}


@pytest.mark.parametrize(("backbone", "adapter"), BACKBONES[:2])
def test_the_trunk_runs_once_for_maps_and_vector(tmp_path: Path, backbone: str, adapter: str) -> None:
    model, batch = made(recipe_of(tmp_path, backbone, adapter))
    calls = []
    embedding = next(module for name, module in model.named_modules() if name.endswith("patch_embed"))
    embedding.register_forward_hook(lambda *_: calls.append(1))
    model(batch)
    assert len(calls) == 1


def test_weights_multiply_the_losses(tmp_path: Path) -> None:
    model, batch = made(recipe_of(tmp_path))
    outputs = model(batch)
    weighted = model.head.losses(outputs, batch)
    alone = model.alone("semantic")
    plain = alone.head.losses(alone(batch), batch)
    found: dict[str, Tensor] = {name: weighted[name.replace("loss_", "loss_semantic_")] for name in plain}
    for name, value in plain.items():
        torch.testing.assert_close(found[name], 0.5 * value)


def test_predictions_are_those_of_each_task(tmp_path: Path) -> None:
    model, batch = made(recipe_of(tmp_path))
    found = vitdense.inference.infer(model.eval(), batch, model.inference)
    alone = vitdense.inference.infer(model.alone("semantic"), batch, model.inference)
    assert [set(each) for each in found] == [{"semantic", "captions"}] * 3
    assert all(torch.equal(each["semantic"], own) for each, own in zip(found, alone, strict=True))
    assert found[0]["captions"].texts.shape == (1, 16)


def test_a_recipe_of_heads_is_written_and_read_back(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    again = load_recipe(tmp_path / "again.yaml")
    assert again.head.model_dump() == recipe.head.model_dump()
    assert again.metric.model_dump() == recipe.metric.model_dump()
    assert {name: type(task.head) for name, task in vars(again.head)["tasks"].items()} == {
        name: type(task.head) for name, task in vars(recipe.head)["tasks"].items()
    }


@pytest.mark.parametrize(
    ("heads", "told"),
    [
        ("{semantic: {name: fnc, metric: {name: miou}}}", "heads.semantic"),
        (
            "{semantic: {name: fcn, chanels: 3, metric: {name: miou}}}",
            "semantic.chanels: unknown key, did you mean",
        ),
        ("{semantic: {name: fcn, los_weight: 3, metric: {name: miou}}}", "did you mean 'loss_weight'"),
        ("{semantic: {name: fcn}}", "heads.semantic.metric: missing key"),
        ("{semantic: {name: fcn, metric: {name: miuo}}}", "heads.semantic.metric.name: no metric named 'miuo'"),
        ("{semantic: {name: fcn, loss_weight: -1, metric: miou}}", "heads.semantic.loss_weight"),
        ("[fcn]", "expected a mapping of tasks to heads"),
        ("{}", "heads: expected a mapping"),
    ],
)
def test_faults_name_the_key_as_it_was_written(tmp_path: Path, heads: str, told: str) -> None:
    text = RECIPE.format(backbone="swin_nano", adapter="", clip=CLIP)
    start, end = text.index("heads:"), text.index("data:")
    (tmp_path / "bad.yaml").write_text(f"{text[:start]}heads: {heads}\n{text[end:]}")
    with pytest.raises(RecipeError, match=told.replace("[", r"\[")) as caught:
        load_recipe(tmp_path / "bad.yaml")
    assert "bad.yaml" in str(caught.value)


def test_head_and_heads_can_not_stand_together(tmp_path: Path) -> None:
    recipe_of(tmp_path)
    with pytest.raises(RecipeError, match="can't stand beside heads"):
        load_recipe(tmp_path / "recipe.yaml", ["head.name=fcn"])


def test_two_heads_that_read_captions_are_refused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, clip=CLIP + "\n  again: " + CLIP)
    with pytest.raises(UserError, match="captions, again all read captions"):
        recipe.head.tokenizer()


def test_unlocked_and_locked_heads_are_refused(tmp_path: Path) -> None:
    locked: Any = CLIP.replace("dim: 16", "dim: 16, locked: image")
    with pytest.raises(UserError, match="differ on what learns of the backbone"):
        made(recipe_of(tmp_path, clip=locked))
