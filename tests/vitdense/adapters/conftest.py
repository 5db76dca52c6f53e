"""What the tests of adapters share: backbones without transformers, and weights that carry a signal."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.contracts import Backbone, Interaction, Level, Tokens
from vitdense.layers.embed import pad_rows_and_columns

Enliven = Callable[[nn.Module], nn.Module]


class PlainBackbone(Backbone):
    """Patches, a class token, and stages of one linear layer in which the class token hears of the patches."""

    def __init__(self, patch: int, *, dim: int = 24, stages: int = 4) -> None:
        super().__init__()
        self.patch, self.embed_dim, self.num_layers = patch, dim, stages
        self.mean = self.std = (0.5, 0.5, 0.5)
        self.levels = (Level(dim, patch),) * stages
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.blocks = nn.ModuleList(nn.Linear(dim, dim) for _ in range(stages))

    def forward_stages(self, images: Tensor, interaction: Interaction | None = None) -> list[Tokens]:
        """images: (B, 3, H, W) -> tokens of each stage, not normed."""
        maps = self.proj(pad_rows_and_columns(images, self.patch, channels_last=False))
        grid, patches = (maps.shape[2], maps.shape[3]), maps.flatten(2).mT  # (B, h * w, C)
        prefix, given = self.cls_token.expand(patches.shape[0], -1, -1), []
        for i, block in enumerate(self.blocks):
            if interaction is not None:
                patches = interaction.before(i, patches, grid)
            patches, prefix = patches + block(patches).tanh(), prefix + patches.mean(1, keepdim=True)
            if interaction is not None:
                interaction.after(i, patches, grid)
            given.append(Tokens(patches, prefix, grid))
        return given

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, 3, H, W) -> [(B, C, h, w)] for each stage."""
        return [patches.mT.reshape(len(patches), -1, *grid) for patches, _, grid in self.forward_stages(images)]

    def tokens(self, images: Tensor) -> Tokens:
        """The last stage's."""
        return self.forward_stages(images)[-1]

    def embed(self, images: Tensor) -> Tensor:
        """The class token."""
        return self.tokens(images).prefix[:, 0]

    def layer_of(self, parameter: str) -> int:
        """All alike."""
        return 0


class PyramidBackbone(PlainBackbone):
    """Strides 4, 8, 16 and 32, each from the one before."""

    def __init__(self) -> None:
        super().__init__(4, dim=8, stages=1)
        self.levels = tuple(Level(8 * 2**i, 4 * 2**i) for i in range(4))
        self.down = nn.ModuleList(nn.Conv2d(8 * 2**i, 16 * 2**i, kernel_size=2, stride=2) for i in range(3))

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, 3, H, W) -> [(B, C_i, h_i, w_i)]."""
        maps = [super().forward(images)[0]]
        for conv in self.down:
            maps.append(F.gelu(conv(pad_rows_and_columns(maps[-1], 2, channels_last=False))))
        return maps


def enlivened(module: nn.Module) -> nn.Module:
    """Random normal weights, and running statistics as after some training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                centre = 1.0 if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")) else 0.0
                value.copy_(centre + 0.12 * torch.randn(value.shape, generator=generator))
    return module.eval()


@pytest.fixture
def plain() -> type[Backbone]:
    return PlainBackbone


@pytest.fixture
def pyramid() -> type[Backbone]:
    return PyramidBackbone


@pytest.fixture
def enliven() -> Enliven:
    return enlivened
