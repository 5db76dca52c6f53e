"""Our text transformer beside those of open_clip and transformers, on the same weights."""

from typing import Any

import open_clip
import pytest
import torch
import transformers
from open_clip.transformer import TextTransformer as OpenClipText
from torch import Tensor, nn

from heads.contrastive.text_transformer import TextTransformer
from heads.contrastive.towers import TEXTS
from vitdense.errors import UserError

SMALL = {"width": 48, "depth": 2, "num_heads": 3, "context": 11, "vocab": 99}
TYPES = [torch.float32, torch.float64]
END = 98


def tower(name: str = "clip_text_nano", **options: Any) -> TextTransformer:
    made = TEXTS.create(name, {**SMALL, **options}).build()
    assert isinstance(made, TextTransformer)
    return made


def texts(*, end: int = END, pad: int = 0) -> Tensor:
    """Four texts of several lengths, the last as long as the context."""
    tokens = torch.full((4, 11), pad)
    for row, length in enumerate((2, 5, 8, 11)):
        tokens[row, :length] = torch.randint(3, 97, (length,))
        tokens[row, length - 1] = end
    return tokens


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_clips_tower_is_open_clips(copying: Any, activation: Any, dtype: torch.dtype) -> None:
    act = open_clip.transformer.QuickGELU if activation == "quick_gelu" else nn.GELU
    theirs = OpenClipText(11, 99, 48, 3, 2, output_dim=None, act_layer=act)
    ours, rows = tower(activation=activation), copying.text["open_clip"]
    copying.copy(theirs, ours, rows)
    compare(copying, theirs.to(dtype), ours.to(dtype), rows, texts())


@pytest.mark.parametrize("pool_type", ["last", "eos"])
def test_other_pools_of_open_clip(copying: Any, pool_type: str) -> None:
    options = {"causal": False, "pool": "last"} if pool_type == "last" else {"end_token": 7}
    theirs = OpenClipText(
        11, 99, 48, 3, 2, output_dim=None, pool_type=pool_type, eos_id=7, no_causal_mask=pool_type == "last"
    )
    ours, rows = tower(**options), copying.text["open_clip"]
    copying.copy(theirs, ours, rows)
    compare(copying, theirs.double(), ours.double(), rows, texts(end=7))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("activation", "end"), [("gelu", 2), ("quick_gelu", 50)])
def test_clips_tower_is_that_of_transformers(copying: Any, activation: str, end: int, dtype: torch.dtype) -> None:
    """With the number 2 for the end they take the highest, as old configs have it."""
    theirs = transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=192, vocab_size=99,
            max_position_embeddings=11, hidden_act=activation, eos_token_id=end, projection_dim=20,
        )
    )  # fmt: skip
    ours = Projected(tower(activation=activation, end_token=None if end == 2 else end), 20, bias=False)
    rows = (*copying.under("text_model.", "tower.", copying.text["transformers"]),)
    rows += copying.under("text_projection.", "proj.", [copying.row("weight", "weight")])
    copying.copy(theirs, ours, rows)
    compare(
        copying, nn.Module.to(theirs, dtype), ours.to(dtype), rows, texts(end=END if end == 2 else end), "text_embeds"
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("version", ["Siglip", "Siglip2"])
def test_siglips_tower_is_that_of_transformers(copying: Any, version: str, dtype: torch.dtype) -> None:
    config = getattr(transformers, f"{version}TextConfig")(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=192, vocab_size=99,
        max_position_embeddings=11, projection_size=20,
    )  # fmt: skip
    theirs = getattr(transformers, f"{version}TextModel")(config)
    ours = Projected(tower("siglip_text_base"), 20, bias=True)
    rows = copying.under("", "tower.", copying.text["transformers"])
    rows += copying.under("head.", "proj.", [copying.row("*", "*")])
    copying.copy(theirs, ours, rows)
    compare(copying, theirs.to(dtype), ours.to(dtype), rows, texts(end=1, pad=1), "pooler_output")


class Projected(nn.Module):
    def __init__(self, tower: TextTransformer, dim: int, *, bias: bool) -> None:
        super().__init__()
        self.tower = tower
        self.proj = nn.Linear(tower.width, dim, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.proj(self.tower(tokens))
        return out


def compare(copying: Any, theirs: nn.Module, ours: nn.Module, rows: Any, tokens: Tensor, field: str = "") -> None:
    expected, found = theirs(tokens), ours(tokens)
    expected = getattr(expected, field) if field else expected
    copying.assert_same(found, expected)
    assert found.std(dim=0).mean() > 0.1  # the texts tell on it
    above = torch.randn_like(found)
    torch.autograd.backward([found, expected], [above, above])
    copying.assert_same_gradients(theirs, ours, rows)


@pytest.mark.parametrize("shift", [True, False])
def test_the_class_token_is_open_clips_for_captions(copying: Any, shift: bool) -> None:
    theirs = OpenClipText(11, 99, 48, 3, 2, output_dim=None, embed_cls=True, correct_cls_mask=not shift)
    ours, rows = tower(pool="class", shifted_pad_mask=shift), copying.text["open_clip"]
    copying.copy(theirs, ours, rows)
    compare(copying, theirs.double(), ours.double(), rows, texts())


@pytest.mark.parametrize("end_token", [None, END])
def test_trimmed_tokens_give_exactly_the_untrimmed_result(signal: Any, end_token: int | None) -> None:
    ours, tokens = tower(end_token=end_token).double(), texts()[:3]
    signal(ours)
    results = []
    for given in (tokens, tokens[:, :8]):
        out = ours(given)
        gradients = torch.autograd.grad(out, list(ours.parameters()), torch.ones_like(out))
        results.append([out, *gradients])
    for whole, trimmed in zip(*results, strict=True):
        torch.testing.assert_close(trimmed, whole, atol=1e-13, rtol=1e-13)


def test_recomputing_blocks_changes_nothing(signal: Any) -> None:
    plain, frugal = tower().double(), tower(grad_checkpointing=True).double()
    signal(plain)
    frugal.load_state_dict(plain.state_dict())
    tokens = texts()
    for each in (plain, frugal):
        each(tokens).square().sum().backward()
    for left, right in zip(plain.parameters(), frugal.parameters(), strict=True):
        assert left.grad is not None
        torch.testing.assert_close(left.grad, right.grad)


def test_tables_of_positions_and_tokens_are_left_alone_by_weight_decay() -> None:
    assert tower().no_decay() == {"pos_embed", "token_embed.weight"}


@pytest.mark.parametrize(("unlocked", "learning"), [(0, set()), (1, {"blocks.1", "norm"}), (2, {"blocks", "norm"})])
def test_a_locked_tower_learns_in_its_last_layers(unlocked: int, learning: set[str]) -> None:
    ours = tower()
    ours.lock(unlocked)
    for name, parameter in ours.named_parameters():
        assert parameter.requires_grad == name.startswith(tuple(learning)), name


def test_more_unlocked_layers_than_there_are_is_an_error() -> None:
    with pytest.raises(UserError, match="unlocked_layers is 3, and the text tower has 2 layers"):
        tower().lock(3)


def test_tokens_longer_than_the_context_are_refused() -> None:
    with pytest.raises(UserError, match=r"expected tokens \(N, 11 or fewer\), given \(2, 12\)"):
        tower()(torch.zeros(2, 12, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_heads": 5}, "width 48 doesn't divide by num_heads 5"), ({"pool": "class", "causal": False}, "causal")],
)
def test_options_that_go_together_badly(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TEXTS.create_or_tell("clip_text_nano", {**SMALL, **options})


def test_it_compiles_and_exports_in_one_graph(signal: Any) -> None:
    ours, tokens = tower().eval(), texts()
    signal(ours)
    with torch.no_grad():
        exported = torch.export.export(ours, (tokens,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
        torch.testing.assert_close(exported.module()(tokens[:3]), ours(tokens[:3]))
