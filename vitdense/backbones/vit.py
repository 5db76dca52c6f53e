"""The plain vision transformer in all its published forms, maps from any of its blocks (https://arxiv.org/abs/2010.11929)."""

from collections.abc import Iterable
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.backbones.options import check_frozen_stages, freeze, pixel_statistics
from vitdense.backbones.vit_config import ViTConfig
from vitdense.contracts import Backbone, Guests, Interaction, Level, Tokens
from vitdense.layers.attention import Surroundings
from vitdense.layers.block import Block, drop_path_rates, init_linear, runner
from vitdense.layers.norm import LayerNorm2d
from vitdense.layers.pool import AttentionPool
from vitdense.layers.position import Grid, Interpolation, resize_positions, sincos_positions

_UNDECAYED = {"pos_embed", "cls_token", "dist_token", "reg_token", "latent"} | {
    "relative_position_bias_table",
    "rel_pos_h",
    "rel_pos_w",
}


class ViT(Backbone):
    """Every level has the patch as its stride. With norm_maps=False the final norm serves tokens and embed only."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        check_frozen_stages(config, config.depth + 1)
        self.num_layers = config.depth
        self.embed_dim = config.neck_channels or config.embed_dim
        self.mean, self.std = pixel_statistics(config)
        self.out_indices = config.block_outputs()
        placed = config.relations in ("table", "decomposed") or config.window is not None
        self.guest_blocks = 0 if placed else config.depth
        self.levels = tuple(Level(config.embed_dim, config.patch_size) for _ in self.out_indices)
        self.stored_grid, self.num_prefix = config.stored_grid, config.num_prefix
        self.interpolation: Interpolation = config.position_interpolation
        self.antialias, self.offset = config.position_antialias, config.position_offset
        self.norm_maps, self.pool = config.norm_maps, config.pool
        self.frozen_stages = config.frozen_stages
        self._run = runner(config.grad_checkpointing)
        self._positions = {"learned": self._learned, "sincos": self._sincos, "none": self._none}[config.positions]
        self.patch_embed = config.embedding()
        self._build_tokens(config)
        self._build_blocks(config)
        self._init_weights()
        self._freeze()

    def _build_tokens(self, config: ViTConfig) -> None:
        dim = config.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.cls_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.dist_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.num_registers, dim)) if config.num_registers else None
        rows = config.stored_cells + config.cls_token + config.dist_token
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, dim)) if config.positions == "learned" else None

    def _build_blocks(self, config: ViTConfig) -> None:
        dim, eps = config.embed_dim, config.layer_norm_eps
        self.norm_pre = nn.LayerNorm(dim, eps=eps) if config.pre_norm else nn.Identity()
        rates = drop_path_rates(config.drop_path, config.depth)
        self.blocks = nn.ModuleList(config.block(i, rate) for i, rate in enumerate(rates))
        self.norm = nn.LayerNorm(dim, eps=eps) if config.final_norm == "tokens" else nn.Identity()
        self.fc_norm = nn.LayerNorm(dim, eps=eps) if config.final_norm == "pooled" else nn.Identity()
        self.attn_pool = (
            AttentionPool(
                dim,
                num_heads=config.num_heads,
                mlp_ratio=config.mlp_ratio,
                norm_eps=eps,
                activation=config.activation,
            )
            if config.pool == "attention"
            else None
        )
        self.neck = None if config.neck_channels is None else _neck(dim, config.neck_channels)

    def _init_weights(self) -> None:
        self.apply(init_linear)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.dist_token, self.reg_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)

    def _freeze(self) -> None:
        if self.frozen_stages:
            for table in self._tables():
                table.requires_grad_(False)
            freeze([self.patch_embed, self.norm_pre, *self.blocks[: self.frozen_stages - 1]])

    def _tables(self) -> list[nn.Parameter]:
        """What is added to the patches, or stands before them."""
        tables = (self.pos_embed, self.cls_token, self.dist_token, self.reg_token)
        return [table for table in tables if table is not None]

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the frozen part."""
        super().train(mode)
        self._freeze()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, C, H, W), normalised -> [(B, embed_dim, ceil(H / patch), ceil(W / patch))] for each level."""
        return as_maps(self._run_stages(self._place(self.patch_embed(images)), None))

    def forward_stages(self, images: Tensor, interaction: Interaction | None = None) -> list[Tokens]:
        """As `forward`, in tokens, with `interaction` before and after the blocks up to each of `out_indices`."""
        return self._run_stages(self._place(self.patch_embed(images)), interaction)

    def _run_stages(self, placed: tuple[Tensor, Grid], interaction: Interaction | None) -> list[Tokens]:
        """placed: (B, prefix + h * w, C) and (h, w) -> the tokens of the blocks in `out_indices`."""
        x, grid = placed
        del placed  # or the first tokens would be kept to the last block
        around = self._survey(grid, x)
        given, start = [], 0
        for stage, last in enumerate(self.out_indices):
            if interaction is not None:
                entering = interaction.before(stage, x[:, self.num_prefix :], grid)
                x = torch.cat([x[:, : self.num_prefix], entering], dim=1)
            for i in range(start, last + 1):
                x = self._run(self.blocks[i], x, around[i])
            if interaction is not None:
                interaction.after(stage, x[:, self.num_prefix :], grid)
            given.append(self._split(self.norm(x) if self.norm_maps else x, grid))
            start = last + 1
        return given

    def forward_with(self, images: Tensor, guests: Guests) -> tuple[Tensor, Tokens]:
        """images: (B, C, H, W), normalised -> guests (B, Q, C) and tokens after the last block, normed."""
        x, grid = self._place(self.patch_embed(images))
        around, first = self._survey(grid, x), self.num_layers - guests.blocks
        for i in range(first):
            x = self._run(self.blocks[i], x, around[i])
        own = guests.enter(x[:, self.num_prefix :])
        count, start = own.shape[1], own.shape[1] + self.num_prefix
        x = torch.cat([own, x], dim=1)
        for i, block in enumerate(cast(Iterable[Block], self.blocks[first:])):
            near = block.joined(around[first + i], count)
            if guests.looks:
                normed = self.norm(x)
                seen = guests.visible(i, normed[:, :count], normed[:, start:], grid)
                if seen is not None:  # what comes before the patches is seen by all
                    near = near._replace(visible=F.pad(seen, (start, 0), value=True)[:, None])
            x = self._run(block, x, near)
        x = self.norm(x)
        return x[:, :count], self._split(x[:, count:], grid)

    def tokens(self, images: Tensor) -> Tokens:
        """images: (B, C, H, W), normalised -> patches (B, h * w, C), prefix (B, P, C): class, then the others."""
        x, grid = self._place(self.patch_embed(images))
        for block, around in zip(self.blocks, self._survey(grid, x), strict=True):
            x = self._run(block, x, around)
        x = self.norm(x)
        if self.neck is not None:
            x = self.neck(torch.unflatten(x.mT, 2, grid)).flatten(2).mT  # (B, h * w, C)
        return self._split(x, grid)

    def attention_blocks(self) -> list[nn.Module]:
        """All blocks."""
        return list(self.blocks)

    def embed(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W), normalised -> (B, embed_dim), pooled as published, before any projection."""
        return self._pooled(self.tokens(images))

    def maps_and_vector(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """images: (B, C, H, W), normalised -> maps and vector, in one pass where the last block gives a map."""
        if self.out_indices[-1] != self.num_layers - 1 or not self.norm_maps or self.neck is not None:
            return super().maps_and_vector(images)
        stages = self.forward_stages(images)
        return as_maps(stages), self._pooled(stages[-1])

    def _pooled(self, tokens: Tokens) -> Tensor:
        """The last block's tokens, normed -> (B, embed_dim)."""
        patches, prefix, _ = tokens
        if self.attn_pool is not None:
            pooled: Tensor = self.attn_pool(patches)
            return pooled
        if self.pool == "mean":
            normed: Tensor = self.fc_norm(patches.mean(dim=1))
            return normed
        return prefix[:, 0] if self.pool == "cls" else prefix[:, :2].mean(dim=1)

    def value_tokens(self, images: Tensor) -> Tokens:
        """images: (B, C, H, W), normalised -> patches (B, h * w, C) in the space of `embed`, and prefix.

        Pooled by a class token: the last block's values, as if each token attended to itself alone (MaskCLIP,
        https://arxiv.org/abs/2112.01071). Pooled by attention: the values of the pool. Pooled by the mean: the tokens,
        normed as their mean is.
        """
        if self.attn_pool is None and self.pool != "mean":
            x, grid = self._place(self.patch_embed(images))
            for block, around in zip(self.blocks[:-1], self._survey(grid, x), strict=False):
                x = self._run(block, x, around)
            return self._split(self.norm(cast(Block, self.blocks[-1]).unmixed(x)), grid)
        tokens = self.tokens(images)
        read = self.fc_norm if self.attn_pool is None else self.attn_pool.values
        return tokens._replace(patches=read(tokens.patches))

    def _survey(self, grid: Grid, tokens: Tensor) -> list[Surroundings]:
        """What each block needs to know about the grid, made once for all blocks of a kind."""
        # A cast, since ModuleList forgets what it holds.
        kinds = {type(block): block for block in cast(Iterable[Block], self.blocks)}
        made: dict[type[nn.Module], Surroundings] = {kind: block.survey(grid, tokens) for kind, block in kinds.items()}
        return [made[type(block)] for block in self.blocks]

    def _split(self, x: Tensor, grid: Grid) -> Tokens:
        return Tokens(x[:, self.num_prefix :], x[:, : self.num_prefix], grid)

    def _place(self, patches: Tensor) -> tuple[Tensor, Grid]:
        """patches: (B, h, w, C) -> (B, prefix + h * w, C) with positions added, and (h, w); so for (B, t, h, w, C)."""
        grid = tuple(patches.shape[1:-1])
        first, on_grid = self._positions(grid, patches)
        given = (self.cls_token, self.dist_token, self.reg_token)
        prefix: list[Tensor] = [token for token in given if token is not None]
        tokens = (patches + on_grid).flatten(1, -2)  # (B, h * w, C)
        if prefix:
            before = torch.cat(prefix, dim=1) + first  # (1, P, C)
            tokens = torch.cat([before.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        out: Tensor = self.norm_pre(tokens)
        return out, grid

    def _learned(self, grid: Grid, patches: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the prefix, (1, P, C), and to the patches, (1, h, w, C): rows of the table, resized."""
        assert self.pos_embed is not None
        side = self.stored_grid
        rows = self.pos_embed.shape[1] - side**2
        stored = self.pos_embed[:, rows:].reshape(1, side, side, -1)  # (1, side, side, C)
        on_grid = resize_positions(
            stored, grid, interpolation=self.interpolation, antialias=self.antialias, offset=self.offset
        )
        # Registers come after the class and distillation tokens, and have no place.
        return F.pad(self.pos_embed[:, :rows], (0, 0, 0, self.num_prefix - rows)), on_grid

    def _sincos(self, grid: Grid, patches: Tensor) -> tuple[Tensor, Tensor]:
        """The patches' places as fixed waves; the prefix has none."""
        waves = sincos_positions(patches.shape[-1], grid, device=patches.device).to(patches.dtype)
        return patches.new_zeros(()), waves

    def _none(self, grid: Grid, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing is added."""
        return patches.new_zeros(()), patches.new_zeros(())

    def layer_of(self, parameter: str) -> int:
        """0 for the embedding, i + 1 for block i, `num_layers` for what comes after the blocks."""
        part, _, rest = parameter.partition(".")
        if part == "blocks":
            return int(rest.split(".")[0]) + 1
        return self.num_layers if part in {"norm", "fc_norm", "attn_pool", "neck"} else 0

    def no_decay(self) -> set[str]:
        """Tables of positions, prefix tokens and the pool's query."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in _UNDECAYED}

    def unused_in_maps(self) -> set[str]:
        """The pool, the neck and what is behind the last of `out_indices`; the final norm where maps aren't normed."""
        blocks = {f"blocks.{i}." for i in range(self.out_indices[-1] + 1, self.num_layers)}
        parts = ("fc_norm.", "attn_pool.", "neck.", *blocks, *(() if self.norm_maps else ("norm.",)))
        return {name for name, _ in self.named_parameters() if name.startswith(parts)}

    def unused_in_blocks(self) -> set[str]:
        """The pool and the neck."""
        parts = ("fc_norm.", "attn_pool.", "neck.")
        return {name for name, _ in self.named_parameters() if name.startswith(parts)}


def _neck(dim: int, channels: int) -> nn.Sequential:
    """SAM's, from the last block to its mask decoder."""
    return nn.Sequential(
        nn.Conv2d(dim, channels, kernel_size=1, bias=False),
        LayerNorm2d(channels, eps=1e-6),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(channels, eps=1e-6),
    )


def as_maps(stages: Iterable[Tokens]) -> list[Tensor]:
    """Tokens of patches (B, h * w, C) -> maps (B, C, h, w)."""
    return [patches.mT.reshape(patches.shape[0], patches.shape[2], *grid) for patches, _, grid in stages]
