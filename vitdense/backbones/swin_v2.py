"""Swin v2: Swin with cosine attention, norms behind the branches, biases for any window (2111.09883)."""

from typing import Any

from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor, nn

from vitdense.backbones.swin import Swin, SwinConfig, quads
from vitdense.contracts import BACKBONES
from vitdense.layers.block import DropPath
from vitdense.layers.cosine_window import CosineWindowAttention
from vitdense.layers.looks import Look
from vitdense.layers.mlp import Mlp

TINY: dict[str, Any] = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
SMALL: dict[str, Any] = {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)}
BASE: dict[str, Any] = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
LARGE: dict[str, Any] = {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)}
# Pretrained at 192 with windows of 12 (6 in the last stage), then tuned at another size.
FROM_12: dict[str, Any] = {"pretrained_windows": (12, 12, 12, 6)}


@BACKBONES.register("swinv2_nano", embed_dim=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), image_size=64, window=4)
@BACKBONES.register("swinv2_tiny", **TINY)
@BACKBONES.register("swinv2_tiny_window16", **TINY, window=16)
@BACKBONES.register("swinv2_small", **SMALL)
@BACKBONES.register("swinv2_small_window16", **SMALL, window=16)
@BACKBONES.register("swinv2_base", **BASE)
@BACKBONES.register("swinv2_base_window16", **BASE, window=16)
@BACKBONES.register("swinv2_base_window12", **BASE, window=12, image_size=192)
@BACKBONES.register("swinv2_base_window12to16", **BASE, **FROM_12, window=16)
@BACKBONES.register("swinv2_base_window12to24", **BASE, **FROM_12, window=24, image_size=384)
@BACKBONES.register("swinv2_large_window12", **LARGE, window=12, image_size=192)
@BACKBONES.register("swinv2_large_window12to16", **LARGE, **FROM_12, window=16)
@BACKBONES.register("swinv2_large_window12to24", **LARGE, **FROM_12, window=24, image_size=384)
class SwinV2Config(SwinConfig):
    """Swin's options, and what the windows were trained for.

    No window is larger than the map of a picture of `image_size`, and such a one is not shifted, whatever size comes,
    as the authors, timm and transformers have it; None leaves windows as they are and decides by the map at hand, as
    torchvision does. `pretrained_windows` of the stages say what the offsets' biases were trained with.
    """

    window: PositiveInt = 8
    image_size: PositiveInt | None = 256
    pretrained_windows: tuple[NonNegativeInt, ...] = ()
    norm_maps: bool = False

    def window_of(self, stage: int) -> tuple[int, int]:
        """The window of a stage, and the shift of its shifted blocks."""
        if self.image_size is None:
            return self.window, self.window // 2
        across = -(-self.image_size // (self.patch_size * 2**stage))
        return (across, 0) if across <= self.window else (self.window, self.window // 2)

    def block(self, stage: int, *, shifted: bool, drop_path: float) -> nn.Module:
        """A block of a stage."""
        return SwinV2Block(self, stage=stage, shifted=shifted, drop_path=drop_path)

    def merging(self, stage: int) -> nn.Module:
        """What stands before the blocks of a stage other than the first."""
        return PatchMergingV2(self.channels(stage - 1), norm_eps=self.layer_norm_eps)

    def build(self) -> Swin:
        """A Swin v2 with fresh weights."""
        return Swin(self)


class SwinV2Block(nn.Module):
    """Window attention and MLP, each normed behind and added."""

    def __init__(self, config: SwinV2Config, *, stage: int, shifted: bool, drop_path: float) -> None:
        super().__init__()
        dim, (window, shift) = config.channels(stage), config.window_of(stage)
        self.attn = CosineWindowAttention(
            dim,
            num_heads=config.num_heads[stage],
            window=window,
            shift=shift if shifted else 0,
            pretrained_window=config.pretrained_windows[stage] if config.pretrained_windows else 0,
            qkv_bias=config.qkv_bias,
            order=config.window_order,
            static_shift=config.always_shift or config.image_size is not None,
        )
        self.norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = Mlp(dim, hidden=int(dim * config.mlp_ratio))
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def look(self, maps: Tensor) -> Look:
        """What `forward` attends to, of the same maps."""
        return self.attn.look(maps)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, H, W, C) -> (B, H, W, C)."""
        maps = maps + self.drop_path(self.norm1(self.attn(maps)))
        out: Tensor = maps + self.drop_path(self.norm2(self.mlp(maps)))
        return out


class PatchMergingV2(nn.Module):
    """Each 2 x 2 cells become one of twice the channels, normed afterwards."""

    def __init__(self, dim: int, *, norm_eps: float) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim, eps=norm_eps)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2C)."""
        out: Tensor = self.norm(self.reduction(quads(maps)))
        return out
