"""What a recipe says about losses, the mistakes it names, and what heads make of it."""

from pathlib import Path

import pytest
import torch
import yaml

from heads import create_head
from heads.losses import read_losses
from heads.segmentation import SegmentationConfig
from vitdense.contracts import Batch, Level
from vitdense.errors import RecipeError, UserError
from vitdense.recipe import load_recipe

LEVELS = (Level(6, 4), Level(6, 8))
RECIPE = """
backbone: {name: swin_nano}
head: {name: linear, num_classes: 5, losses: LOSSES}
data: {name: shapes}
schedule: {steps: 10}
"""


def recipe(folder: Path, losses: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.replace("LOSSES", losses), encoding="utf-8")
    return file


def test_cross_entropy_is_the_default() -> None:
    assert list(SegmentationConfig().losses) == ["cross_entropy"]
    assert SegmentationConfig().losses["cross_entropy"].weight == 1.0


def test_a_number_is_a_weight_and_a_mapping_has_options() -> None:
    read = read_losses({"cross_entropy": 0.25, "dice": {"weight": 0.5, "smooth": 1.0}, "lovasz": {}})
    assert [each.weight for each in read.values()] == [0.25, 0.5, 1.0]
    assert read["dice"].given == {"weight": 0.5, "smooth": 1.0}


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ("{dise: 1.0}", "head.losses: .*no loss named 'dise'; did you mean 'dice'"),
        ("{dice: {smoth: 1.0}}", "dice.smoth: unknown key, did you mean 'smooth'\\?; allowed: smooth, weight"),
        ("{dice: much}", "dice.weight: input should be a valid number.*given 'much'"),
        ("{cross_entropy: 0}", "cross_entropy.weight: input should be greater than 0, given 0"),
        ("{boundary: {width: 4}}", "boundary.width: value error, must be odd, given 4"),
        ("{}", "expected a mapping of losses"),
        ("dice", "expected a mapping of losses"),
        ("{dise: 1.0, focal: {gama: 2}}", "no loss named 'dise'.*focal.gama: unknown key, did you mean 'gamma'"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path: Path, losses: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load_recipe(recipe(tmp_path, losses))


def test_a_recipe_is_saved_with_every_option_and_read_again(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path, "{cross_entropy: 1, focal: {weight: 20, gamma: 3}}"))
    text = loaded.to_yaml()
    assert yaml.safe_load(text)["head"]["losses"] == {
        "cross_entropy": {"weight": 1.0},
        "focal": {"weight": 20.0, "gamma": 3.0, "alpha": None},
    }
    again = tmp_path / "again.yaml"
    again.write_text(text, encoding="utf-8")
    assert load_recipe(again).to_yaml() == text


def test_create_head_names_a_wrong_loss() -> None:
    with pytest.raises(UserError, match="no loss named 'dise'; did you mean 'dice'"):
        create_head("linear", LEVELS, num_classes=5, losses={"dise": 1.0})


def test_a_head_gives_one_weighted_entry_a_loss_and_the_auxiliary_sum() -> None:
    chosen = {"cross_entropy": 1.0, "dice": {"weight": 0.5}, "focal": 20.0}
    head = create_head("upernet", LEVELS, num_classes=5, channels=8, auxiliary_weight=0.25, losses=chosen)
    logits = torch.randn(2, 5, 6, 8)
    batch: Batch = {"masks": torch.randint(-1, 5, (2, 22, 30))}
    losses = head.losses({"logits": logits, "auxiliary_logits": logits}, batch)
    assert list(losses) == ["loss_ce", "loss_dice", "loss_focal", "loss_aux"]
    parts = [losses[key] for key in ("loss_ce", "loss_dice", "loss_focal")]
    torch.testing.assert_close(losses["loss_aux"], 0.25 * torch.stack(parts).sum())
    alone = create_head("linear", LEVELS, num_classes=5, losses={"focal": 1.0}).losses({"logits": logits}, batch)
    torch.testing.assert_close(losses["loss_focal"], 20 * alone["loss_focal"])


def test_class_weights_and_label_smoothing_reach_the_cross_entropies() -> None:
    logits, batch = torch.randn(2, 3, 6, 8), Batch(masks=torch.randint(-1, 3, (2, 22, 30)))
    for name, key in (("cross_entropy", "loss_ce"), ("ohem_cross_entropy", "loss_ohem")):
        plain, weighted, smoothed = (
            create_head("linear", LEVELS, num_classes=3, losses={name: 1.0}, **options).losses(
                {"logits": logits}, batch
            )[key]
            for options in ({}, {"class_weights": (5.0, 0.1, 1.0)}, {"label_smoothing": 0.3})
        )
        assert not plain.isclose(weighted)
        assert not plain.isclose(smoothed)
