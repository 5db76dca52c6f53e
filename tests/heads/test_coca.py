"""CoCa beside open_clip's, on the same weights, and its captions."""

from typing import Any

import open_clip
import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.loss import CoCaLoss
from torch import Tensor

from heads import create_head
from heads.coca import Coca
from vitdense.build import create_backbone
from vitdense.errors import UserError
from vitdense.model import Model
from vitdense.optim import OptimConfig, parameter_groups
from vitdense.weights.clip import OPEN_CLIP

VIT: Any = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "image_size": 24, "mlp_ratio": 4.0}
TEXT = {"name": "coca_text_nano", "width": 48, "depth": 2, "num_heads": 3, "context": 11, "vocab": 99}
CHOSEN = {"dim": 48, "num_queries": 5, "pool_heads": 4, "decoder_depth": 2, "decoder_heads": 6}


def theirs(*, quick_gelu: bool = False) -> CoCa:
    return CoCa(
        48,
        multimodal_cfg={"context_length": 11, "vocab_size": 99, "width": 48, "heads": 6, "layers": 2},
        text_cfg={
            "context_length": 11, "vocab_size": 99, "width": 48, "heads": 3, "layers": 2, "embed_cls": True,
            "output_tokens": True,
        },
        vision_cfg={
            "image_size": 24, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "attentional_pool": True,
            "attn_pooler_heads": 4, "attn_pooler_queries": 5, "output_tokens": True,
        },
        quick_gelu=quick_gelu,
    )  # fmt: skip


def ours(activation: str = "gelu", **options: Any) -> Model:
    plain: Any = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    backbone = create_backbone("clip_base_patch32", **VIT, **plain, activation=activation)
    return Model(
        backbone, create_head("coca", backbone, **{**CHOSEN, "text": {**TEXT, "activation": activation}, **options})
    )


def rows(copying: Any) -> Any:
    """Their pool's norm of the picture's tokens is our backbone's last."""
    cross = "text_decoder.cross_attn.{i}", "head.decoder.cross_blocks.{i}"
    pool = copying.under("visual.attn_pool.attn.", "head.pool.attn.", _separate(copying))
    return (
        copying.row("visual.attn_pool.ln_k.*", "backbone.norm.*"),
        copying.row("visual.attn_pool.query", "head.pool.query"),
        copying.row("visual.attn_pool.ln_q.*", "head.pool.norm_q.*"),
        *pool,
        copying.row("visual.ln_post.*", "head.norm.*"),
        copying.row("visual.proj", "head.image_proj.weight", change=copying.turned),
        *copying.under("visual.", "backbone.", OPEN_CLIP),
        *copying.under("text.", "head.text.", copying.text["open_clip"]),
        copying.row("text.text_projection", "head.text_proj.weight", change=copying.turned),
        *copying.open_clip_blocks("text_decoder.resblocks.{i}", "head.decoder.blocks.{i}"),
        copying.row(cross[0] + ".ln_1_kv.*", cross[1] + ".norm_kv.*"),
        copying.row(cross[0] + ".attn.in_proj_*", cross[1] + ".attn.q.*", cut=(0, 1, 3)),
        copying.row(cross[0] + ".attn.in_proj_*", cross[1] + ".attn.kv.*", cut=(1, 3, 3)),
        *copying.open_clip_blocks(*cross),
        copying.row("text_decoder.ln_final.*", "head.decoder.norm.*"),
        copying.row("text_decoder.text_projection", "head.decoder.to_logits.weight", change=copying.turned),
        copying.row("logit_scale", "head.logit_scale"),
    )


def _separate(copying: Any) -> Any:
    """Attention whose queries are wider than its keys has three weights and one bias."""
    return (
        copying.row("q_proj_weight", "q.weight"),
        copying.row("k_proj_weight", "kv.weight", part=(0, 2)),
        copying.row("v_proj_weight", "kv.weight", part=(1, 2)),
        copying.row("in_proj_bias", "q.bias", cut=(0, 1, 3)),
        copying.row("in_proj_bias", "kv.bias", cut=(1, 3, 3)),
        copying.row("out_proj.*", "proj.*"),
    )


def texts() -> Tensor:
    tokens = torch.zeros(4, 11, dtype=torch.long)
    for row, length in enumerate((2, 5, 8, 11)):
        tokens[row, :length] = torch.randint(3, 97, (length,))
        tokens[row, length - 1] = 98
    return tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_it_is_open_clips(copying: Any, activation: str, dtype: torch.dtype) -> None:
    reference, model = theirs(quick_gelu=activation == "quick_gelu"), ours(activation)
    names = rows(copying)
    copying.copy(reference, model, names)
    reference, model = reference.to(dtype).train(), model.to(dtype).train()
    images, tokens = torch.randn(4, 3, 24, 24, dtype=dtype), texts()
    expected, outputs = reference(images, tokens), model({"images": images, "tokens": tokens})
    copying.assert_same(outputs["image_embeddings"], expected["image_features"])
    copying.assert_same(outputs["text_embeddings"], expected["text_features"])
    copying.assert_same(outputs["caption_logits"], expected["logits"])
    copying.assert_same(model.encode_image(images), expected["image_features"])
    labels = expected.pop("labels")
    wanted = CoCaLoss(2.0, 1.0)(**expected, labels=labels)
    losses = model.head.losses(outputs, {"tokens": tokens})
    assert list(losses) == ["loss_clip", "loss_caption"]
    for found, loss in zip(losses.values(), wanted, strict=True):
        copying.assert_same(found, loss)
    torch.autograd.backward([sum(wanted), sum(losses.values())])
    copying.assert_same_gradients(reference, model, names)


def test_captions_are_the_likeliest_tokens_one_by_one(copying: Any) -> None:
    reference, model = theirs().eval(), ours(start_token=97, stop_token=98).eval()
    copying.copy(reference, model, rows(copying))
    assert isinstance(model.head, Coca)
    images = torch.randn(6, 3, 24, 24)
    found = model.head.caption_tokens(model.features(images))
    tokens = torch.full((6, 1), 97)
    with torch.no_grad():
        for _ in range(found.shape[1] - 1):
            logits = reference(images, tokens, output_labels=False)["logits"]
            tokens = torch.cat([tokens, logits[:, -1:].argmax(dim=-1)], dim=1)
    stops = [row.index(98) if 98 in row else len(row) for row in tokens.tolist()]
    for row, expected, stop in zip(found.tolist(), tokens.tolist(), stops, strict=True):
        assert row == [*expected[: stop + 1], *[0] * (len(row) - stop - 1)]
    assert found.shape[1] == min(11, max(stops) + 1)
    assert len({tuple(row) for row in found.tolist()}) > 1
    assert model.head.caption_tokens(model.features(images), 4).shape[1] <= 4


def test_a_stopped_caption_is_filled_with_padding() -> None:
    model = ours(start_token=97, stop_token=98).eval()
    assert isinstance(model.head, Coca)
    with torch.no_grad():
        model.head.decoder.norm.weight.zero_()
        model.head.decoder.norm.bias.fill_(1.0)
        model.head.decoder.to_logits.weight[98] = 10.0  # the stop token, always
    assert model.head.caption_tokens(model.features(torch.randn(2, 3, 24, 24))).tolist() == [[97, 98], [97, 98]]


def test_captions_are_text() -> None:
    backbone = create_backbone("vit_nano_patch8")
    head = create_head("coca", backbone, **CHOSEN, text={"name": "coca_text_nano", "width": 48, "num_heads": 3})
    model = Model(backbone, head).eval()
    assert isinstance(head, Coca)
    features = model.features(torch.rand(2, 3, 40, 56))
    captions = head.caption(features, max_length=5)
    tokens = head.caption_tokens(features, max_length=5)[0, 1:].tolist()
    assert captions[0] == open_clip.tokenizer.decode(torch.tensor(tokens)).strip()


def test_pictures_of_several_captions_are_only_compared() -> None:
    model = ours().eval()
    outputs = model({"images": torch.rand(2, 3, 24, 24), "tokens": texts()})
    assert "caption_logits" not in outputs
    assert outputs["text_embeddings"].shape == (4, 48)


@pytest.mark.parametrize("backbone", ["vit_nano_patch8", "swin_nano", "vit_nano_r_s16"])
def test_every_parameter_learns_on_any_backbone(backbone: str) -> None:
    tower = create_backbone(backbone)
    model = Model(tower, create_head("coca", tower, **CHOSEN, text=TEXT)).train()
    given: Any = {"images": torch.rand(4, 3, 75, 98), "tokens": texts()}
    sum(model.head.losses(model(given), given).values()).backward()  # type: ignore[union-attr]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_weight_decay_leaves_queries_and_tables_alone() -> None:
    model = ours()
    groups = parameter_groups(model, model.backbone, OptimConfig())
    free = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    for name in ("pool.query", "text.pos_embed", "text.token_embed.weight", "text.cls_token"):
        assert id(model.head.get_parameter(name)) in free


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": {"name": "clip_text_nano"}}, "text clip_text_nano has no class token: take coca_text_base"),
        ({"num_queries": 1}, "num_queries is 1, and the decoder reads all but the first"),
        ({"pool_heads": 7}, "dim 48 doesn't divide by pool_heads 7"),
        ({"decoder_heads": 7}, "decoder_heads is 7, and the text tower is 48 wide"),
    ],
)
def test_what_it_cant_be_made_of(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ours(**options)
