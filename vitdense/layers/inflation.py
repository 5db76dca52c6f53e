"""Weights of picture networks made into those of clips and volumes, so that a clip that stands still is the picture.

Kernels as in I3D (https://arxiv.org/abs/1705.07750, "mean") and ViViT (https://arxiv.org/abs/2103.15691, "central").
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["central", "mean"]

_TEMPORAL = re.compile(r"(blocks\.\d+\.)temporal_(attn|norm1)\.(.+)")


def inflate_kernel(kernel: Tensor, count: int, how: Kernel) -> Tensor:
    """kernel: (out, in, h, w) -> (out, in, count, h, w): all in the central frame, or an equal part in each."""
    if how == "mean":
        return (kernel / count)[:, :, None].expand(-1, -1, count, -1, -1).contiguous()
    inflated = kernel.new_zeros(*kernel.shape[:2], count, *kernel.shape[2:])
    inflated[:, :, count // 2] = kernel
    return inflated


def repeat_positions(table: Tensor, rows: int, times: int) -> Tensor:
    """table: (1, rows + h * w, C) -> (1, rows + times * h * w, C): each time has the picture's places."""
    return torch.cat([table[:, :rows], table[:, rows:].repeat(1, times, 1)], dim=1)


def still_in_time(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What attention over time adds to the weights of a picture network, under the names in `wanted` that it lacks.

    Attention and norm start as copies of those over space, with a last linear layer of zeros, so that nothing moves
    before something was learnt (TimeSformer's authors leave the first block's layer random); times add zero.
    """
    made: dict[str, Tensor] = {}
    divided = any(".temporal_fc." in key for key in wanted)
    for key, like in wanted.items():
        match = _TEMPORAL.fullmatch(key)
        if key in state:
            continue
        if key == "time_embed" or ".temporal_fc." in key:
            made[key] = torch.zeros_like(like)
        elif match is not None:
            last = match[2] == "attn" and match[3].startswith("proj.") and not divided
            source = state.get(f"{match[1]}{match[2]}.{match[3]}")
            if source is not None:
                made[key] = torch.zeros_like(source) if last else source.clone()
    return made
