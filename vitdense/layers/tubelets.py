"""Clips and volumes to tokens, one for each box of frames and pixels (ViViT, https://arxiv.org/abs/2103.15691)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.errors import UserError
from vitdense.layers.embed import PatchEmbed

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
