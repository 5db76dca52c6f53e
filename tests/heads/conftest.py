"""What tests of contrastive heads share: other libraries' names of text towers, weights that carry signal."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from vitdense.weights.rows import Change, Row, translate

Rows = tuple[Row, ...]
TURNED = Change(lambda table: table.mT, lambda table: table.mT)
_THEIRS, _OURS, _QKV = "encoder.layers.{i}", "blocks.{i}", "blocks.{i}.attn.qkv.*"
_RESIDUAL = "transformer.resblocks.{i}"


def open_clip_blocks(theirs: str, ours: str) -> Rows:
    return (
        Row(theirs + ".ln_{j}.*", ours + ".norm{j}.*"),
        Row(theirs + ".attn.in_proj_*", ours + ".attn.qkv.*"),
        Row(theirs + ".attn.out_proj.*", ours + ".attn.proj.*"),
        Row(theirs + ".mlp.c_fc.*", ours + ".mlp.fc1.*"),
        Row(theirs + ".mlp.c_proj.*", ours + ".mlp.fc2.*"),
    )


TEXT_ROWS: dict[str, Rows] = {
    "open_clip": (
        Row("token_embedding.weight", "token_embed.weight"),
        Row("positional_embedding", "pos_embed"),
        Row("cls_emb", "cls_token"),
        *open_clip_blocks(_RESIDUAL, _OURS),
        Row("ln_final.*", "norm.*"),
    ),
    "transformers": (
        Row("embeddings.token_embedding.weight", "token_embed.weight"),
        Row("embeddings.position_embedding.weight", "pos_embed"),
        Row(_THEIRS + ".layer_norm{j}.*", _OURS + ".norm{j}.*"),
        Row(_THEIRS + ".self_attn.q_proj.*", _QKV, part=(0, 3)),
        Row(_THEIRS + ".self_attn.k_proj.*", _QKV, part=(1, 3)),
        Row(_THEIRS + ".self_attn.v_proj.*", _QKV, part=(2, 3)),
        Row(_THEIRS + ".self_attn.out_proj.*", _OURS + ".attn.proj.*"),
        Row(_THEIRS + ".mlp.fc{j}.*", _OURS + ".mlp.fc{j}.*"),
        Row("final_layer_norm.*", "norm.*"),
    ),
}


class Copying:
    """Tables of names, and what copies by them."""

    text = TEXT_ROWS
    turned = TURNED
    scalar = Change(lambda vector: vector[0])
    row = Row
    open_clip_blocks = staticmethod(open_clip_blocks)

    @staticmethod
    def under(theirs: str, ours: str, rows: Iterable[Row]) -> Rows:
        """The same rows for modules that are parts of others."""
        return tuple(
            replace(row, theirs=tuple(theirs + name for name in row.names), ours=ours + row.ours) for row in rows
        )

    @staticmethod
    def carry_signal(module: nn.Module) -> None:
        """Random weights whose outputs depend on every one of them; scalars stay."""
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                scale = 1.0 if "embed" in name else parameter[0].numel() ** -0.5
                nn.init.normal_(parameter, std=scale)
            elif parameter.ndim == 1 and len(parameter) > 1:
                nn.init.normal_(parameter, mean=float("bias" not in name), std=0.3)

    @staticmethod
    def translated(tensors: Mapping[str, Tensor], rows: Rows) -> dict[str, Tensor]:
        """Their tensors under our names; all of them must have one, but for tables that are no weights."""
        done = translate(tensors, rows, "in")
        assert not [key for key in done.strange if not key.endswith(("attn_mask", "position_ids"))], done.strange
        return dict(done.state)

    @classmethod
    def copy(cls, theirs: nn.Module, ours: nn.Module, rows: Rows) -> None:
        """Random weights for theirs, and the same for ours."""
        cls.carry_signal(theirs)
        ours.load_state_dict(cls.translated(theirs.state_dict(), rows))

    @classmethod
    def assert_same_gradients(cls, theirs: nn.Module, ours: nn.Module, rows: Rows) -> None:
        """Every parameter has its gradient, and it is theirs up to rounding."""
        given = {name: each.grad for name, each in theirs.named_parameters() if each.grad is not None}
        expected = cls.translated(given, rows)
        found = {name: each.grad for name, each in ours.named_parameters() if each.requires_grad}
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            assert gradient is not None, name
            cls.assert_same(gradient, expected[name], name)

    @staticmethod
    def assert_same(found: Tensor, expected: Tensor, name: str = "") -> None:
        """Up to 1e-5 of the largest value in fp32, 1e-9 in fp64."""
        bound = 1e-9 if found.dtype == torch.float64 else 1e-5
        size = max(float(expected.detach().abs().max()), 1.0)
        torch.testing.assert_close(found, expected, atol=bound * size, rtol=0, msg=lambda text: f"{name}: {text}")


@pytest.fixture(scope="session")
def copying() -> type[Copying]:
    return Copying


@pytest.fixture
def signal() -> Callable[[nn.Module], None]:
    return Copying.carry_signal
