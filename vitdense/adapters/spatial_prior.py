"""ViT-Adapter's convolutional branch, which sees edges that patches don't (https://arxiv.org/abs/2205.08534)."""

from torch import Tensor, nn


class SpatialPrior(nn.Module):
    """A convolution stem and three halvings, each map brought to the backbone's width."""

    def __init__(self, in_channels: int, *, conv_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_unit(in_channels, conv_dim, stride=2),
            *_unit(conv_dim, conv_dim, stride=1),
            *_unit(conv_dim, conv_dim, stride=1),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_unit(conv_dim, 2 * conv_dim, stride=2))
        self.conv3 = nn.Sequential(*_unit(2 * conv_dim, 4 * conv_dim, stride=2))
        self.conv4 = nn.Sequential(*_unit(4 * conv_dim, 4 * conv_dim, stride=2))
        self.fc1 = nn.Conv2d(conv_dim, embed_dim, kernel_size=1)
        self.fc2 = nn.Conv2d(2 * conv_dim, embed_dim, kernel_size=1)
        self.fc3 = nn.Conv2d(4 * conv_dim, embed_dim, kernel_size=1)
        self.fc4 = nn.Conv2d(4 * conv_dim, embed_dim, kernel_size=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """images: (B, C, H, W), normalised -> (B, embed_dim, ceil(H / s), ceil(W / s)) for s in 4, 8, 16, 32."""
        c1 = self.stem(images)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(c4)


def _unit(in_channels: int, out_channels: int, *, stride: int) -> list[nn.Module]:
    """A 3 x 3 convolution, its batch norm and ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
