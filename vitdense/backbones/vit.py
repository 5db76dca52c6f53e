"""The plain vision transformer, maps from any of its blocks (https://arxiv.org/abs/2010.11929)."""

from typing import Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from vitdense.backbones.options import (
    check_frozen_stages,
    evenly_spaced,
    freeze,
    pixel_statistics,
    resolve_out_indices,
)
from vitdense.contracts import BACKBONES, Backbone, BackboneConfig, Level, Tokens
from vitdense.layers.block import Block, drop_path_rates, init_linear, runner
from vitdense.layers.embed import STEMS, Stem
from vitdense.layers.position import Interpolation, resize_positions


@BACKBONES.register("vit_nano_patch8", embed_dim=64, depth=4, num_heads=2, patch_size=8, image_size=64)
@BACKBONES.register("vit_tiny_patch16", embed_dim=192, depth=12, num_heads=3, patch_size=16)
@BACKBONES.register("vit_small_patch8", embed_dim=384, depth=12, num_heads=6, patch_size=8)
@BACKBONES.register("vit_small_patch16", embed_dim=384, depth=12, num_heads=6, patch_size=16)
@BACKBONES.register("vit_small_patch32", embed_dim=384, depth=12, num_heads=6, patch_size=32)
@BACKBONES.register("vit_base_patch8", embed_dim=768, depth=12, num_heads=12, patch_size=8)
@BACKBONES.register("vit_base_patch16", embed_dim=768, depth=12, num_heads=12, patch_size=16)
@BACKBONES.register("vit_base_patch32", embed_dim=768, depth=12, num_heads=12, patch_size=32)
@BACKBONES.register("vit_large_patch14", embed_dim=1024, depth=24, num_heads=16, patch_size=14)
@BACKBONES.register("vit_large_patch16", embed_dim=1024, depth=24, num_heads=16, patch_size=16)
@BACKBONES.register("vit_large_patch32", embed_dim=1024, depth=24, num_heads=16, patch_size=32)
@BACKBONES.register("vit_huge_patch14", embed_dim=1280, depth=32, num_heads=16, patch_size=14)
class ViTConfig(BackboneConfig):
    """`out_indices` are blocks; `frozen_stages` n freezes the embedding and the first n - 1 blocks.

    `image_size` is the size whose grid the position table is stored for; it limits nothing.
    """

    embed_dim: PositiveInt
    depth: PositiveInt
    num_heads: PositiveInt
    patch_size: PositiveInt
    stem: Stem = "patch"
    mlp_ratio: PositiveFloat = 4.0
    image_size: PositiveInt = 224
    cls_token: bool = True
    num_registers: int = Field(default=0, ge=0)
    pool: Literal["cls", "mean"] = "cls"
    layer_scale: float | None = None
    qkv_bias: bool = True
    layer_norm_eps: PositiveFloat = 1e-6
    norm_maps: bool = True
    position_interpolation: Interpolation = "bicubic"
    position_antialias: bool = True

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} doesn't divide by num_heads {self.num_heads}")
        if self.pool == "cls" and not self.cls_token:
            raise ValueError('pool "cls" needs cls_token; without it the pool is "mean"')
        if self.image_size < self.patch_size:
            raise ValueError(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")
        return self

    def build(self) -> "ViT":
        """A ViT with fresh weights."""
        return ViT(self)


class ViT(Backbone):
    """Every level has the patch as its stride. With norm_maps=False the final norm serves tokens and embed only."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        check_frozen_stages(config, config.depth + 1)
        self.embed_dim, self.num_layers = config.embed_dim, config.depth
        self.mean, self.std = pixel_statistics(config)
        self.out_indices = resolve_out_indices(config.out_indices, config.depth, evenly_spaced(config.depth))
        self.levels = tuple(Level(config.embed_dim, config.patch_size) for _ in self.out_indices)
        self.stored_grid = config.image_size // config.patch_size
        self.num_prefix = config.num_registers + config.cls_token
        self.mean_pool = config.pool == "mean"
        self.interpolation: Interpolation = config.position_interpolation
        self.antialias = config.position_antialias
        self.norm_maps = config.norm_maps
        self.frozen_stages = config.frozen_stages
        self._run = runner(config.grad_checkpointing)
        self._build(config)
        self._init_weights()
        self._freeze()

    def _build(self, config: ViTConfig) -> None:
        dim, positions = config.embed_dim, self.stored_grid**2 + config.cls_token
        self.patch_embed = STEMS[config.stem](config.in_channels, embed_dim=dim, patch=config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.cls_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.num_registers, dim)) if config.num_registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, dim))
        self.blocks = nn.ModuleList(
            Block(
                dim,
                num_heads=config.num_heads,
                mlp_ratio=config.mlp_ratio,
                qkv_bias=config.qkv_bias,
                norm_eps=config.layer_norm_eps,
                layer_scale=config.layer_scale,
                drop_path=rate,
            )
            for rate in drop_path_rates(config.drop_path, config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)

    def _init_weights(self) -> None:
        self.apply(init_linear)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)

    def _freeze(self) -> None:
        if self.frozen_stages:
            self.pos_embed.requires_grad_(False)
            for token in (self.cls_token, self.reg_token):
                if token is not None:
                    token.requires_grad_(False)
            freeze([self.patch_embed, *self.blocks[: self.frozen_stages - 1]])

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the frozen part."""
        super().train(mode)
        self._freeze()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, C, H, W), normalised -> [(B, embed_dim, ceil(H / patch), ceil(W / patch))] for each level."""
        tokens, grid = self._embed_patches(images)
        maps = []
        for i, block in enumerate(self.blocks[: self.out_indices[-1] + 1]):
            tokens = self._run(block, tokens)
            if i in self.out_indices:
                patches = tokens[:, self.num_prefix :]
                patches = self.norm(patches) if self.norm_maps else patches
                maps.append(patches.mT.reshape(images.shape[0], -1, *grid))  # (B, C, h, w)
        return maps

    def tokens(self, images: Tensor) -> Tokens:
        """images: (B, C, H, W), normalised -> patches (B, h * w, C), prefix (B, P, C): class token, then registers."""
        tokens, grid = self._embed_patches(images)
        for block in self.blocks:
            tokens = self._run(block, tokens)
        tokens = self.norm(tokens)
        return Tokens(tokens[:, self.num_prefix :], tokens[:, : self.num_prefix], grid)

    def embed(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W), normalised -> (B, embed_dim): the class token, or the mean of the patches."""
        tokens = self.tokens(images)
        return tokens.patches.mean(dim=1) if self.mean_pool else tokens.prefix[:, 0]

    def _embed_patches(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, C, H, W) -> (B, prefix + h * w, embed_dim) with positions added, and (h, w)."""
        patches = self.patch_embed(images)  # (B, h, w, C)
        height, width = patches.shape[1:3]
        side = self.stored_grid
        stored = self.pos_embed[:, -(side**2) :].reshape(1, side, side, -1)  # (1, side, side, C)
        positions = resize_positions(
            stored, (height, width), interpolation=self.interpolation, antialias=self.antialias
        )
        tokens = (patches + positions).flatten(1, 2)  # (B, h * w, C)
        prefix = []
        if self.cls_token is not None:
            prefix.append(self.cls_token + self.pos_embed[:, :1])
        if self.reg_token is not None:
            prefix.append(self.reg_token)
        batch = tokens.shape[0]
        return torch.cat([*(token.expand(batch, -1, -1) for token in prefix), tokens], dim=1), (height, width)

    def layer_of(self, parameter: str) -> int:
        """0 for the embedding, i + 1 for block i, `num_layers` for the final norm."""
        part, _, rest = parameter.partition(".")
        if part == "blocks":
            return int(rest.split(".")[0]) + 1
        return self.num_layers if part == "norm" else 0

    def no_decay(self) -> set[str]:
        """The position table and the prefix tokens."""
        return {name for name, _ in self.named_parameters() if name in {"pos_embed", "cls_token", "reg_token"}}
