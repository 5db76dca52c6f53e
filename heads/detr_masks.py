"""DETR's masks: where each query attends, refined by convolutions up to a quarter of the picture's size (Carion et al.
2020, https://arxiv.org/abs/2005.12872); parameters are named as in transformers' DetrForSegmentation."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.errors import UserError

_GROUPS = 8
_QUERIES_AT_ONCE = 16
"""Without a backward pass, so many queries are refined together: they fill a CPU's cores and leave the peak low."""


class BoxAttention(nn.Module):
    """How much each query looks at each cell, by head; one softmax over the cells of all heads."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        for layer in (self.q_proj, self.k_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, memory: Tensor, seen: Tensor | None) -> Tensor:
        """queries: (B, Q, C), memory: (B, N, C), seen: (B, 1, 1, N) bool, what is no padding -> (B, Q, heads, N)."""
        queries, keys = (
            layer(each).unflatten(-1, (self.num_heads, -1))
            for layer, each in ((self.q_proj, queries), (self.k_proj, memory))
        )
        scores = torch.einsum("bqhc,bnhc->bqhn", queries * queries.shape[-1] ** -0.5, keys)
        if seen is not None:
            scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        return scores.flatten(2).softmax(-1).view_as(scores)


class ConvBlock(nn.Module):
    """Convolution of 3 x 3, group norm, ReLU."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(min(_GROUPS, out_channels), out_channels)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (M, C, h, w) -> (M, C_out, h, w)."""
        out: Tensor = self.norm(self.conv(maps)).relu_()
        return out


class FusionStage(nn.Module):
    """A finer map of the backbone, added to the enlarged masks of its picture's queries."""

    def __init__(self, finer_channels: int, channels: int, out_channels: int) -> None:
        super().__init__()
        self.fpn_adapter = nn.Conv2d(finer_channels, channels, kernel_size=1)
        self.refine = ConvBlock(channels, out_channels)

    def forward(self, maps: Tensor, finer: Tensor, pictures: Tensor) -> Tensor:
        """maps: (M, C, h, w), finer: (B, C, H, W), adapted, pictures: (M,) -> (M, C_out, H, W)."""
        enlarged = F.interpolate(maps, size=finer.shape[-2:], mode="nearest")
        out: Tensor = self.refine(enlarged.add_(finer[pictures]))
        return out


class MaskHead(nn.Module):
    """Attention maps of queries -> mask logits at the size of the finest of up to three maps.

    The first convolution is taken of a picture's map once and of each query's attention, which is the same as of both
    joined for each query; so are the finer maps adapted once for all queries.
    """

    def __init__(self, channels: int, num_heads: int, finer_channels: Sequence[int]) -> None:
        super().__init__()
        joined = channels + num_heads
        widths = [channels >> (i + 1) for i in range(len(finer_channels) + 1)]
        if any(width % min(_GROUPS, width or 1) or not width for width in (joined, *widths)):
            raise UserError(
                f"masks of {channels} channels and {num_heads} heads: all of {[joined, *widths]} must be above 0 and, "
                f"above {_GROUPS}, multiples of {_GROUPS}; take channels: 256"
            )
        self.channels = channels
        self.conv1 = ConvBlock(joined, joined)
        self.conv2 = ConvBlock(joined, widths[0])
        self.fpn_stages = nn.ModuleList(
            FusionStage(finer, a, b) for finer, a, b in zip(finer_channels, widths[:-1], widths[1:], strict=True)
        )
        self.output_conv = nn.Conv2d(widths[-1], 1, kernel_size=3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, projected: Tensor, attention: Tensor, finer: Sequence[Tensor], pictures: Tensor) -> Tensor:
        """projected: (B, C, h, w), attention: (M, heads, h, w) of queries of `pictures` (M,), finer maps from coarse to
        fine (B, C_i, h_i, w_i) -> (M, H, W) at the finest size.
        """
        weight, bias = self.conv1.conv.weight, self.conv1.conv.bias
        shared = F.conv2d(projected, weight[:, : self.channels], bias, padding=1)
        stages = zip(self.fpn_stages, finer, strict=True)
        adapted = [_convolved(stage.get_submodule("fpn_adapter"), maps) for stage, maps in stages]
        if torch.is_grad_enabled():
            return self._refine(shared, attention, adapted, pictures)
        starts = range(0, len(pictures), _QUERIES_AT_ONCE)
        parts = [slice(start, start + _QUERIES_AT_ONCE) for start in starts]
        return torch.cat([self._refine(shared, attention[part], adapted, pictures[part]) for part in parts])

    def _refine(self, shared: Tensor, attention: Tensor, adapted: Sequence[Tensor], pictures: Tensor) -> Tensor:
        maps = F.conv2d(attention, self.conv1.conv.weight[:, self.channels :], padding=1)
        maps = self.conv2(self.conv1.norm(maps.add_(shared[pictures])).relu_())
        for stage, finer in zip(self.fpn_stages, adapted, strict=True):
            maps = stage(maps, finer, pictures)
        out: Tensor = self.output_conv(maps)[:, 0]
        return out


def _convolved(conv: nn.Module, maps: Tensor) -> Tensor:
    out: Tensor = conv(maps)
    return out
