"""CLIP and SigLIP end to end on our backbone beside open_clip and transformers, on the same weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import timm
import torch
import transformers
from open_clip.loss import ClipLoss, SigLipLoss
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch import Tensor, nn

from heads import create_head
from vitdense.build import create_backbone
from vitdense.model import Model
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


# ---------------------------------------------------------------- locked towers


# ---------------------------------------------------------------- mistakes
