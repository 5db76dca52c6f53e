"""A ResNet with a transformer on its last map (https://arxiv.org/abs/2010.11929): together a pyramid."""

from typing import Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from vitdense.backbones.options import HALVES, evenly_spaced, resolve_out_indices
from vitdense.backbones.vit import ViT, as_maps
from vitdense.backbones.vit_config import BASE, LARGE, SMALL, TINY, Options, ViTConfig
from vitdense.contracts import BACKBONES, Interaction, Level, Tokens
from vitdense.errors import UserError
from vitdense.layers.bit import GROUPS, STEM_STRIDE, BitResNet
from vitdense.layers.embed import PatchEmbed, crop_rows_and_columns

NANO: Options = {"embed_dim": 64, "depth": 4, "num_heads": 2, "image_size": 64}
R26: Options = {"stem_layers": (2, 2, 2, 2)}
R50_S16: Options = {"stem_layers": (3, 4, 9)}
R50_S32: Options = {"stem_layers": (3, 4, 6, 3)}


@BACKBONES.register("vit_nano_r_s16", **NANO, stem_layers=(1, 1, 1), stem_width=32, patch_size=16)
@BACKBONES.register("vit_tiny_r_s16_p8", **TINY, stem_layers=(), patch_size=32)
@BACKBONES.register("vit_small_r26_s32", **SMALL, **R26, patch_size=32)
@BACKBONES.register("vit_base_r26_s32", **BASE, **R26, patch_size=32)
@BACKBONES.register("vit_base_r50_s16", **BASE, **R50_S16, patch_size=16)
@BACKBONES.register("vit_large_r50_s32", **LARGE, **R50_S32, patch_size=32)
class HybridConfig(ViTConfig):
    """`out_indices` count the ResNet's stages, then the blocks: after three stages 0, 1 and 2, block 0 is 3.

    By default they are the stages finer than the tokens, and blocks to make four. Stages have strides 4, 8, 16, 32 and
    are given as they are, blocks have `patch_size`: the pixels a token covers, ResNet included. `frozen_stages` n
    freezes the whole ResNet and the first n - 1 blocks; `drop_path` is the blocks'.
    """

    stem_layers: tuple[PositiveInt, ...]
    stem_width: PositiveInt = Field(default=64, multiple_of=GROUPS)
    mean: tuple[float, ...] | None = HALVES["mean"]
    std: tuple[float, ...] | None = HALVES["std"]

    @model_validator(mode="after")
    def _stands_on_the_stem(self) -> Self:
        if self.stem != "patch":
            raise ValueError(f'the stem of a hybrid is its ResNet: leave "stem" out, given "{self.stem}"')
        if self.patch_size % self.stem_stride:
            raise ValueError(f"patch_size {self.patch_size} doesn't divide by {self.stem_stride}, the ResNet's stride")
        return self

    @property
    def stem_stride(self) -> int:
        """Pixels that a cell of the ResNet's last map covers."""
        return STEM_STRIDE << max(len(self.stem_layers) - 1, 0)

    def chosen(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The stages and the blocks that `out_indices` stand for."""
        stages = len(self.stem_layers)
        finer = [i for i in range(stages) if STEM_STRIDE << i < self.patch_size]
        blocks = evenly_spaced(self.depth)[-max(4 - len(finer), 1) :]
        default = (*finer, *(stages + i for i in blocks))
        indices = resolve_out_indices(self.out_indices, stages + self.depth, default)
        return tuple(i for i in indices if i < stages), tuple(i - stages for i in indices if i >= stages)

    def block_outputs(self) -> tuple[int, ...]:
        """The blocks among `out_indices`, counted from 0."""
        return self.chosen()[1]

    def embedding(self) -> "HybridEmbed":
        """The ResNet and its projection."""
        return HybridEmbed(self)

    def build(self) -> "Hybrid":
        """A hybrid with fresh weights."""
        return Hybrid(self)


class HybridEmbed(PatchEmbed):
    """A ResNet, and tokens from the cells of its last map."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config.in_channels, embed_dim=config.embed_dim, patch=config.patch_size)
        self.backbone = BitResNet(
            config.in_channels,
            layers=config.stem_layers,
            width=config.stem_width,
            recompute=config.grad_checkpointing,
        )
        channels = (config.stem_width, *self.backbone.channels)[-1]
        kernel = config.patch_size // config.stem_stride
        self.proj = nn.Conv2d(channels, config.embed_dim, kernel_size=kernel, stride=kernel, bias=config.patch_bias)

    def stages(self, images: Tensor, count: int) -> list[Tensor]:
        """images: (B, in_channels, H, W) -> the stem's map and the first `count` stages' (B, C_i, H_i, W_i), padded."""
        maps: list[Tensor] = self.backbone(self.whole_patches(images), count)
        return maps

    def project(self, maps: Tensor) -> Tensor:
        """maps: (B, C, H, W) of the last stage -> (B, ceil(H / patch), ceil(W / patch), embed_dim)."""
        patches: Tensor = self.proj(maps).permute(0, 2, 3, 1)  # (B, h, w, C)
        return patches

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, in_channels, H, W) -> (B, ceil(H / patch), ceil(W / patch), embed_dim)."""
        return self.project(self.stages(images, len(self.backbone.stages))[-1])


class Hybrid(ViT):
    """The ResNet's maps as they are, the blocks' as a ViT gives them; tokens and embed are the transformer's."""

    patch_embed: HybridEmbed

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(config)
        self.stages, blocks = config.chosen()
        resnet = self.patch_embed.backbone
        self.levels = (*(Level(resnet.channels[i], resnet.strides[i]) for i in self.stages), *self.levels)
        self.num_stages = len(config.stem_layers) if blocks else self.stages[-1] + 1

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, C, H, W), normalised -> [(B, C_i, ceil(H / s_i), ceil(W / s_i))] for each level."""
        maps, last = self._resnet_maps(images)
        return (
            [*maps, *as_maps(self._run_stages(self._place(self.patch_embed.project(last)), None))]
            if self.out_indices
            else maps
        )

    def forward_stages(self, images: Tensor, interaction: Interaction | None = None) -> list[Tokens]:
        """As ViT's; maps of the ResNet come as tokens without a prefix, and leave no room for an interaction."""
        if interaction is not None and self.stages:
            raise UserError(
                f"out_indices name stages {list(self.stages)} of the ResNet, which have no tokens: "
                f"name blocks only, from {len(self.patch_embed.backbone.stages)} on"
            )
        maps, last = self._resnet_maps(images)
        given = [
            Tokens(each.flatten(2).mT, each.new_zeros(each.shape[0], 0, each.shape[1]), (each.shape[2], each.shape[3]))
            for each in maps
        ]
        return (
            given + self._run_stages(self._place(self.patch_embed.project(last)), interaction)
            if self.out_indices
            else given
        )

    def _resnet_maps(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """images: (B, C, H, W) -> the stages' maps among the levels, and the last stage's, which the tokens are of."""
        height, width = images.shape[-2:]
        of_resnet = self.patch_embed.stages(images, self.num_stages)
        maps = []
        for i, level in zip(self.stages, self.levels, strict=False):
            rows, columns = ((size + level.stride - 1) // level.stride for size in (height, width))
            maps.append(crop_rows_and_columns(of_resnet[i + 1], rows, columns, channels_last=False))
        return maps, of_resnet[-1]

    def unused_in_maps(self) -> set[str]:
        """As ViT's; where no block is asked for, all behind the last stage that is."""
        if self.out_indices:
            return super().unused_in_maps()
        used = ("patch_embed.backbone.stem.", *(f"patch_embed.backbone.stages.{i}." for i in range(self.num_stages)))
        return {name for name, _ in self.named_parameters() if not name.startswith(used)}
