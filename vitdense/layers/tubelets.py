"""Clips and volumes to tokens, one for each box of frames and pixels (ViViT, https://arxiv.org/abs/2103.15691)."""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.errors import UserError
from vitdense.layers.embed import PatchEmbed, Stem, count_halvings, stem_widths

TimePadding = Literal["last", "zeros"]


class TubeletEmbed(PatchEmbed):
    """A strided 3-D convolution: one token for each `tubelet` frames of `patch` x `patch` pixels.

    Frames are padded after the last: by repeating it (`time_padding` "last"), or with zeros, as slices of a volume.
    Rows and columns are padded with zeros.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        embed_dim: int,
        patch: int,
        tubelet: int,
        time_padding: TimePadding = "last",
        norm_eps: float | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, embed_dim=embed_dim, patch=patch, norm_eps=norm_eps, bias=bias)
        self.tubelet = tubelet
        self.repeats_last = time_padding == "last"
        box = (tubelet, patch, patch)
        self.proj = nn.Conv3d(in_channels, embed_dim, kernel_size=box, stride=box, bias=bias)

    def whole_patches(self, images: Tensor) -> Tensor:
        """images: clips (B, in_channels, T, H, W) -> T, H and W padded so that they divide by the box."""
        if images.ndim != 5 or images.shape[1] != self.in_channels:
            raise UserError(f"expected clips (B, {self.in_channels}, T, H, W), given {tuple(images.shape)}")
        if 0 in images.shape[2:]:
            raise UserError(f"expected clips of one frame and one pixel at least, given {tuple(images.shape)}")
        after, bottom, right = (
            (size + step - 1) // step * step - size
            for size, step in zip(images.shape[2:], (self.tubelet, self.patch, self.patch), strict=True)
        )
        exporting = torch.compiler.is_exporting()
        if self.repeats_last and self.tubelet > 1 and (exporting or after):
            times = torch.arange(images.shape[2] + after, device=images.device).clamp(max=images.shape[2] - 1)
            images, after = images.index_select(2, times), 0
        # An exported graph pads always: asking whether it must would pin the sizes it was traced with.
        if not exporting and not (after or bottom or right):
            return images
        return F.pad(images, (0, right, 0, bottom, 0, after))


class TubeletStem(TubeletEmbed):
    """Convolutions of 3x3x3 in place of the strided one, as `ConvStem` has them for pictures; the last ones halve time
    too, as often as the tubelet asks for.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        embed_dim: int,
        patch: int,
        tubelet: int,
        time_padding: TimePadding = "last",
        norm_eps: float | None = None,
        bias: bool = True,
    ) -> None:
        options = {"embed_dim": embed_dim, "patch": patch, "tubelet": tubelet}
        super().__init__(in_channels, **options, time_padding=time_padding, norm_eps=norm_eps, bias=bias)
        halvings = count_halvings(patch, "patch size")
        late = 0 if tubelet == 1 else count_halvings(tubelet, "tubelet")
        if late > halvings:
            raise UserError(f"a convolution stem halves time no more than space: tubelet {tubelet}, patch size {patch}")
        times = [1] * (halvings - late) + [2] * late
        widths = stem_widths(patch, embed_dim)
        layers = [*_conv_unit(in_channels, widths[0], (times[0], 2, 2)), *_conv_unit(widths[0], widths[0], (1, 1, 1))]
        for time, (before, after) in zip(times[1:], pairwise(widths), strict=False):
            layers += _conv_unit(before, after, (time, 2, 2))
        last = (times[-1], 2, 2) if halvings > 1 else (1, 1, 1)
        self.proj = nn.Sequential(*layers, nn.Conv3d(widths[-1], embed_dim, 3, stride=last, padding=1, bias=bias))


def _conv_unit(in_channels: int, out_channels: int, stride: tuple[int, int, int]) -> list[nn.Module]:
    """A 3x3x3 convolution, its batch norm and GELU."""
    conv = nn.Conv3d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm3d(out_channels), nn.GELU()]


TUBELETS: dict[Stem, type[TubeletEmbed]] = {"patch": TubeletEmbed, "conv": TubeletStem}
