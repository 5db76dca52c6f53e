"""A joint loss over micro-batches: the gradient of the whole batch, random layers repeated, runs as exact as others."""

import re
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from tests.vitdense.engine.test_processes import run_on_two
from vitdense import checkpoint, create_backbone
from vitdense.contracts import DATA, HEADS, Batch, DataConfig, Sample, Samples, Split
from vitdense.engine import fit
from vitdense.engine.caching import join_batches, learn_jointly
from vitdense.errors import UserError
from vitdense.model import Model
from vitdense.recipe import Recipe, load_recipe

Digests = Callable[[Path], dict[str, str]]
Records = Callable[[Path], list[dict[str, Any]]]
WORDS = ("red", "small", "disc", "left", "of", "a", "green", "large", "square")
TEXT = """
backbone: {name: vit_nano_patch8, depth: 2, image_size: 16}
head: {name: clip, dim: 16, text: {name: clip_text_nano, depth: 1, context: 16}}
data: {name: toy_captions, batch_size: 8, eval_batch_size: 3, workers: 0}
metric: {name: retrieval}
optim: {name: sgd, lr: 0.1}
schedule: {steps: 6, warmup: 1}
engine: {log_every: 1, eval_every: 6, save_every: 1, keep: 3, accelerator: cpu, precision: 32-true, log_samples: true}
"""


@DATA.register("toy_captions")
class ToyConfig(DataConfig):
    """Noise, and words of any number."""

    def build(self, split: Split) -> "Toys":
        return Toys()


class Toys(Samples):
    classes, palette = (), ()

    def __len__(self) -> int:
        return 12

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        generator = np.random.default_rng(key[1])
        words = generator.choice(WORDS, size=generator.integers(1, 9))
        image = torch.from_numpy(generator.integers(0, 256, (3, 16, 16), dtype=np.uint8))
        return {"id": f"toy-{key[1]}", "image": image, "captions": [" ".join(words)]}

    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        return []


@pytest.fixture
def recipe_of(tmp_path: Path) -> Callable[..., Recipe]:
    def make(name: str, *overrides: str, text: str = TEXT) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return load_recipe(path, [f"engine.run_dir={tmp_path / name}", *overrides])

    return make


@pytest.fixture
def doubles() -> Iterator[None]:
    """Fabric gives outputs in the default precision, whatever the model's is."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model_of(drop: float = 0.0, **options: object) -> Model:
    torch.manual_seed(1)
    backbone = create_backbone("vit_nano_patch8", depth=2, image_size=16, drop_path=drop)
    text = {"name": "clip_text_nano", "depth": 1, "context": 16, "vocab": 50}
    head = HEADS.create("clip", {"dim": 16, "text": text, "temperature": 0.2, **options}).build_for(backbone)
    model = Model(backbone, head).train()
    for parameter in model.parameters():  # weights that carry signal
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15)
    return model


def batches_of(counts: tuple[int, ...]) -> list[Batch]:
    """Micro-batches whose tokens have lengths of their own."""
    made: list[Batch] = []
    generator = torch.Generator().manual_seed(2)
    for place, count in enumerate(counts):
        images = torch.randint(256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
        tokens = torch.randint(1, 49, (count, 5 + 3 * (place % 3)), generator=generator)
        tokens[:, -1] = 49
        made.append({"images": images, "tokens": tokens, "ids": [str(place)] * count})
    return made


def fabric_of(model: nn.Module) -> tuple[Fabric, Any]:
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    return fabric, fabric.setup_module(model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert (found[name] - wanted).abs().max() <= bound * wanted.abs().max().clamp_min(1e-6), name


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("options", [{}, {"loss": "siglip", "bias": -2.0}, {"same_captions": "ignored"}])
@pytest.mark.parametrize("counts", [(3, 3, 3), (4, 1), (2, 5, 1, 3)])
def test_the_gradient_is_that_of_the_whole_batch(options: dict[str, Any], counts: tuple[int, ...]) -> None:
    whole, parts = model_of(**options), model_of(**options)
    batches = batches_of(counts)
    fabric, model = fabric_of(parts)
    losses = learn_jointly(fabric, model, parts.head, batches)
    one = cast("Batch", {**join_batches(batches), "images": torch.cat([each["images"] for each in batches])})
    _, model = fabric_of(whole)
    expected = whole.head.losses(model(one), one)
    torch.autograd.backward([*expected.values()])
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-9)
    assert_near(gradients(parts), gradients(whole), 1e-10)


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("graphs", [False, True])
def test_random_layers_are_repeated(graphs: bool) -> None:
    """The same as keeping all graphs, one micro-batch after the other."""
    kept, parts, batches = model_of(drop=0.4), model_of(drop=0.4), batches_of((3, 4, 2))
    fabric, model = fabric_of(parts)
    torch.manual_seed(7)
    losses = learn_jointly(fabric, model, parts.head, batches, graphs=graphs)
    _, model = fabric_of(kept)
    torch.manual_seed(7)
    outputs = [model({**batch, "lean": True}) for batch in batches]
    joined = {name: torch.cat([each[name] for each in outputs]) for name in ("image_embeddings", "text_embeddings")}
    expected = kept.head.losses({**joined, "logit_scale": outputs[0]["logit_scale"]}, join_batches(batches))
    torch.autograd.backward(expected["loss_clip"])
    assert losses["loss_clip"].item() == pytest.approx(expected["loss_clip"].item(), rel=1e-9)
    assert_near(gradients(parts), gradients(kept), 1e-10)


def test_batch_norms_see_each_micro_batch_once() -> None:
    model, batches = model_of(), batches_of((3, 4, 2))
    norm = nn.BatchNorm1d(16, momentum=None)  # the mean over all that it saw
    model.head.image_proj = nn.Sequential(cast("nn.Module", model.head.image_proj), norm)
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().mean(dim=0)))
    fabric, wrapped = fabric_of(model)
    learn_jointly(fabric, wrapped, model.head, batches)
    assert len(seen) == 5
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == 3
    assert norm.track_running_stats
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, torch.stack(seen[:3]).mean(dim=0))


def test_what_differs_in_length_is_filled() -> None:
    joined = join_batches(batches_of((2, 3)))
    assert joined["tokens"].shape == (5, 8)
    assert joined["tokens"][:2, 5:].eq(0).all()
    assert joined["ids"] == ["0", "0", "1", "1", "1"]
    assert "images" not in joined


def losses_of(run: Path, records: Records) -> list[float]:
    return [record["loss"] for record in records(run) if record["split"] == "train"]


def test_a_recipe_means_the_same_with_any_accumulate(
    recipe_of: Callable[..., Recipe], tmp_path: Path, records: Records
) -> None:
    for number in (1, 2, 8):
        fit(recipe_of(str(number), f"engine.accumulate={number}", "engine.clip=1.0"), stop_after=3)
    expected, weights = losses_of(tmp_path / "1", records), checkpoint.open_checkpoint(tmp_path / "1").weights()
    assert len(expected) == 3
    for parts in ("2", "8"):
        assert losses_of(tmp_path / parts, records) == pytest.approx(expected, rel=1e-5)
        found = checkpoint.open_checkpoint(tmp_path / parts).weights()
        assert all(torch.allclose(found[name], each, atol=1e-5) for name, each in weights.items())


def test_a_killed_run_goes_on_to_the_same_bits(
    recipe_of: Callable[..., Recipe], tmp_path: Path, digests: Digests
) -> None:
    options = ("engine.accumulate=4", "engine.ema=0.9", "engine.clip=1.0", "backbone.drop_path=0.3")
    fit(recipe_of("whole", *options), stop_after=4)
    fit(recipe_of("parts", *options), stop_after=2)
    fit(recipe_of("parts", *options), resume="auto", stop_after=4)
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")


def test_two_processes_take_the_steps_of_one(
    processes: ForkServerContext, recipe_of: Callable[..., Recipe], tmp_path: Path, records: Records
) -> None:
    run_on_two(processes, recipe_of("two", "engine.accumulate=2"), stop_after=3)
    fit(recipe_of("one"), stop_after=3)
    assert losses_of(tmp_path / "two", records) == pytest.approx(losses_of(tmp_path / "one", records), rel=1e-5)
    one, two = (checkpoint.open_checkpoint(tmp_path / name).weights() for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_a_teacher_is_learnt_from(recipe_of: Callable[..., Recipe], tmp_path: Path, records: Records) -> None:
    fit(recipe_of("teacher"), stop_after=1)
    taught = f"{TEXT}\nteacher: {{model: {tmp_path / 'teacher'}, weight: 0.5}}"
    for parts in (1, 2):
        fit(recipe_of(f"learner{parts}", f"engine.accumulate={parts}", text=taught), stop_after=2)
    terms = [records(tmp_path / name)[0] for name in ("learner1", "learner2")]
    assert terms[0]["loss"] == pytest.approx(terms[0]["loss_clip"] + terms[0]["loss_distill"], rel=1e-6)
    assert terms[0]["loss_distill"] > 0
    for name in ("loss", "loss_clip", "loss_distill"):
        assert terms[0][name] == pytest.approx(terms[1][name], rel=1e-5)
    assert re.search(
        r"teacher:\n  model: .*teacher\n  weight: 0.5", (tmp_path / "learner1" / "recipe.yaml").read_text()
    )


def test_a_teacher_of_something_else_is_told(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    other = re.sub("head: .*", "head: {name: linear}", TEXT).replace("toy_captions", "shapes, size: 16, val_size: 4")
    other = re.sub("metric: .*", "", other)
    fit(recipe_of("segmenter", text=other), stop_after=1)
    taught = f"{{model: {tmp_path / 'segmenter'}}}"
    with pytest.raises(UserError, match=r"teacher\.model: .*segmenter has no space that pictures and texts share"):
        fit(recipe_of("a", text=f"{TEXT}\nteacher: {taught}"))
    with pytest.raises(UserError, match=r"teaches heads that compare pictures with texts, not Linear$"):
        fit(recipe_of("b", text=f"{other}\nteacher: {taught}"))
