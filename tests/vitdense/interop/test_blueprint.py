"""Blueprints: backbones as plain values that survive JSON and build the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vitdense
from vitdense.build import build_model
from vitdense.errors import UserError
from vitdense.interop.blueprint import Blueprint

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("kind", ["swin", "plain", "timm"])
def test_a_blueprint_survives_json_and_builds_the_same(kind: str, make: Any) -> None:
    backbone = make(kind, std=(0.5, 0.25, 0.125))
    blueprint = Blueprint.of(backbone)
    again = Blueprint.from_json(json.loads(json.dumps(blueprint.to_json())), "a file")
    built = again.build()
    assert again == blueprint == Blueprint.of(built)
    assert (built.levels, built.mean, built.std) == (backbone.levels, backbone.mean, backbone.std)
    assert {k: v.shape for k, v in built.state_dict().items()} == {k: v.shape for k, v in backbone.state_dict().items()}


@pytest.mark.parametrize("kind", ["swin", "plain", "timm"])
def test_a_sketch_tells_the_levels(kind: str, make: Any) -> None:
    sketched = Blueprint.of(make(kind)).sketch()
    assert sketched.levels == make(kind).levels
    assert all(parameter.is_meta for parameter in sketched.parameters()) == (kind != "timm")


def test_building_has_values_even_where_meta_is_the_default(make: Any) -> None:
    blueprint = Blueprint.of(make("plain"))
    with torch.device("meta"):
        built = blueprint.build()
    assert not any(parameter.is_meta for parameter in built.parameters())


def test_a_recipes_backbone_has_a_blueprint() -> None:
    recipe = vitdense.load_recipe(ROOT / "tasks" / "shapes_vit.yaml", ["backbone.drop_path=0.25"])
    blueprint = Blueprint.of(build_model(recipe, ["one", "two"], load_weights=False).backbone)
    assert (blueprint.name, blueprint.options["drop_path"]) == (recipe.names["backbone"], 0.25)
    assert isinstance(blueprint.adapter, dict)
    assert blueprint.adapter["name"] == "simple_pyramid"


def test_what_is_no_blueprint_is_refused() -> None:
    with pytest.raises(UserError, match=r"a file describes no vitdense backbone: it has \['name'\], needs name and"):
        Blueprint.from_json({"name": "swin_nano"}, "a file")
