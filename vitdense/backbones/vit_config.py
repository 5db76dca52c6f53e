"""The options of the plain vision transformer, and its published forms as presets."""

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vitdense.backbones.options import HALVES, OPENAI, evenly_spaced, resolve_out_indices
from vitdense.contracts import BACKBONES, BackboneConfig
from vitdense.layers.attention import AttentionOptions, QkvBias, Relations
from vitdense.layers.block import Block, BlockOptions, WindowedBlock
from vitdense.layers.embed import STEMS, PatchEmbed, Stem
from vitdense.layers.mlp import Activation
from vitdense.layers.position import Interpolation

if TYPE_CHECKING:
    from vitdense.backbones.vit import ViT

Pool = Literal["cls", "cls_dist", "mean", "attention"]
Options = dict[str, Any]

TINY: Options = {"embed_dim": 192, "depth": 12, "num_heads": 3}
SMALL: Options = {"embed_dim": 384, "depth": 12, "num_heads": 6}
BASE: Options = {"embed_dim": 768, "depth": 12, "num_heads": 12}
LARGE: Options = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
HUGE: Options = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
HUGE_PLUS: Options = {"embed_dim": 1280, "depth": 32, "num_heads": 20}
GIANT: Options = {"embed_dim": 1536, "depth": 40, "num_heads": 24}
SEVEN_B: Options = {"embed_dim": 4096, "depth": 40, "num_heads": 32, "mlp_ratio": 2.0}
SHAPE_OPTIMISED: Options = {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 4304 / 1152}

DISTILLED: Options = {"dist_token": True, "pool": "cls_dist"}
DEIT3: Options = {"layer_scale": 1e-6}
POOLED: Options = {"pool": "mean", "final_norm": "pooled"}
BEIT: Options = {"positions": "none", "relations": "table", "qkv_bias": "qv", "layer_scale": 0.1, **POOLED}
DINOV2: Options = {"patch_size": 14, "image_size": 518, "layer_scale": 1e-5}
# As their authors resize positions: without registers 0.1 is added to the grid, with them the resizing is antialiased.
OFFSET: Options = {"position_antialias": False, "position_offset": 0.1}
REGISTERS: Options = {"num_registers": 4}
GATED: Options = {"mlp": "gated", "activation": "silu"}
TWO_THIRDS: Options = {**GATED, "mlp_ratio": 8 / 3}
UNIT: Options = {
    "positions": "none",
    "relations": "rope_unit",
    "layer_scale": 1e-5,
    "layer_norm_eps": 1e-5,
    **REGISTERS,
}
DINOV3: Options = {"patch_size": 16, "qkv_bias": "qv", **UNIT}
EVA02: Options = {"patch_size": 14, "relations": "rope_index", "rope_grid": 16, "qkv_bias": "qv", **POOLED, **OPENAI}
EVA02_CLIP: Options = {**EVA02, "pool": "cls", "final_norm": "tokens", "attention_norm": True, "mlp_norm": True}
VITDET: Options = {"patch_size": 16, "cls_token": False, "pool": "mean", "relations": "decomposed", "window": 14}
SAM: Options = {**VITDET, "image_size": 1024, "final_norm": "none", "neck_channels": 256}
CLIP: Options = {"patch_bias": False, "pre_norm": True, "activation": "quick_gelu", "layer_norm_eps": 1e-5, **OPENAI}
SIGLIP: Options = {"cls_token": False, "pool": "attention", "activation": "gelu_tanh", **HALVES}


@BACKBONES.register("vit_nano_patch8", embed_dim=64, depth=4, num_heads=2, patch_size=8, image_size=64)
@BACKBONES.register("vit_tiny_patch16", **TINY, patch_size=16)
@BACKBONES.register("vit_small_patch8", **SMALL, patch_size=8)
@BACKBONES.register("vit_small_patch16", **SMALL, patch_size=16)
@BACKBONES.register("vit_small_patch32", **SMALL, patch_size=32)
@BACKBONES.register("vit_base_patch8", **BASE, patch_size=8)
@BACKBONES.register("vit_base_patch16", **BASE, patch_size=16)
@BACKBONES.register("vit_base_patch32", **BASE, patch_size=32)
@BACKBONES.register("vit_large_patch14", **LARGE, patch_size=14)
@BACKBONES.register("vit_large_patch16", **LARGE, patch_size=16)
@BACKBONES.register("vit_large_patch32", **LARGE, patch_size=32)
@BACKBONES.register("vit_huge_patch14", **HUGE, patch_size=14)
@BACKBONES.register("deit_tiny_patch16", **TINY, patch_size=16)
@BACKBONES.register("deit_small_patch16", **SMALL, patch_size=16)
@BACKBONES.register("deit_base_patch16", **BASE, patch_size=16)
@BACKBONES.register("deit_tiny_distilled_patch16", **TINY, **DISTILLED, patch_size=16)
@BACKBONES.register("deit_small_distilled_patch16", **SMALL, **DISTILLED, patch_size=16)
@BACKBONES.register("deit_base_distilled_patch16", **BASE, **DISTILLED, patch_size=16)
@BACKBONES.register("deit3_small_patch16", **SMALL, **DEIT3, patch_size=16)
@BACKBONES.register("deit3_base_patch16", **BASE, **DEIT3, patch_size=16)
@BACKBONES.register("deit3_large_patch16", **LARGE, **DEIT3, patch_size=16)
@BACKBONES.register("deit3_huge_patch14", **HUGE, **DEIT3, patch_size=14)
@BACKBONES.register("beit_base_patch16", **BASE, **BEIT, **HALVES, patch_size=16)
@BACKBONES.register("beit_large_patch16", **LARGE, **BEIT, **HALVES, patch_size=16)
@BACKBONES.register("beitv2_base_patch16", **BASE, **BEIT, patch_size=16)
@BACKBONES.register("beitv2_large_patch16", **LARGE, **BEIT, patch_size=16)
@BACKBONES.register("dinov2_small_patch14", **SMALL, **DINOV2, **OFFSET)
@BACKBONES.register("dinov2_base_patch14", **BASE, **DINOV2, **OFFSET)
@BACKBONES.register("dinov2_large_patch14", **LARGE, **DINOV2, **OFFSET)
@BACKBONES.register("dinov2_giant_patch14", **GIANT, **DINOV2, **OFFSET, **TWO_THIRDS)
@BACKBONES.register("dinov2_small_patch14_reg", **SMALL, **DINOV2, **REGISTERS)
@BACKBONES.register("dinov2_base_patch14_reg", **BASE, **DINOV2, **REGISTERS)
@BACKBONES.register("dinov2_large_patch14_reg", **LARGE, **DINOV2, **REGISTERS)
@BACKBONES.register("dinov2_giant_patch14_reg", **GIANT, **DINOV2, **REGISTERS, **TWO_THIRDS)
@BACKBONES.register("dinov3_small_patch16", **SMALL, **DINOV3)
@BACKBONES.register("dinov3_small_plus_patch16", **SMALL, **DINOV3, **GATED)
@BACKBONES.register("dinov3_base_patch16", **BASE, **DINOV3)
@BACKBONES.register("dinov3_large_patch16", **LARGE, **DINOV3)
@BACKBONES.register("dinov3_huge_plus_patch16", **HUGE_PLUS, **DINOV3, **GATED)
@BACKBONES.register("dinov3_7b_patch16", **SEVEN_B, **UNIT, **GATED, patch_size=16, qkv_bias=False)
@BACKBONES.register("eva02_tiny_patch14", **TINY, **EVA02, **TWO_THIRDS)
@BACKBONES.register("eva02_small_patch14", **SMALL, **EVA02, **TWO_THIRDS)
@BACKBONES.register("eva02_base_patch14", **BASE, **EVA02, **TWO_THIRDS, mlp_norm=True)
@BACKBONES.register("eva02_large_patch14", **LARGE, **EVA02, **TWO_THIRDS, mlp_norm=True)
@BACKBONES.register("eva02_base_patch16_clip", **BASE, **{**EVA02_CLIP, "patch_size": 16}, **TWO_THIRDS)
@BACKBONES.register("eva02_large_patch14_clip", **LARGE, **EVA02_CLIP, **TWO_THIRDS)
@BACKBONES.register("vitdet_base_patch16", **BASE, **VITDET, global_blocks=(2, 5, 8, 11))
@BACKBONES.register("vitdet_large_patch16", **LARGE, **VITDET, global_blocks=(5, 11, 17, 23))
@BACKBONES.register("vitdet_huge_patch16", **HUGE, **VITDET, global_blocks=(7, 15, 23, 31))
@BACKBONES.register("sam_base_patch16", **BASE, **SAM, global_blocks=(2, 5, 8, 11))
@BACKBONES.register("sam_large_patch16", **LARGE, **SAM, global_blocks=(5, 11, 17, 23))
@BACKBONES.register("sam_huge_patch16", **HUGE, **SAM, global_blocks=(7, 15, 23, 31))
@BACKBONES.register("clip_base_patch32", **BASE, **CLIP, patch_size=32)
@BACKBONES.register("clip_base_patch16", **BASE, **CLIP, patch_size=16)
@BACKBONES.register("clip_large_patch14", **LARGE, **CLIP, patch_size=14)
@BACKBONES.register("clip_huge_patch14", **HUGE, **{**CLIP, "activation": "gelu"}, patch_size=14)
@BACKBONES.register("siglip_base_patch16", **BASE, **SIGLIP, patch_size=16)
@BACKBONES.register("siglip_large_patch16", **LARGE, **SIGLIP, patch_size=16, image_size=256)
@BACKBONES.register("siglip_so400m_patch14", **SHAPE_OPTIMISED, **SIGLIP, patch_size=14)
@BACKBONES.register("siglip2_base_patch16", **BASE, **SIGLIP, patch_size=16)
@BACKBONES.register("siglip2_large_patch16", **LARGE, **SIGLIP, patch_size=16, image_size=256)
@BACKBONES.register("siglip2_so400m_patch14", **SHAPE_OPTIMISED, **SIGLIP, patch_size=14)
@BACKBONES.register("siglip2_base_patch32", **BASE, **SIGLIP, patch_size=32, image_size=256)
@BACKBONES.register("siglip2_so400m_patch16", **SHAPE_OPTIMISED, **SIGLIP, patch_size=16, image_size=256)
class ViTConfig(BackboneConfig):
    """`out_indices` are blocks; `frozen_stages` n freezes the embedding and the first n - 1 blocks.

    `image_size` is the size whose grid the tables of positions are stored for; it limits nothing. `positions` are
    added to the patches, `relations` act in the attention: "table" is BEiT's, "decomposed" SAM's, "rope_index" EVA-02's
    (any grid spans `rope_grid` cells), "rope_unit" DINOv3's (`rope_periods` as its authors' checkpoints round them),
    "rope_axes" V-JEPA 2's, on any number of axes.
    `window` n keeps attention within n x n patches in all blocks but `global_blocks`. `final_norm` "pooled" norms the
    mean in place of the tokens; with `neck_channels` tokens pass SAM's neck.
    """

    embed_dim: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt
    patch_size: PositiveInt
    stem: Stem = "patch"
    patch_bias: bool = True
    image_size: PositiveInt = 224
    cls_token: bool = True
    dist_token: bool = False
    num_registers: int = Field(default=0, ge=0)
    positions: Literal["learned", "sincos", "none"] = "learned"
    position_interpolation: Interpolation = "bicubic"
    position_antialias: bool = True
    position_offset: float = Field(default=0.0, ge=0.0)
    relations: Relations = "none"
    rope_grid: PositiveInt | None = None
    rope_periods: tuple[PositiveFloat, ...] | None = None
    window: PositiveInt | None = None
    global_blocks: tuple[int, ...] = ()
    qkv_bias: QkvBias = True
    attention_norm: bool = False
    mlp: Literal["plain", "gated"] = "plain"
    mlp_ratio: PositiveFloat = 4.0
    mlp_norm: bool = False
    activation: Activation = "gelu"
    layer_norm_eps: PositiveFloat = 1e-6
    layer_scale: float | None = None
    pre_norm: bool = False
    norm_maps: bool = True
    pool: Pool = "cls"
    final_norm: Literal["tokens", "pooled", "none"] = "tokens"
    neck_channels: PositiveInt | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} doesn't divide by num_heads {self.num_heads}")
        if self.pool == "cls" and not self.cls_token:
            raise ValueError('pool "cls" needs cls_token; without it the pool is "mean"')
        if self.pool == "cls_dist" and not (self.cls_token and self.dist_token):
            raise ValueError('pool "cls_dist" needs cls_token and dist_token')
        if self.final_norm == "pooled" and self.pool != "mean":
            raise ValueError(f'final_norm "pooled" norms the mean: pool must be "mean", not "{self.pool}"')
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")
        if self.positions == "sincos" and self.embed_dim % 4:
            raise ValueError(f"sincos positions need a multiple of 4 channels, and embed_dim is {self.embed_dim}")
        self._relations_fit()
        return self

    def _relations_fit(self) -> None:
        if self.relations in ("rope_index", "rope_unit") and self.embed_dim // self.num_heads % 4:
            raise ValueError(f"{self.relations} needs heads of a multiple of 4 channels: change num_heads or embed_dim")
        if self.relations == "rope_axes" and self.embed_dim // self.num_heads < 6:
            raise ValueError("rope_axes needs heads of at least 6 channels: change num_heads or embed_dim")
        if self.relations == "table" and (self.num_prefix != 1 or not self.cls_token or self.window):
            raise ValueError('relations "table" needs the class token, no other prefix token, and no window')
        if (self.relations == "decomposed" or self.window) and self.num_prefix:
            what = 'relations "decomposed"' if self.relations == "decomposed" else "window"
            raise ValueError(
                f"{what} goes with patches alone: set cls_token and dist_token to false, num_registers to 0"
            )
        if self.rope_grid is not None and self.relations != "rope_index":
            raise ValueError(f'rope_grid belongs to relations "rope_index", and they are "{self.relations}"')
        if self.rope_periods is not None:
            count = self.embed_dim // self.num_heads // 4
            if self.relations != "rope_unit" or len(self.rope_periods) != count:
                raise ValueError(f'rope_periods belong to relations "rope_unit", {count} for heads of this size')
        if any(not 0 <= block < self.depth for block in self.global_blocks):
            raise ValueError(f"global_blocks {list(self.global_blocks)}: there are blocks 0 to {self.depth - 1}")

    @property
    def num_prefix(self) -> int:
        """Tokens that stand before the patches."""
        return self.cls_token + self.dist_token + self.num_registers

    @property
    def stored_grid(self) -> int:
        """Cells a side of the grid that tables are stored for."""
        return self.image_size // self.patch_size

    @property
    def stored_cells(self) -> int:
        """Rows that a learned table of positions has for cells."""
        return self.stored_grid**2

    def block(self, index: int, drop_path: float) -> Block:
        """Block `index`, windowed or not."""
        windowed = self.window is not None and index not in self.global_blocks
        return self.block_type(windowed)(self.block_options(windowed, drop_path))

    def block_type(self, windowed: bool) -> type[Block]:
        """The class of a block."""
        return WindowedBlock if windowed else Block

    def block_options(self, windowed: bool, drop_path: float) -> BlockOptions:
        """What a block is built with."""
        return BlockOptions(
            attention=AttentionOptions(
                dim=self.embed_dim,
                num_heads=self.num_heads,
                stored_grid=self.window if windowed and self.window else self.rope_grid or self.stored_grid,
                num_prefix=self.num_prefix,
                qkv_bias=self.qkv_bias,
                norm_eps=self.layer_norm_eps if self.attention_norm else None,
                rope_periods=self.rope_periods,
            ),
            hidden=int(self.embed_dim * self.mlp_ratio),
            relations=self.relations,
            mlp=self.mlp,
            activation=self.activation,
            mlp_norm_eps=self.layer_norm_eps if self.mlp_norm else None,
            norm_eps=self.layer_norm_eps,
            layer_scale=self.layer_scale,
            drop_path=drop_path,
        )

    def embedding(self) -> PatchEmbed:
        """What turns pictures into patches."""
        return STEMS[self.stem](self.in_channels, embed_dim=self.embed_dim, patch=self.patch_size, bias=self.patch_bias)

    def block_outputs(self) -> tuple[int, ...]:
        """The blocks that give a map."""
        return resolve_out_indices(self.out_indices, self.depth, evenly_spaced(self.depth))

    def build(self) -> "ViT":
        """A ViT with fresh weights."""
        # Imported here: the module reads this class.
        from vitdense.backbones.vit import ViT

        return ViT(self)
