"""The options of vision transformers on clips and volumes, and their published forms as presets."""

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from vitdense.backbones.options import HALVES
from vitdense.backbones.vit_config import BASE, HUGE, LARGE, POOLED, SMALL, Options, ViTConfig
from vitdense.contracts import BACKBONES
from vitdense.layers.block import Block, BlockOptions
from vitdense.layers.inflation import Kernel
from vitdense.layers.space_time import DividedBlock, FactorisedBlock, WindowedDividedBlock, WindowedFactorisedBlock
from vitdense.layers.space_time_position import TimeInterpolation
from vitdense.layers.tubelets import TUBELETS, TimePadding, TubeletEmbed

if TYPE_CHECKING:
    from vitdense.backbones.video_vit import VideoViT

SpaceTime = Literal["joint", "divided", "factorised_encoder", "factorised_attention", "dot_product"]

NANO: Options = {"embed_dim": 64, "depth": 4, "num_heads": 2, "patch_size": 8, "image_size": 64}
GIANT: Options = {"embed_dim": 1408, "depth": 40, "mlp_ratio": 48 / 11}

TIMESFORMER: Options = {
    "attention": "divided",
    "position_tables": "divided",
    "position_interpolation": "nearest",
    "time_interpolation": "nearest",
    "mean": (0.45, 0.45, 0.45),
    "std": (0.225, 0.225, 0.225),
}
VIVIT: Options = {"tubelet": 2, "position_interpolation": "bilinear", "activation": "gelu_tanh", **HALVES}
FACTORISED: Options = {**VIVIT, "attention": "factorised_encoder", "position_tables": "divided"}
WITHOUT_TOKEN: Options = {**VIVIT, "cls_token": False, "pool": "mean"}
FACTORISED_ATTENTION: Options = {**WITHOUT_TOKEN, "attention": "factorised_attention"}
DOT_PRODUCT: Options = {**WITHOUT_TOKEN, "attention": "dot_product"}
VIDEOMAE: Options = {
    "tubelet": 2,
    "cls_token": False,
    "positions": "sincos",
    "position_tables": "index",
    "qkv_bias": "qv",
    **POOLED,
}
VJEPA2: Options = {"tubelet": 2, "cls_token": False, "positions": "none", "relations": "rope_axes", "pool": "mean"}
VOLUME: Options = {"cls_token": False, "pool": "mean", "time_padding": "zeros"}

_TABLES: dict[str, tuple[str, ...]] = {
    "learned": ("joint", "divided"),
    "sincos": ("joint", "index"),
    "none": ("joint", "divided"),
}
_BLOCKS: dict[tuple[SpaceTime, bool], type[Block]] = {
    ("divided", False): DividedBlock,
    ("divided", True): WindowedDividedBlock,
    ("factorised_attention", False): FactorisedBlock,
    ("factorised_attention", True): WindowedFactorisedBlock,
}


@BACKBONES.register("timesformer_nano_patch8", **NANO, **TIMESFORMER, frames=4)
@BACKBONES.register("timesformer_base_patch16", **BASE, **TIMESFORMER, patch_size=16, frames=8)
@BACKBONES.register("vivit_nano_patch8", **NANO, **VIVIT, frames=8)
@BACKBONES.register("vivit_base_patch16", **BASE, **VIVIT, patch_size=16, frames=32)
@BACKBONES.register("vivit_large_patch16", **LARGE, **VIVIT, patch_size=16, frames=32)
@BACKBONES.register("vivit_nano_patch8_factorised", **NANO, **FACTORISED, frames=8, temporal_depth=2)
@BACKBONES.register("vivit_base_patch16_factorised", **BASE, **FACTORISED, patch_size=16, frames=32)
@BACKBONES.register("vivit_large_patch16_factorised", **LARGE, **FACTORISED, patch_size=16, frames=32)
@BACKBONES.register("vivit_nano_patch8_factorised_attention", **NANO, **FACTORISED_ATTENTION, frames=8)
@BACKBONES.register("vivit_base_patch16_factorised_attention", **BASE, **FACTORISED_ATTENTION, patch_size=16, frames=32)
@BACKBONES.register("vivit_nano_patch8_dot_product", **NANO, **DOT_PRODUCT, frames=8)
@BACKBONES.register("vivit_base_patch16_dot_product", **BASE, **DOT_PRODUCT, patch_size=16, frames=32)
@BACKBONES.register("videomae_nano_patch8", **NANO, **VIDEOMAE, frames=8)
@BACKBONES.register("videomae_small_patch16", **SMALL, **VIDEOMAE, patch_size=16, frames=16)
@BACKBONES.register("videomae_base_patch16", **BASE, **VIDEOMAE, patch_size=16, frames=16)
@BACKBONES.register("videomae_large_patch16", **LARGE, **VIDEOMAE, patch_size=16, frames=16)
@BACKBONES.register("videomae_huge_patch16", **HUGE, **VIDEOMAE, patch_size=16, frames=16)
@BACKBONES.register("videomae_giant_patch14", **GIANT, **VIDEOMAE, num_heads=16, patch_size=14, frames=16)
@BACKBONES.register("vjepa2_nano_patch8", **NANO, **VJEPA2, frames=8)
@BACKBONES.register("vjepa2_large_patch16", **LARGE, **VJEPA2, patch_size=16, image_size=256, frames=64)
@BACKBONES.register("vjepa2_huge_patch16", **HUGE, **VJEPA2, patch_size=16, image_size=256, frames=64)
@BACKBONES.register("vjepa2_giant_patch16", **GIANT, **VJEPA2, num_heads=22, patch_size=16, image_size=256, frames=64)
@BACKBONES.register("vit3d_nano_patch8", **NANO, **VOLUME, frames=64, tubelet=8)
@BACKBONES.register("vit3d_small_patch16", **SMALL, **VOLUME, patch_size=16, image_size=96, frames=96, tubelet=16)
@BACKBONES.register("vit3d_base_patch16", **BASE, **VOLUME, patch_size=16, image_size=96, frames=96, tubelet=16)
class VideoViTConfig(ViTConfig):
    """As ViTConfig, on `frames` frames or slices, of which a patch takes `tubelet`.

    `frames`, like `image_size`, is what tables of positions are stored for; it limits nothing. `attention` "joint" is
    over all patches, "divided" TimeSformer's, "factorised_encoder", "factorised_attention" and "dot_product" are
    ViViT's models 2, 3 and 4; model 2 has `temporal_depth` blocks over time behind those over space, which serve the
    vector alone. `position_tables` hold a row for each cell ("joint"), one for each place and one for each time
    ("divided"), or waves by the number of a patch ("index"). `time_padding` is what follows the last frame up to a
    whole tubelet. `pool_norm_eps` is that of the norm of the mean, where it has another. `inflation` says how pictures'
    weights become those of tubelets: in the `central` frame, or in all as their `mean`.
    """

    frames: PositiveInt = 16
    tubelet: PositiveInt = 1
    attention: SpaceTime = "joint"
    position_tables: Literal["joint", "divided", "index"] = "joint"
    time_interpolation: TimeInterpolation = "linear"
    time_padding: TimePadding = "last"
    temporal_depth: PositiveInt = 4
    pool_norm_eps: PositiveFloat | None = None
    inflation: Kernel = "central"

    @model_validator(mode="after")
    def _attends(self) -> Self:
        if self.neck_channels is not None:
            raise ValueError("neck_channels belong to pictures: leave them out")
        if self.attention in ("joint", "dot_product") and (self.window or self.relations in ("table", "decomposed")):
            raise ValueError(
                f'attention "{self.attention}" is over time and space at once: windows and the relations "table" and '
                '"decomposed" need attention "divided", "factorised_attention" or "factorised_encoder"'
            )
        if self.attention == "dot_product" and (self.num_prefix or self.num_heads % 2 or self.relations != "none"):
            raise ValueError(
                'attention "dot_product" needs an even num_heads, relations "none" and no tokens before the patches: '
                'cls_token false and pool "mean"'
            )
        self._tables_fit()
        return self

    def _tables_fit(self) -> None:
        known = _TABLES[self.positions]
        if self.position_tables not in known:
            named = " or ".join(f'"{each}"' for each in known)
            raise ValueError(
                f'positions "{self.positions}" have position_tables {named}, given "{self.position_tables}"'
            )
        if self.attention == "factorised_encoder" and (self.positions, self.position_tables) == ("learned", "joint"):
            raise ValueError('attention "factorised_encoder" sees time after time: position_tables must be "divided"')

    @property
    def stored_times(self) -> int:
        """Cells along time that tables are stored for."""
        return -(-self.frames // self.tubelet)

    @property
    def stored_cells(self) -> int:
        """Rows that a learned table of positions has for cells."""
        return self.stored_grid**2 * (self.stored_times if self.position_tables == "joint" else 1)

    def block_type(self, windowed: bool) -> type[Block]:
        """The class of a block."""
        return _BLOCKS.get((self.attention, windowed), super().block_type(windowed))

    def block_options(self, windowed: bool, drop_path: float) -> BlockOptions:
        """What a block is built with."""
        options = super().block_options(windowed, drop_path)
        return replace(options, relations="dot_product") if self.attention == "dot_product" else options

    def time_block(self, drop_path: float) -> Block:
        """A block over the times of a clip, of the factorised encoder."""
        return Block(replace(super().block_options(False, drop_path), relations="none"))

    def embedding(self) -> TubeletEmbed:
        """What turns clips into patches."""
        return TUBELETS[self.stem](
            self.in_channels,
            embed_dim=self.embed_dim,
            patch=self.patch_size,
            tubelet=self.tubelet,
            time_padding=self.time_padding,
            bias=self.patch_bias,
        )

    def build(self) -> "VideoViT":
        """A VideoViT with fresh weights."""
        # Imported here: the module reads this class.
        from vitdense.backbones.video_vit import FactorisedEncoderViT, VideoViT

        return FactorisedEncoderViT(self) if self.attention == "factorised_encoder" else VideoViT(self)
