"""ViT-Adapter: a convolutional branch beside a plain transformer gives it a pyramid (https://arxiv.org/abs/2205.08534).

Parameters are named as in the authors' code.
"""

import math
from typing import cast

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from vitdense.adapters.grids import STRIDES, cells, check_pictures, check_plain, crop, resample
from vitdense.adapters.interaction import Exchange, Grid, InteractionBlock, InteractionOptions
from vitdense.adapters.spatial_prior import SpatialPrior
from vitdense.contracts import ADAPTERS, Adapter, AdapterConfig, Backbone, Level, Tokens
from vitdense.errors import UserError
from vitdense.layers.deformable import DeformableAttention


@ADAPTERS.register("vit_adapter")
class ViTAdapterConfig(AdapterConfig):
    """Strides 4, 8, 16 and 32 of the backbone's width; `in_channels` is the backbone's.

    Left out, `deform_ratio` and `deform_num_heads` are the paper's: 1.0 up to 384 channels and 0.5 above; 6 heads, or
    one for each 64 channels where that is more. The published arithmetic adds maps to the result as the blocks gave
    them, so it needs `norm_maps: false` of the backbone. `cffn_ratio: 0` leaves out the convolution network, and
    `add_vit_feature: false` the backbone's maps.
    """

    in_channels: PositiveInt = 3
    conv_dim: PositiveInt = 64
    deform_num_heads: PositiveInt | None = None
    deform_num_points: PositiveInt = 4
    deform_ratio: PositiveFloat | None = None
    cffn_ratio: NonNegativeFloat = 0.25
    extra_extractors: NonNegativeInt = 2
    add_vit_feature: bool = True
    norm_eps: PositiveFloat = 1e-6
    drop_path: float = Field(default=0.0, ge=0.0, lt=1.0)
    grad_checkpointing: bool = False

    def build(self, levels: tuple[Level, ...]) -> "ViTAdapter":
        """An adapter with an interaction for each of the backbone's stages: four, as in the paper, to add its maps."""
        check_pictures("vit_adapter", levels)
        check_plain("vit_adapter", levels)
        if self.add_vit_feature and len(levels) != len(STRIDES):
            raise UserError(
                f"vit_adapter adds {len(STRIDES)} maps to its result, and the backbone gives {len(levels)}: change its "
                "out_indices or set add_vit_feature: false, or take `adapter: {name: simple_pyramid}`"
            )
        return ViTAdapter(self, levels)

    def options(self, dim: int) -> InteractionOptions:
        """For a backbone of this width."""
        ratio = self.deform_ratio or (1.0 if dim <= 384 else 0.5)
        width = int(dim * ratio)
        heads = self.deform_num_heads or next(n for n in range(max(6, dim // 64), 0, -1) if width % n == 0)
        if width % heads:
            raise UserError(
                f"vit_adapter: {width} channels, {ratio:g} of {dim}, don't divide by deform_num_heads {heads}"
            )
        return InteractionOptions(
            dim=dim,
            num_heads=heads,
            num_points=self.deform_num_points,
            ratio=ratio,
            cffn_ratio=self.cffn_ratio,
            norm_eps=self.norm_eps,
            drop_path=self.drop_path,
            grad_checkpointing=self.grad_checkpointing,
        )


class ViTAdapter(Adapter):
    """The spatial prior and the backbone's patches read each other before and after every stage."""

    def __init__(self, config: ViTAdapterConfig, levels: tuple[Level, ...]) -> None:
        super().__init__()
        dim, last = levels[-1].channels, len(levels) - 1
        self.levels = tuple(Level(dim, stride) for stride in STRIDES)
        self.patch, self.in_channels = levels[-1].stride, config.in_channels
        self.add_vit_feature = config.add_vit_feature
        self.spm = SpatialPrior(config.in_channels, conv_dim=config.conv_dim, embed_dim=dim)
        self.level_embed = nn.Parameter(torch.zeros(3, dim))
        options = config.options(dim)
        self.interactions = nn.ModuleList(
            InteractionBlock(options, num_levels=3, extra_extractors=config.extra_extractors if i == last else 0)
            for i in range(len(levels))
        )
        self.up = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.BatchNorm2d(dim) for _ in STRIDES)
        self.apply(_init_weights)
        nn.init.normal_(self.level_embed)

    def adapt(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        """images: (B, C, H, W) -> [(B, C, ceil(H / s), ceil(W / s))] for s in 4, 8, 16, 32."""
        if images.shape[1] != self.in_channels:
            raise UserError(
                f"vit_adapter reads pictures of {self.in_channels} channels, given {images.shape[1]}: "
                "set its in_channels to the backbone's"
            )
        finest, *coarser = self.spm(images)
        grids = [Grid(each.shape[2], each.shape[3], stride) for each, stride in zip(coarser, STRIDES[1:], strict=True)]
        prior = [each.flatten(2).mT + own for each, own in zip(coarser, self.level_embed, strict=True)]
        # A cast, since ModuleList forgets what it holds.
        blocks = cast(list[InteractionBlock], list(self.interactions))
        patches = Grid(cells(images.shape[2], self.patch), cells(images.shape[3], self.patch), self.patch)
        exchange = Exchange(blocks, torch.cat(prior, dim=1), grids, patches)
        stages = backbone.forward_stages(images, exchange)
        parts = torch.split(exchange.prior, [grid.height * grid.width for grid in grids], dim=1)
        shapes = [(grid.height, grid.width) for grid in grids]
        coarser = [torch.unflatten(part.mT, 2, shape) for part, shape in zip(parts, shapes, strict=True)]
        maps = [finest + crop(self.up(coarser[0]), finest.shape[2], finest.shape[3]), *coarser]
        if self.add_vit_feature:
            maps = [each + self._read(stage, each, i) for i, (each, stage) in enumerate(zip(maps, stages, strict=True))]
        return [norm(each) for norm, each in zip((self.norm1, self.norm2, self.norm3, self.norm4), maps, strict=True)]

    def forward(self, maps: list[Tensor], images: Tensor) -> list[Tensor]:
        """Maps alone are too late: `adapt` works between the stages."""
        raise UserError("vit_adapter works between the stages of a backbone: call adapt(backbone, images)")

    def _read(self, stage: Tokens, like: Tensor, index: int) -> Tensor:
        """The patches of a stage as a map of the size of `like`, (B, C, h, w)."""
        patches = stage.patches.mT.reshape(like.shape[0], -1, *stage.grid)  # (B, C, h, w)
        return crop(resample(patches, self.patch, STRIDES[index]), like.shape[2], like.shape[3])


def _init_weights(module: nn.Module) -> None:
    """As published; attention by its own rule, after its layers."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, DeformableAttention):
        module.reset_parameters()
