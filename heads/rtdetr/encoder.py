"""RT-DETR's hybrid encoder: attention within the coarsest level, convolutions that join the levels, coarse to fine and
back (Zhao et al. 2023, https://arxiv.org/abs/2304.08069)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.rtdetr.attention import FeedForward, SelfAttention
from heads.rtdetr.blocks import ConvNorm, CspRepLayer, ElanLayer, ScDown
from heads.rtdetr.config import RtDetrConfig


class EncoderLayer(nn.Module):
    """Attention of all cells and a perceptron, each with its norm behind it, or before it."""

    def __init__(self, config: RtDetrConfig) -> None:
        super().__init__()
        width, eps = config.encoder_hidden_dim, config.layer_norm_eps
        self.normalize_before = config.normalize_before
        self.self_attn = SelfAttention(width, heads=config.encoder_heads, dropout=config.dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(config.dropout)
        self.mlp = FeedForward(
            width, config.encoder_ffn_dim, activation=config.encoder_activation, dropout=config.dropout
        )
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens: (B, N, C), positions: (N, C) -> (B, N, C)."""
        if self.normalize_before:
            # The second residual starts behind the norm, as published.
            tokens = tokens + self.dropout(self.self_attn(self.self_attn_layer_norm(tokens), positions))
            tokens = self.final_layer_norm(tokens)
            return tokens + self.mlp(tokens)  # type: ignore[no-any-return]
        tokens = self.self_attn_layer_norm(tokens + self.dropout(self.self_attn(tokens, positions)))
        return self.final_layer_norm(tokens + self.mlp(tokens))  # type: ignore[no-any-return]


class Aifi(nn.Module):
    """Attention-based intra-scale feature interaction: encoder layers over the cells of one map."""

    def __init__(self, config: RtDetrConfig) -> None:
        super().__init__()
        self.temperature = config.position_temperature
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W) -> the same shape."""
        height, width = maps.shape[-2:]
        tokens = maps.flatten(2).mT  # (B, H * W, C)
        positions = grid_positions(height, width, tokens, self.temperature)
        for layer in self.layers:
            tokens = layer(tokens, positions)
        return tokens.mT.reshape(maps.shape)


class HybridEncoder(nn.Module):
    """Maps of one width, finest first -> as many, each of which has seen the others. Any sizes: a coarse map is
    enlarged by the ratio of the strides, and cut to ceil(H / stride).
    """

    def __init__(self, config: RtDetrConfig, strides: Sequence[int]) -> None:
        super().__init__()
        width, eps = config.encoder_hidden_dim, config.batch_norm_eps
        self.ratios = [coarse // fine for fine, coarse in pairwise(strides)]
        self.aifi = nn.ModuleList([Aifi(config)])
        elan = config.fusion == "elan"
        self.lateral_convs = nn.ModuleList(
            ConvNorm(width, width, activation=None if elan else config.activation, eps=eps) for _ in self.ratios
        )
        self.fpn_blocks = nn.ModuleList(_block(config) for _ in self.ratios)
        self.downsample_convs = nn.ModuleList(
            ScDown(width, stride=ratio, eps=eps)
            if elan
            else ConvNorm(width, width, kernel_size=3, stride=ratio, activation=config.activation, eps=eps)
            for ratio in self.ratios
        )
        self.pan_blocks = nn.ModuleList(_block(config) for _ in self.ratios)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """maps: (B, C, h_i, w_i), finest first -> the same shapes."""
        coarse: Tensor = self.aifi[0](maps[-1])
        joined: list[Tensor] = []  # laterals from the coarsest on, the finest map last
        steps = zip(self.lateral_convs, self.fpn_blocks, reversed(maps[:-1]), reversed(self.ratios), strict=True)
        for lateral, block, fine, ratio in steps:
            coarse = lateral(coarse)
            joined.append(coarse)
            coarse = block(torch.cat([_enlarged(coarse, ratio, fine), fine], dim=1))
        found = [coarse]
        for down, block, beside in zip(self.downsample_convs, self.pan_blocks, reversed(joined), strict=True):
            found.append(block(torch.cat([down(found[-1]), beside], dim=1)))
        return found


def grid_positions(height: int, width: int, like: Tensor, temperature: float) -> Tensor:
    """(height * width, C) for tokens `like` (B, N, C): sines and cosines of the row, then of the column."""
    precise = torch.promote_types(like.dtype, torch.float32)
    rows, columns = (torch.arange(side, dtype=precise, device=like.device) for side in (height, width))
    quarter = like.shape[-1] // 4
    waves = temperature ** -(torch.arange(quarter, dtype=precise, device=like.device) / quarter)
    parts = []
    for angles, shape in ((rows[:, None] * waves, (height, 1)), (columns[:, None] * waves, (1, width))):
        for each in (angles.sin(), angles.cos()):
            parts.append(each.view(*shape, quarter).expand(height, width, quarter))
    return torch.cat(parts, dim=-1).flatten(0, 1).to(like.dtype)


def _enlarged(coarse: Tensor, ratio: int, fine: Tensor) -> Tensor:
    """coarse: (B, C, h, w) -> (B, C, H, W) of `fine`: each cell `ratio` times, what lies beyond is cut off."""
    large = F.interpolate(coarse, scale_factor=float(ratio), mode="nearest")
    return large[..., : fine.shape[-2], : fine.shape[-1]]


def _block(config: RtDetrConfig) -> nn.Module:
    """What joins two maps of the encoder's width."""
    width, blocks = config.encoder_hidden_dim, round(3 * config.depth_mult)
    expansion, activation, eps = config.hidden_expansion, config.activation, config.batch_norm_eps
    if config.fusion == "elan":
        return ElanLayer(width, expansion=expansion, blocks=blocks, activation=activation, eps=eps)
    return CspRepLayer(2 * width, width, blocks=blocks, expansion=expansion, activation=activation, eps=eps)
