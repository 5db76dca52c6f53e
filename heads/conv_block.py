"""Convolution, batch norm, ReLU: what UperNet and the fully convolutional head are made of."""

from torch import Tensor, nn

from vitdense.layers.folding import conv_and_norm


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm, ReLU; the size stays."""

    def __init__(self, channels: int, out_channels: int, *, kernel_size: int, dilation: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2 * dilation
        self.conv = nn.Conv2d(channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False)
        self.batch_norm = nn.BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W) -> (B, C_out, H, W)."""
        return conv_and_norm(maps, self.conv, self.batch_norm).relu_()
