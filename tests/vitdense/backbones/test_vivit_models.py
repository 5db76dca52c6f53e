"""ViViT's models 2, 3 and 4 equal what is written here in NumPy, from the paper and its authors' code in JAX.

No reference in PyTorch is installed: transformers has model 1 alone. The arrays below know nothing of our layers; of
ours they take the tensors by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vitdense.contracts import BACKBONES, Backbone

Array = Any
State = Mapping[str, Array]
HEADS, DOUBLE = 2, 1e-9
SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": HEADS, "out_indices": (0, 1)}


def filled(name: str, **options: Any) -> tuple[Backbone, State]:
    generator = torch.Generator().manual_seed(0)
    backbone = BACKBONES.create(name, {**SMALL, **options}).build().double().eval()
    with torch.no_grad():
        for key, parameter in backbone.named_parameters():
            centre = 1.0 if parameter.ndim == 1 and key.endswith("weight") else 0.0
            parameter.copy_(centre + 0.12 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return backbone, {key: tensor.numpy() for key, tensor in backbone.state_dict().items()}


def norm(state: State, name: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * state[f"{name}.weight"] + state[f"{name}.bias"]
    )


def linear(state: State, name: str, x: Array) -> Array:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def gelu(x: Array) -> Array:
    """The approximation by tanh, which is JAX's default."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mlp(state: State, block: str, x: Array) -> Array:
    hidden = gelu(linear(state, f"{block}.mlp.fc1", norm(state, f"{block}.norm2", x)))
    return x + linear(state, f"{block}.mlp.fc2", hidden)


def heads_of(state: State, name: str, row: Array) -> Array:
    """row: (n, C) -> queries, keys, values: (3, heads, n, d)."""
    count = len(row)
    return linear(state, f"{name}.qkv", row).reshape(count, 3, HEADS, -1).transpose(1, 2, 0, 3)


def softmax_mix(q: Array, k: Array, v: Array) -> Array:
    logits = q @ k.T / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def attend(state: State, name: str, row: Array) -> Array:
    """row: (n, C), normed: all tokens of a row to each other."""
    q, k, v = heads_of(state, name, row)
    mixed = np.concatenate([softmax_mix(q[h], k[h], v[h]) for h in range(HEADS)], axis=-1)
    return linear(state, f"{name}.proj", mixed)


def encoder(state: State, blocks: str, row: Array) -> Array:
    for i in range(2):
        block = f"{blocks}.{i}"
        row = row + attend(state, f"{block}.attn", norm(state, f"{block}.norm1", row))
        row = mlp(state, block, row)
    return row


def embedded(state: State, clip: Array) -> Array:
    """clip: (3, T, H, W) -> (t, h, w, C): each tubelet of 2 x 8 x 8 by itself."""
    kernel, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    _, frames, height, width = clip.shape
    out = np.zeros((frames // 2, height // 8, width // 8, len(kernel)))
    for t, y, x in np.ndindex(*out.shape[:3]):
        box = clip[:, 2 * t : 2 * t + 2, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8]
        out[t, y, x] = (kernel * box).sum((1, 2, 3, 4)) + bias
    return out


def model_2(state: State, clip: Array) -> tuple[Array, Array]:
    """The factorised encoder: maps (t, h, w, C) of the transformer over space, vector of the one over time."""
    cells = embedded(state, clip)
    times, rows, columns, dim = cells.shape
    maps, found = np.zeros_like(cells), np.zeros((times, dim))
    for t in range(times):
        row = np.concatenate([state["cls_token"][0], cells[t].reshape(-1, dim)]) + state["pos_embed"][0]
        row = norm(state, "norm", encoder(state, "blocks", row))
        found[t], maps[t] = row[0], row[1:].reshape(rows, columns, dim)
    row = np.concatenate([state["time_token"][0], found]) + state["time_embed"][0]
    return maps, norm(state, "time_norm", encoder(state, "time_blocks", row))[0]


def model_3(state: State, clip: Array) -> tuple[Array, Array]:
    """Factorised self-attention: in each block first over time, then over space."""
    cells = embedded(state, clip)
    times, rows, columns, dim = cells.shape
    x = cells.reshape(times, -1, dim) + state["pos_embed"][0].reshape(times, -1, dim)
    for i in range(2):
        block, over_time = f"blocks.{i}", x.copy()
        for place in range(rows * columns):
            normed = norm(state, f"{block}.temporal_norm1", x[:, place])
            over_time[:, place] += attend(state, f"{block}.temporal_attn", normed)
        over_space = over_time.copy()
        for t in range(times):
            over_space[t] += attend(state, f"{block}.attn", norm(state, f"{block}.norm1", over_time[t]))
        x = mlp(state, block, over_space)
    x = norm(state, "norm", x)
    return x.reshape(cells.shape), x.mean((0, 1))


def model_4(state: State, clip: Array) -> tuple[Array, Array]:
    """Factorised dot product: the first half of the heads over time, the second over space."""
    cells = embedded(state, clip)
    times, rows, columns, dim = cells.shape
    x = cells.reshape(times, -1, dim) + state["pos_embed"][0].reshape(times, -1, dim)
    for i in range(2):
        block = f"blocks.{i}"
        q, k, v = heads_of(state, f"{block}.attn", norm(state, f"{block}.norm1", x).reshape(-1, dim))
        q, k, v = (each.reshape(HEADS, times, rows * columns, -1) for each in (q, k, v))
        mixed = np.zeros((times, rows * columns, HEADS, q.shape[-1]))
        for place in range(rows * columns):
            mixed[:, place, 0] = softmax_mix(q[0, :, place], k[0, :, place], v[0, :, place])
        for t in range(times):
            mixed[t, :, 1] = softmax_mix(q[1, t], k[1, t], v[1, t])
        x = x + linear(state, f"{block}.attn.proj", mixed.reshape(times, -1, dim))
        x = mlp(state, block, x)
    x = norm(state, "norm", x)
    return x.reshape(cells.shape), x.mean((0, 1))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("vivit_nano_patch8_factorised", model_2),
        ("vivit_nano_patch8_factorised_attention", model_3),
        ("vivit_nano_patch8_dot_product", model_4),
    ],
)
def test_it_equals_the_paper(name: str, oracle: Callable[[State, Array], tuple[Array, Array]]) -> None:
    backbone, state = filled(name, frames=8, image_size=24)
    clips = torch.randn(2, 3, 8, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    maps, vector = backbone(clips)[-1], backbone.embed(clips)
    single = backbone.float()(clips.float())[-1]
    for i in range(2):
        expected, pooled = (torch.from_numpy(each) for each in oracle(state, clips[i].numpy()))
        assert apart(maps[i], expected.movedim(-1, 0)) < DOUBLE
        assert apart(vector[i], pooled) < DOUBLE
        assert apart(single[i].double(), expected.movedim(-1, 0)) < 1e-5


def apart(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert float(theirs.abs().mean()) > 0.2, "the oracle's numbers carry no signal"
    return float((ours - theirs).abs().max() / theirs.abs().mean().clamp(min=1))
