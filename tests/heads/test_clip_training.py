"""Head `clip` in training: what learns, what is locked, where scale and decay begin, and what doesn't fit."""

from typing import Any

import open_clip
import pytest
import torch

from heads import create_head
from heads.clip import Clip
from vitdense.build import create_backbone
from vitdense.contracts import Batch
from vitdense.errors import UserError
from vitdense.model import Model
from vitdense.optim import OptimConfig, parameter_groups

NANO = {"name": "clip_text_nano", "context": 8, "vocab": 60}
BACKBONES = ["vit_nano_patch8", "swin_nano", "swinv2_nano", "vit_nano_r_s16", "timm/resnet10t", "timm/test_convnext"]


def nano(backbone: str = "vit_nano_patch8", *, backbone_options: Any = None, **options: Any) -> Model:
    tower = create_backbone(backbone, **(backbone_options or {}))
    return Model(tower, create_head("clip", tower, **{"dim": 16, "text": NANO, **options}))


def batch() -> Batch:
    return {"images": torch.rand(3, 3, 75, 98), "tokens": torch.randint(1, 60, (3, 8))}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_trainable_parameter_of_any_backbone_learns(name: str) -> None:
    model = nano(name).train()
    given = batch()
    sum(model.head.losses(model(given), given).values()).backward()  # type: ignore[union-attr]
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        assert parameter.grad is None or parameter.grad.isfinite().all(), key


def test_encoding_by_itself_is_what_the_head_compares() -> None:
    model, given = nano().eval(), batch()
    outputs = model(given)
    torch.testing.assert_close(model.encode_image(given["images"]), outputs["image_embeddings"])
    torch.testing.assert_close(model.encode_text(given["tokens"]), outputs["text_embeddings"])


@pytest.mark.parametrize(("head", "bounded"), [("clip", True), ("siglip", False)])
def test_the_scale_is_bounded_as_published(head: str, bounded: bool) -> None:
    tower = create_backbone("vit_nano_patch8")
    module = create_head(head, tower, dim=64, text=NANO).train()
    assert isinstance(module, Clip)
    with torch.no_grad():
        module.logit_scale.fill_(7.0)
    outputs = module([torch.randn(2, 64)], {})
    assert outputs["logit_scale"].item() == pytest.approx(100.0 if bounded else torch.tensor(7.0).exp().item())
    outputs["logit_scale"].backward()
    assert module.logit_scale.grad is not None
    assert module.logit_scale.grad > 0  # it can come back from the bound


def test_siglip_starts_as_published() -> None:
    tower = create_backbone("vit_nano_patch8")
    module = create_head("siglip", tower, dim=64, text=NANO)
    assert isinstance(module, Clip)
    assert module.logit_bias is not None
    assert module.logit_bias.item() == -10
    assert module.logit_scale.exp().item() == pytest.approx(10)


def test_weight_decay_leaves_gains_biases_scale_and_tables_alone() -> None:
    model = nano(bias=-10.0)
    groups = parameter_groups(model, model.backbone, OptimConfig(weight_decay=0.2))
    free = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    kept = {name for name, parameter in model.named_parameters() if id(parameter) in free}
    assert {"head.logit_scale", "head.logit_bias", "head.text.pos_embed", "head.text.token_embed.weight"} <= kept
    assert "backbone.pos_embed" in kept
    many = {name for name, parameter in model.named_parameters() if parameter.ndim > 1 and name in kept}
    assert many == {
        "head.text.pos_embed", "head.text.token_embed.weight", "backbone.pos_embed", "backbone.cls_token",
    }  # fmt: skip


def test_a_locked_picture_tower_stays_as_it_is() -> None:
    model = nano("swin_nano", locked="image", backbone_options={"drop_path": 0.5}).train()
    given = batch()
    sum(model.head.losses(model(given), given).values()).backward()  # type: ignore[union-attr]
    assert not any(module.training for module in model.backbone.modules())
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert all(parameter.grad is not None for parameter in model.head.parameters())


def test_the_last_layers_of_a_locked_picture_tower_may_learn() -> None:
    options = {"drop_path": 0.5}
    model = nano(locked="image", unlocked_layers=1, backbone_options=options).train()
    given = batch()
    sum(model.head.losses(model(given), given).values()).backward()  # type: ignore[union-attr]
    learning = {name for name, each in model.backbone.named_parameters() if each.grad is not None}
    assert learning == {n for n, _ in model.backbone.named_parameters() if n.startswith(("blocks.3.", "norm."))}
    modes = {name: module.training for name, module in model.backbone.named_modules() if name.endswith("drop_path")}
    assert {name for name, training in modes.items() if training} == {"blocks.3.drop_path"}


@pytest.mark.parametrize(("unlocked", "learning"), [(0, ()), (1, ("blocks.2.", "norm."))])
def test_a_locked_text_tower(unlocked: int, learning: tuple[str, ...]) -> None:
    model = nano(locked="text", unlocked_layers=unlocked).train()
    given = batch()
    sum(model.head.losses(model(given), given).values()).backward()  # type: ignore[union-attr]
    assert isinstance(model.head, Clip)
    for name, parameter in model.head.text.named_parameters():
        assert (parameter.grad is not None) == name.startswith(learning or ("-",)), name
    assert not model.head.text.get_submodule("blocks.1").training
    assert model.head.text.get_submodule("blocks.2").training == bool(unlocked)
    assert model.head.text_proj.weight.grad is not None


def test_what_a_locked_tower_cant_be() -> None:
    with pytest.raises(UserError, match="unlocked_layers are those of a locked tower"):
        nano(unlocked_layers=1)
    with pytest.raises(UserError, match="unlocked_layers is 9, and the backbone has 4 layers"):
        nano(locked="image", unlocked_layers=9)


def test_widths_that_differ_are_named_with_the_way_out() -> None:
    with pytest.raises(UserError, match="the image tower is 64 wide and the common space 16: set dim: 64 or image_pro"):
        nano(image_projection="none")
    with pytest.raises(UserError, match="the text tower is 64 wide and the common space 16: set dim: 64 or text_pro"):
        nano(text_projection="none")


def test_levels_alone_are_not_enough() -> None:
    tower = create_backbone("vit_nano_patch8")
    with pytest.raises(UserError, match=r"head clip reads a backbone's vector.*create_head\('clip', backbone\)"):
        create_head("clip", tower.levels, text=NANO)


def test_an_adapter_would_not_be_used() -> None:
    tower = create_backbone("vit_nano_patch8", adapter="simple_pyramid")
    with pytest.raises(UserError, match="Clip reads nothing of adapter simple_pyramid: leave the adapter out"):
        Model(tower, create_head("clip", tower, text=NANO))


def test_open_clips_tokenizer_is_at_hand() -> None:
    tower = create_backbone("vit_nano_patch8")
    module = create_head("clip", tower, text={"name": "clip_text_nano"})
    assert isinstance(module, Clip)
    expected = open_clip.tokenize(["two dogs", "a cat on a roof"])
    torch.testing.assert_close(module.tokenizer(["two dogs", "a cat on a roof"]), expected[:, :7])


def test_pictures_without_captions_are_told() -> None:
    model = nano()
    images: Any = {"images": batch()["images"]}
    with pytest.raises(UserError, match="learns from captions, but the batch has only images"):
        model.head.losses(model(images), images)
