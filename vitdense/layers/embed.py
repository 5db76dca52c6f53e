"""Pictures to patch tokens; sizes that don't divide are padded at the right and bottom, never cropped."""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.errors import UserError


def pad_rows_and_columns(maps: Tensor, multiple: int, *, channels_last: bool) -> Tensor:
    """maps: (B, C, H, W), or (B, H, W, C) if `channels_last` -> zeros added so that H and W divide by `multiple`."""
    height, width = maps.shape[1:3] if channels_last else maps.shape[2:4]
    # Not -height % multiple: whole multiples are what the tiles behind this are made of, also as symbols in a graph.
    bottom = (height + multiple - 1) // multiple * multiple - height
    right = (width + multiple - 1) // multiple * multiple - width
    # An exported graph pads always: asking whether it must would pin the sizes it was traced with.
    if not torch.compiler.is_exporting() and bottom == 0 and right == 0:
        return maps
    return F.pad(maps, (0, 0, 0, right, 0, bottom) if channels_last else (0, right, 0, bottom))


def crop_rows_and_columns(maps: Tensor, height: int, width: int, *, channels_last: bool = True) -> Tensor:
    """maps: (B, H, W, C), or (B, C, H, W) -> its first rows and columns: what was padded behind them is taken off."""
    if torch.compiler.is_exporting():
        # A slice of a symbolic size asks whether it cuts anything, and would pin the answer for all sizes.
        rows, columns = (torch.arange(count, device=maps.device) for count in (height, width))
        first = 1 if channels_last else 2
        return maps.index_select(first, rows).index_select(first + 1, columns)
    return maps[:, :height, :width] if channels_last else maps[:, :, :height, :width]


Stem = Literal["patch", "conv"]


class PatchEmbed(nn.Module):
    """A strided convolution: one token for each `patch` x `patch` pixels."""

    def __init__(
        self, in_channels: int, *, embed_dim: int, patch: int, norm_eps: float | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.patch = patch
        self.proj: nn.Module = nn.Conv2d(in_channels, embed_dim, kernel_size=patch, stride=patch, bias=bias)
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(embed_dim, eps=norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, in_channels, H, W) -> (B, ceil(H / patch), ceil(W / patch), embed_dim)."""
        tokens: Tensor = self.norm(self.proj(self.whole_patches(images)).movedim(1, -1))  # (B, h, w, C)
        return tokens

    def whole_patches(self, images: Tensor) -> Tensor:
        """images: (B, in_channels, H, W) -> zeros added so that H and W divide by the patch."""
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise UserError(f"expected images (B, {self.in_channels}, H, W), given {tuple(images.shape)}")
        return pad_rows_and_columns(images, self.patch, channels_last=False)


class ConvStem(PatchEmbed):
    """3x3 convolutions in place of the strided one (https://arxiv.org/abs/2106.14881): it learns from fewer pictures.

    Halvings of the size, the first followed by a convolution at its own size, each but the last normed and activated.
    """

    def __init__(
        self, in_channels: int, *, embed_dim: int, patch: int, norm_eps: float | None = None, bias: bool = True
    ) -> None:
        super().__init__(in_channels, embed_dim=embed_dim, patch=patch, norm_eps=norm_eps, bias=bias)
        halvings, widths = count_halvings(patch, "patch size"), stem_widths(patch, embed_dim)
        layers = [*_conv_unit(in_channels, widths[0], stride=2), *_conv_unit(widths[0], widths[0], stride=1)]
        for before, after in pairwise(widths):
            layers += _conv_unit(before, after, stride=2)
        last = nn.Conv2d(widths[-1], embed_dim, kernel_size=3, stride=2 if halvings > 1 else 1, padding=1, bias=bias)
        self.proj = nn.Sequential(*layers, last)


def count_halvings(size: int, name: str) -> int:
    """How often a stem halves to come to patches of `size`; UserError where that is no whole number."""
    halvings = size.bit_length() - 1
    if size != 2**halvings or halvings < 1:
        raise UserError(f"a convolution stem needs a {name} of 2, 4, 8, 16 or 32, given {size}")
    return halvings


def stem_widths(patch: int, embed_dim: int) -> list[int]:
    """Channels behind each halving of a stem but the last, or behind the only one."""
    halvings = patch.bit_length() - 1
    return [max(16, embed_dim >> (halvings - i)) for i in range(1, halvings)] or [max(16, embed_dim // 2)]


def _conv_unit(in_channels: int, out_channels: int, *, stride: int) -> list[nn.Module]:
    """A 3x3 convolution, its batch norm and GELU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.GELU()]


STEMS: dict[Stem, type[PatchEmbed]] = {"patch": PatchEmbed, "conv": ConvStem}
