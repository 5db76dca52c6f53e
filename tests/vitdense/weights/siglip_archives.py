"""SigLIP as its authors publish it: big_vision's archives of arrays, made of a network of timm."""

from typing import Any

import numpy as np


def big_vision_archive(model: Any, *, stacked: bool) -> dict[str, Any]:
    """timm's tower as big_vision names and shapes it: kernels as (in, out), heads apart."""
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}

    def dense(name: str, key: str) -> dict[str, Any]:
        return {f"{name}/kernel": state[f"{key}.weight"].T, f"{name}/bias": state[f"{key}.bias"]}

    def norm(name: str, key: str) -> dict[str, Any]:
        return {f"{name}/scale": state[f"{key}.weight"], f"{name}/bias": state[f"{key}.bias"]}

    def heads(name: str, weight: Any, bias: Any) -> dict[str, Any]:
        return {f"{name}/kernel": weight.T.reshape(48, 3, 16), f"{name}/bias": bias.reshape(3, 16)}

    def attention(name: str, projections: dict[str, tuple[Any, Any]], out: str) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for role, (weight, bias) in projections.items():
            made |= heads(f"{name}/{role}", weight, bias)
        last = {
            f"{name}/out/kernel": state[f"{out}.weight"].T.reshape(3, 16, 48),
            f"{name}/out/bias": state[f"{out}.bias"],
        }
        return made | last

    def block(i: int) -> dict[str, Any]:
        key, mha = f"blocks.{i}", "MultiHeadDotProductAttention_0"
        parts = zip(
            np.split(state[f"{key}.attn.qkv.weight"], 3), np.split(state[f"{key}.attn.qkv.bias"], 3), strict=True
        )
        made = attention(mha, dict(zip(("query", "key", "value"), parts, strict=True)), f"{key}.attn.proj")
        made |= norm("LayerNorm_0", f"{key}.norm1") | norm("LayerNorm_1", f"{key}.norm2")
        return made | dense("MlpBlock_0/Dense_0", f"{key}.mlp.fc1") | dense("MlpBlock_0/Dense_1", f"{key}.mlp.fc2")

    pool = "attn_pool"
    queries = (state[f"{pool}.q.weight"], state[f"{pool}.q.bias"])
    keys, values = zip(np.split(state[f"{pool}.kv.weight"], 2), np.split(state[f"{pool}.kv.bias"], 2), strict=True)
    head = {"probe": state[f"{pool}.latent"], **norm("LayerNorm_0", f"{pool}.norm")}
    projections = {"query": queries, "key": keys, "value": values}
    head |= attention("MultiHeadDotProductAttention_0", projections, f"{pool}.proj")
    head |= dense("MlpBlock_0/Dense_0", f"{pool}.mlp.fc1") | dense("MlpBlock_0/Dense_1", f"{pool}.mlp.fc2")
    blocks = [block(i) for i in range(3)]
    archive = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "pos_embedding": state["pos_embed"],
        **norm("Transformer/encoder_norm", "norm"),
        **{f"MAPHead_0/{name}": array for name, array in head.items()},
    }
    if stacked:
        archive |= {f"Transformer/encoderblock/{name}": np.stack([each[name] for each in blocks]) for name in blocks[0]}
    else:
        archive |= {
            f"Transformer/encoderblock_{i}/{name}": each[name] for i, each in enumerate(blocks) for name in each
        }
    text = {"params/t": np.zeros(1), "params/b": np.zeros(1), "params/txt/pos_embedding": np.zeros((1, 4, 8))}
    return {f"params/img/{name}": array for name, array in archive.items()} | text
