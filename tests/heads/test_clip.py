"""CLIP and SigLIP end to end on our backbone beside open_clip and transformers, on the same weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import open_clip
import pytest
import timm
import torch
import transformers
from open_clip.loss import ClipLoss, SigLipLoss
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch import Tensor, nn

from heads import create_head
from heads.clip import Clip
from vitdense.build import create_backbone
from vitdense.contracts import Batch
from vitdense.errors import UserError
from vitdense.model import Model
from vitdense.optim import OptimConfig, parameter_groups
from vitdense.weights import clip as clip_names
from vitdense.weights import siglip as siglip_names

TYPES = [torch.float32, torch.float64]
VIT: Any = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "image_size": 24, "mlp_ratio": 4.0}
PLAIN: Any = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # pictures as they are, for all of them
TEXT = {"width": 48, "depth": 2, "num_heads": 3, "context": 11, "vocab": 99}
SIGLIP_TEXT = {"name": "siglip_text_base", **TEXT, "width": 32, "num_heads": 2}


class Case(NamedTuple):
    """A model of another library, ours, the names, and how theirs tells (image, text, logits (B, B), loss)."""

    theirs: nn.Module
    ours: Model
    rows: Any
    run: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]


def pictures() -> Tensor:
    return torch.randn(4, 3, 24, 24)


def texts(*, end: int = 98, pad: int = 0) -> Tensor:
    tokens = torch.full((4, 11), pad)
    for row, length in enumerate((2, 5, 8, 11)):
        tokens[row, :length] = torch.randint(3, 97, (length,))
        tokens[row, length - 1] = end
    return tokens


def ours(backbone: str, head: str, *, activation: str, **options: Any) -> Model:
    tower = create_backbone(backbone, **VIT, **PLAIN, activation=activation)
    return Model(tower, create_head(head, tower, **options))


# ---------------------------------------------------------------- the models beside which ours stand


def of_open_clip(copying: Any, activation: str) -> Case:
    quick = activation == "quick_gelu"
    vision = CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=24)
    text = CLIPTextCfg(context_length=11, vocab_size=99, width=48, heads=3, layers=2)
    theirs = CLIP(20, vision, text, quick_gelu=quick)
    rows = (
        *copying.under("visual.", "backbone.", clip_names.OPEN_CLIP),
        copying.row("visual.proj", "head.image_proj.weight", change=copying.turned),
        *copying.under("", "head.text.", copying.text["open_clip"]),
        copying.row("text_projection", "head.text_proj.weight", change=copying.turned),
        copying.row("logit_scale", "head.logit_scale"),
    )
    text_options = {"name": "clip_text_nano", **TEXT, "activation": activation}
    return Case(
        theirs, ours("clip_base_patch32", "clip", activation=activation, dim=20, text=text_options), rows, run_open_clip
    )


def run_open_clip(model: nn.Module, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    image, text, scale = model(images, tokens)
    return image, text, scale * image @ text.T, ClipLoss()(image, text, scale)


def of_open_clip_siglip(copying: Any) -> Case:
    """timm's tower, as open_clip takes it for SigLIP, but small."""
    text = CLIPTextCfg(
        context_length=11, vocab_size=99, width=32, heads=2, layers=2, no_causal_mask=True, proj_bias=True,
        pool_type="last", norm_kwargs={"eps": 1e-6}, act_kwargs={"approximate": "tanh"},
    )  # fmt: skip
    vision = CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=8, image_size=24)
    theirs = CustomTextCLIP(32, vision, text, init_logit_scale=2.0, init_logit_bias=-1.5)
    theirs.visual = timm.models.vision_transformer.VisionTransformer(
        img_size=24, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, class_token=False,
        global_pool="map", act_layer="gelu_tanh",
    )  # fmt: skip
    rows = (
        *copying.under("visual.", "backbone.", siglip_names.TIMM),
        *copying.under("text.", "head.text.", copying.text["open_clip"]),
        copying.row("text.text_projection.*", "head.text_proj.*"),
        copying.row("logit_scale", "head.logit_scale"),
        copying.row("logit_bias", "head.logit_bias"),
    )
    mine = ours("siglip_base_patch16", "siglip", activation="gelu_tanh", dim=32, text=SIGLIP_TEXT)
    return Case(theirs, mine, rows, run_open_clip_siglip)


def run_open_clip_siglip(model: nn.Module, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    image, text, scale, bias = model(images, tokens)
    return image, text, scale * image @ text.T + bias, SigLipLoss()(image, text, scale, bias)


def of_transformers_clip(copying: Any, activation: str) -> Case:
    sizes = {"num_hidden_layers": 2, "hidden_act": activation}
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config={
                **sizes, "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2, "image_size": 24,
                "patch_size": 8,
            },
            text_config={
                **sizes, "hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 3, "vocab_size": 99,
                "max_position_embeddings": 11, "eos_token_id": 98,
            },
            projection_dim=20,
        )
    )  # fmt: skip
    rows = (
        *copying.under("vision_model.", "backbone.", clip_names.TRANSFORMERS),
        *copying.under("text_model.", "head.text.", copying.text["transformers"]),
        copying.row("visual_projection.*", "head.image_proj.*"),
        copying.row("text_projection.*", "head.text_proj.*"),
        copying.row("logit_scale", "head.logit_scale"),
    )
    text = {"name": "clip_text_nano", **TEXT, "activation": activation, "end_token": 98}
    mine = ours("clip_base_patch32", "clip", activation=activation, dim=20, text=text)
    return Case(theirs, mine, rows, run_transformers)


def of_transformers_siglip(copying: Any, version: str) -> Case:
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2}
    pixels = {"patch_size": 8, **({"num_patches": 9} if version == "Siglip2" else {"image_size": 24})}
    config = getattr(transformers, f"{version}Config")(
        vision_config={**sizes, **pixels},
        text_config={**sizes, "vocab_size": 99, "max_position_embeddings": 11, "projection_size": 32},
    )
    theirs = getattr(transformers, f"{version}Model")(config)
    with torch.no_grad():
        theirs.logit_scale.fill_(2.0)
        theirs.logit_bias.fill_(-1.5)
    rows = (
        *copying.under("vision_model.", "backbone.", siglip_names.TRANSFORMERS),
        *copying.under("text_model.", "head.text.", copying.text["transformers"]),
        copying.row("text_model.head.*", "head.text_proj.*"),
        copying.row("logit_scale", "head.logit_scale", change=copying.scalar),
        copying.row("logit_bias", "head.logit_bias", change=copying.scalar),
    )
    mine = ours("siglip_base_patch16", "siglip", activation="gelu_tanh", dim=32, text=SIGLIP_TEXT)
    return Case(theirs, mine, rows, run_patches if version == "Siglip2" else run_transformers)


def run_transformers(model: nn.Module, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = model(pixel_values=images, input_ids=tokens, return_loss=True)
    return found.image_embeds, found.text_embeds, found.logits_per_image, found.loss


def run_patches(model: nn.Module, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(4, 9, -1)
    everything = {
        "pixel_attention_mask": torch.ones(4, 9, dtype=torch.long), "spatial_shapes": torch.full((4, 2), 3),
    }  # fmt: skip
    found = model(pixel_values=patches, input_ids=tokens, return_loss=True, **everything)
    return found.image_embeds, found.text_embeds, found.logits_per_image, found.loss


CASES: dict[str, Callable[[Any], Case]] = {
    "open_clip gelu": lambda copying: of_open_clip(copying, "gelu"),
    "open_clip quick_gelu": lambda copying: of_open_clip(copying, "quick_gelu"),
    "open_clip siglip": of_open_clip_siglip,
    "transformers clip gelu": lambda copying: of_transformers_clip(copying, "gelu"),
    "transformers clip quick_gelu": lambda copying: of_transformers_clip(copying, "quick_gelu"),
    "transformers siglip": lambda copying: of_transformers_siglip(copying, "Siglip"),
    "transformers siglip2": lambda copying: of_transformers_siglip(copying, "Siglip2"),
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", CASES)
def test_embeddings_logits_loss_and_gradients_are_those_of(copying: Any, name: str, dtype: torch.dtype) -> None:
    case = CASES[name](copying)
    copying.copy(case.theirs, case.ours, case.rows)
    theirs, model = case.theirs.to(dtype).train(), case.ours.to(dtype).train()
    images, tokens = pictures().to(dtype), texts()
    image, text, logits, loss = case.run(theirs, images, tokens)
    outputs = model({"images": images, "tokens": tokens})
    copying.assert_same(outputs["image_embeddings"], image)
    copying.assert_same(outputs["text_embeddings"], text)
    mine = outputs["logit_scale"] * outputs["image_embeddings"] @ outputs["text_embeddings"].T
    copying.assert_same(mine + outputs.get("logit_bias", 0), logits)
    assert logits.std() > 0.3  # the pairs differ
    (found,) = model.head.losses(outputs, {"tokens": tokens}).values()
    copying.assert_same(found, loss)
    torch.autograd.backward([loss, found])
    copying.assert_same_gradients(theirs, model, case.rows)


# ---------------------------------------------------------------- the head by itself

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


# ---------------------------------------------------------------- locked towers


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


# ---------------------------------------------------------------- mistakes


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
