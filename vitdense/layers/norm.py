"""Layer normalisation over the channels of a map, as in ViTDet and ConvNeXt."""

from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over C of (B, C, H, W)."""

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W) -> (B, C, H, W), each pixel normalised over its channels."""
        normed: Tensor = super().forward(maps.permute(0, 2, 3, 1))  # (B, H, W, C)
        return normed.permute(0, 3, 1, 2)  # (B, C, H, W)
