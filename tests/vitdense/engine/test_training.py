"""The loop: what a step does, what a run leaves behind, and how it meets trouble."""

import json
import math
import multiprocessing
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitdense import checkpoint
from vitdense.contracts import Batch, Outputs
from vitdense.engine import evaluation, fit, rehearse
from vitdense.engine.averages import Averages
from vitdense.errors import DataError, SaveError, TrainingError, UserError
from vitdense.loading import load_model
from vitdense.model import Model
from vitdense.recipe import Recipe

MakeRecipe = Callable[..., Recipe]
Records = Callable[[Path], list[dict[str, Any]]]

PLAIN = ("engine.accumulate=1", "engine.ema=null", "backbone.drop_path=0")


def weights(run: Path) -> dict[str, Tensor]:
    return checkpoint.open_checkpoint(run).weights()


def test_a_run_leaves_its_records(make_recipe: MakeRecipe, tmp_path: Path, records: Records) -> None:
    result = fit(make_recipe("run"))
    run = tmp_path / "run"
    assert (result.step, result.stopped) == (9, False)
    assert set(result.metrics) == {"mIoU", "mAcc", "aAcc"}
    names = {path.name for path in run.iterdir()}
    assert names >= {"recipe.yaml", "metrics.jsonl", "environment.json", "tensorboard", "samples", "step-9"}
    assert {path.name for path in (run / "samples").iterdir()} == {"step-4.png", "step-8.png", "step-9.png"}
    training_records = [record for record in records(run) if record["split"] == "train"]
    assert all({"loss", "loss_ce", "loss_aux", "lr", "pictures_per_second"} <= set(r) for r in training_records)
    assert json.loads((run / "environment.json").read_text())["versions"]["torch"] == version("torch")


def test_the_first_loss_is_that_of_a_guess(make_recipe: MakeRecipe, tmp_path: Path, records: Records) -> None:
    fit(make_recipe("run"), stop_after=1)
    assert records(tmp_path / "run")[0]["loss_ce"] == pytest.approx(math.log(6), abs=0.25)


def test_the_trained_model_loads_and_predicts(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    fit(make_recipe("run"), stop_after=2)
    model = load_model(tmp_path / "run")
    assert model.classes[0] == "background"
    masks = model.predict([torch.zeros(40, 31, 3, dtype=torch.uint8).numpy()])
    assert masks[0].shape == (40, 31)


def test_the_average_is_loaded_where_one_was_kept(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    fit(make_recipe("run"), stop_after=3)
    found = checkpoint.open_checkpoint(tmp_path / "run")
    averaged, last = found.weights(averaged=True), found.weights()
    name = "backbone.patch_embed.proj.weight"
    assert not torch.equal(averaged[name], last[name])
    assert torch.equal(load_model(tmp_path / "run").state_dict()[name], averaged[name])
    assert torch.equal(load_model(tmp_path / "run", averaged=False).state_dict()[name], last[name])


def test_frozen_stages_keep_their_weights(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    fit(make_recipe("a", "backbone.frozen_stages=2"), stop_after=1)
    fit(make_recipe("b", "backbone.frozen_stages=2"), stop_after=3)
    before, after = weights(tmp_path / "a"), weights(tmp_path / "b")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith(("backbone.patch_embed", "backbone.layers.0")) for name in moved)
    assert any(name.startswith("backbone.layers.1") for name in moved)


def test_accumulation_takes_one_optimizer_step(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Equal up to rounding, with a head whose statistics don't depend on the micro-batch."""
    fit(make_recipe("one", *PLAIN, linear=True), stop_after=2)
    fit(make_recipe("two", *PLAIN, "engine.accumulate=2", linear=True), stop_after=2)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=2e-5) for name in one)


def test_a_full_disk_is_outlived(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save, steps = checkpoint.save, []

    def full_at_five(run: Path, step: int, *rest: object) -> Path:
        steps.append(step)
        if step == 5:
            raise SaveError("could not write step-5: No space left on device")
        return save(run, step, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save", full_at_five)
    assert fit(make_recipe("run")).step == 9
    assert steps == list(range(1, 10))
    assert "warning: could not write step-5: No space left" in capfd.readouterr().err


def test_a_lost_last_checkpoint_fails_the_run(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Path:
        raise SaveError("disk full")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(TrainingError, match="the last checkpoint is lost: disk full"):
        fit(make_recipe("run"), stop_after=1)


def test_a_loss_that_is_not_finite_names_steps_and_pictures(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = Model.forward, [0]

    def poisoned(self: Model, batch: Batch) -> Outputs:
        calls[0] += self.training
        outputs = forward(self, batch)
        return {name: value * float("nan") for name, value in outputs.items()} if calls[0] == 3 else outputs

    monkeypatch.setattr(Model, "forward", poisoned)
    with pytest.raises(TrainingError, match=r"not finite between steps 3 and 3 \(loss nan.*pictures: train-"):
        fit(make_recipe("run", *PLAIN))
    assert checkpoint.open_checkpoint(tmp_path / "run").step == 2


def test_a_wrong_class_count_is_refused_before_training(make_recipe: MakeRecipe) -> None:
    with pytest.raises(UserError, match=r"head\.num_classes is 9, but the data set has 6 classes"):
        fit(make_recipe("run", "head.num_classes=9"))


def test_a_batch_that_cannot_be_divided_is_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(UserError, match=r"must divide data\.batch_size"):
        make_recipe("run", "engine.accumulate=3")


def test_faults_of_the_data_stop_before_the_first_step(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitdense.data.shapes import ShapeSamples

    monkeypatch.setattr(ShapeSamples, "audit", lambda self, limit: ["a.png: value 77"])
    with pytest.raises(DataError, match=r"the data set has faults\n  a\.png: value 77"):
        fit(make_recipe("run"))


def test_a_dry_run_forecasts_and_leaves_nothing(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe("deep/run", "schedule.steps=1000")
    forecast = rehearse(recipe)
    assert forecast["seconds"] > 1000 * forecast["seconds_per_step"] > 0
    assert forecast["peak_bytes"] > 2**20
    assert forecast["checkpoint_bytes"] > 2**10
    assert not list((tmp_path / "deep").iterdir())


def test_the_resolved_recipe_of_a_run_loads(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    from vitdense.recipe import load_recipe

    recipe = make_recipe("run")
    fit(recipe, stop_after=1)
    assert load_recipe(tmp_path / "run" / "recipe.yaml").data.model_dump() == recipe.data.model_dump()


@pytest.mark.parametrize(("owner", "name"), [(Averages, "add"), (evaluation, "infer")], ids=["training", "evaluation"])
def test_a_fault_of_anybodys_ends_the_workers(
    owner: object, name: str, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fall(*_: object) -> None:
        raise ZeroDivisionError

    recipe = make_recipe("run", "data.workers=1")
    monkeypatch.setattr(owner, name, fall)
    with pytest.raises(ZeroDivisionError) as held:  # and with it the frames, as at the end of a process
        fit(recipe)
    assert held.tb is not None
    assert not multiprocessing.active_children()
