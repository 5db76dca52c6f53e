"""Every recipe in tasks/: it loads, says what a recipe must say, and its model takes one step (shrunken)."""

from pathlib import Path

import pytest
import torch

from vitdense.build import build_model
from vitdense.contracts import Batch, Target
from vitdense.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.name for path in (ROOT / "tasks").glob("*.yaml"))
FRAGMENTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))
CLASSES = [f"class {index}" for index in range(7)]

TEXT = "{name: clip_text_nano, width: 24, depth: 1, num_heads: 2, vocab: 49408}"
PLAIN = ["backbone.embed_dim=24", "backbone.depth=4", "backbone.num_heads=3", "backbone.out_indices=[0,1,2,3]"]
# The same structure with little in it: what a whole Swin-B does, a thin one does too.
THIN = {
    "swin_": ["backbone.embed_dim=8", "backbone.depths=[1,1,2,1]", "backbone.num_heads=[1,1,2,2]"],
    "vit_": PLAIN,
    "deit_": PLAIN,
    "beit_": [*PLAIN, "backbone.image_size=64"],
    "dinov2_": [*PLAIN, "backbone.image_size=56"],
    "timesformer_": [*PLAIN, "backbone.image_size=64"],
    "vivit_": [*PLAIN, "backbone.image_size=64"],
    "videomae_": [*PLAIN, "backbone.image_size=64"],
    "vit3d_": [*PLAIN, "backbone.image_size=32", "backbone.frames=16"],
    "upernet": ["head.channels=8", "head.auxiliary_channels=8"],
    "dpt": ["head.channels=8"],
    "dpt_depth": ["head.channels=8"],
    "deformable_detr": [
        "head.channels=32",
        "head.num_heads=4",
        "head.mlp_channels=16",
        "head.encoder_layers=1",
        "head.decoder_layers=2",
        "head.num_queries=5",
    ],
    "rtdetr": ["head.decoder_layers=2"],
    "mask_transformer": [
        "head.channels=32",
        "head.pixel_channels=32",
        "head.mask_channels=8",
        "head.num_heads=4",
        "head.mlp_channels=16",
        "head.encoder_mlp_channels=16",
        "head.encoder_layers=1",
        "head.decoder_layers=2",
        "head.num_queries=5",
        "head.points.count=20",
    ],
    "eomt": ["head.blocks=2", "head.num_queries=5", "head.points.count=20"],
    "dinov3_": [*PLAIN, "backbone.image_size=64", "backbone.num_heads=2"],
    "clip_": PLAIN,
    "siglip_": PLAIN,
    "clip": [f"head.text={TEXT}", "head.dim=16"],
    "siglip": [f"head.text={TEXT}", "head.dim=24"],
    "hf/rt_": [
        "backbone.config={embedding_size: 8, hidden_sizes: [8, 12, 16, 20], depths: [1, 1, 1, 1], layer_type: basic}"
    ],
    "per_": [  # frame/swin_...
        "backbone.options.embed_dim=8",
        "backbone.options.depths=[1,1,2,1]",
        "backbone.options.num_heads=[1,1,2,2]",
    ],
    "change": ["head.head.channels=8", "head.head.auxiliary_channels=8"],
    "reassemble": ["adapter.channels=[8,8,8,8]"],
    "simple_pyramid": ["adapter.channels=8"],
}


def load(name: str, *overrides: str) -> Recipe:
    return load_recipe(ROOT / "tasks" / name, overrides)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_opens_with_its_purpose_and_command(name: str) -> None:
    lines = (ROOT / "tasks" / name).read_text().splitlines()
    assert len(lines) < 40
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert f"python tools/train.py tasks/{name}" in header
    assert any(score in header for score in ("mIoU", "d1", "rmse", "AP", "R@1", "top-1", "Dice", "PQ", "F1")), (
        "a recipe says what to expect of it"
    )
    assert "/home" not in header
    assert "root: /" not in "\n".join(lines)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_one_step(name: str) -> None:
    names = load(name).names
    parts = (f"{names['backbone'].split('_')[0]}_", names["head"], names.get("adapter", ""))
    frozen = ["backbone.frozen_stages=5"] if load(name).backbone.frozen_stages else []
    recipe = load(name, *(override for part in parts for override in THIN.get(part, [])), *frozen)
    of_depth = "depth" in names["head"]
    if "class_weights" in type(recipe.head).model_fields:
        recipe = recipe.model_copy(update={"head": recipe.head.model_copy(update={"class_weights": None})})
    model = build_model(recipe, () if of_depth else CLASSES).train()
    thing: Target = {
        "boxes": torch.tensor([[8.0, 9.0, 40.0, 50.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.rand(1, 64, 96) > 0.5,
    }
    batch: Batch = {
        "images": torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8),
        "masks": torch.randint(-1, len(CLASSES), (2, 64, 96), dtype=torch.int16),
        "depth": 2 + 3 * torch.rand(2, 64, 96),
        "sizes": [(64, 96)] * 2,
        "targets": [thing] * 2,
        "captions": [["a red circle"], ["hills of paper"]],
    }
    tokenizer = recipe.head.tokenizer()
    if tokenizer is not None:
        batch["tokens"] = tokenizer([text for texts in batch["captions"] for text in texts])
    if model.takes_clips:
        frames, masks = (2, (2, 32, 48)) if model.head.compares else (6, (2, 6, 32, 48))
        images = torch.randint(0, 256, (2, recipe.backbone.in_channels, frames, 32, 48), dtype=torch.uint8)
        batch |= {"images": images, "masks": torch.randint(-1, len(CLASSES), masks, dtype=torch.int16)}
        batch |= {"sizes": [(32, 48)] * 2, "labels": torch.tensor([1, 3])}
        del batch["depth"]
    losses = model.head.losses(model(batch), batch)
    torch.stack([*losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
    still = [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None]
    assert not still or not recipe.head.reads_all(), "parameters that no step would move"


@pytest.mark.parametrize("name", FRAGMENTS)
def test_a_fragment_is_named_by_a_recipe(name: str) -> None:
    assert any(f"../{name}" in (ROOT / "tasks" / recipe).read_text() for recipe in RECIPES)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("ade20k_swin")])
def test_published_hyper_parameters_of_swin_on_ade20k(name: str) -> None:
    recipe = load(name)
    assert (recipe.schedule.steps, recipe.schedule.warmup, recipe.schedule.decay, recipe.schedule.power) == (
        160_000,
        1500,
        "poly",
        1.0,
    )
    assert (recipe.optim.name, recipe.optim.lr, recipe.optim.weight_decay) == ("adamw", 6e-5, 0.01)
    assert (recipe.data.batch_size, recipe.backbone.drop_path) == (16, 0.3)
