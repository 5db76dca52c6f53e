"""Vision transformers on clips and volumes: joint, divided and factorised attention over space and time.

TimeSformer (https://arxiv.org/abs/2102.05095), ViViT (https://arxiv.org/abs/2103.15691), VideoMAE
(https://arxiv.org/abs/2203.12602) and V-JEPA 2 (https://arxiv.org/abs/2506.09985).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.backbones.vit import ViT
from vitdense.contracts import Level, Tokens
from vitdense.layers.attention import Surroundings
from vitdense.layers.block import Block, drop_path_rates, init_linear
from vitdense.layers.position import Grid, resize_positions
from vitdense.layers.space_time_position import resize_times, resize_volume, sincos_volume, waves_by_index

if TYPE_CHECKING:
    from vitdense.backbones.video_vit_config import VideoViTConfig
    from vitdense.backbones.vit_config import ViTConfig

_TIME_ENCODER = ("time_token", "time_embed", "time_blocks.", "time_norm.")


class VideoViT(ViT):
    """Clips (B, C, T, H, W) in, maps (B, embed_dim, ceil(T / tubelet), ceil(H / patch), ceil(W / patch)) out.

    Tokens lie time by time, in each time row by row. Volumes are clips whose slices are their frames.
    """

    def __init__(self, config: "VideoViTConfig") -> None:
        super().__init__(config)
        self.levels = tuple(Level(level.channels, level.stride, config.tubelet) for level in self.levels)
        if config.final_norm == "pooled" and config.pool_norm_eps is not None:
            self.fc_norm = nn.LayerNorm(config.embed_dim, eps=config.pool_norm_eps)

    def _build_tokens(self, config: "ViTConfig") -> None:
        super()._build_tokens(config)
        # A cast, since no other config builds this class.
        config = cast("VideoViTConfig", config)
        self.stored_times, self.time_interpolation = config.stored_times, config.time_interpolation
        self.joint_table = config.position_tables == "joint"
        self._waves = waves_by_index if config.position_tables == "index" else sincos_volume
        rows = self._time_rows(config)
        self.time_embed = nn.Parameter(torch.zeros(1, rows, config.embed_dim)) if rows else None

    def _time_rows(self, config: "VideoViTConfig") -> int:
        """How long a table of times there is beside that of places."""
        divided = config.positions == "learned" and config.position_tables == "divided"
        return config.stored_times if divided else 0

    def _init_weights(self) -> None:
        super()._init_weights()
        for name, parameter in self.named_parameters():
            if ".temporal_fc." in name:
                nn.init.zeros_(parameter)

    def _tables(self) -> list[nn.Parameter]:
        return [*super()._tables(), *([] if self.time_embed is None else [self.time_embed])]

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: clips (B, C, T, H, W), normalised -> [(B, embed_dim, T', H', W')] for each level."""
        return super().forward(images)

    def _learned(self, grid: Grid, patches: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the prefix, (1, P, C), and to the patches, (1, t, h, w, C): rows of the tables, resized."""
        assert self.pos_embed is not None
        side, times = self.stored_grid, self.stored_times if self.joint_table else 1
        rows = self.pos_embed.shape[1] - times * side**2
        stored = self.pos_embed[:, rows:].reshape(1, times, side, side, -1)  # (1, times, side, side, C)
        first = F.pad(self.pos_embed[:, :rows], (0, 0, 0, self.num_prefix - rows))
        if self.joint_table:
            return first, resize_volume(
                stored,
                grid,
                interpolation=self.interpolation,
                antialias=self.antialias,
                time_interpolation=self.time_interpolation,
            )
        places = resize_positions(
            stored[:, 0], grid[1:], interpolation=self.interpolation, antialias=self.antialias, offset=self.offset
        )
        return first, places[:, None] + self._times(grid)

    def _times(self, grid: Grid) -> Tensor:
        """(1, t, 1, 1, C), what is added to all places of a time."""
        assert self.time_embed is not None
        return resize_times(self.time_embed, grid[0], interpolation=self.time_interpolation)[:, :, None, None]

    def _sincos(self, grid: Grid, patches: Tensor) -> tuple[Tensor, Tensor]:
        """The patches' places as fixed waves; the prefix has none."""
        waves = self._waves(patches.shape[-1], grid, device=patches.device).to(patches.dtype)
        return patches.new_zeros(()), waves

    def no_decay(self) -> set[str]:
        """Tables of positions and times, prefix tokens and the pool's query."""
        return super().no_decay() | {
            name for name, _ in self.named_parameters() if name in ("time_embed", "time_token")
        }


class FactorisedEncoderViT(VideoViT):
    """ViViT's model 2: a transformer over the places of each time, and one over what it found in each of them.

    The maps are those of the first; the second makes the vector, and the prefix of `tokens` are the tokens that the
    first put before each time's patches, (B, t * P, C).
    """

    def __init__(self, config: "VideoViTConfig") -> None:
        super().__init__(config)
        dim, eps = config.embed_dim, config.layer_norm_eps
        self.time_token = nn.Parameter(torch.zeros(1, 1, dim)) if config.cls_token else None
        rates = drop_path_rates(config.drop_path, config.temporal_depth)
        self.time_blocks = nn.ModuleList(config.time_block(rate) for rate in rates)
        self.time_norm = nn.LayerNorm(dim, eps=eps)
        self.time_blocks.apply(init_linear)
        assert self.time_embed is not None
        nn.init.trunc_normal_(self.time_embed, std=0.02)

    def _time_rows(self, config: "VideoViTConfig") -> int:
        return config.stored_times + config.cls_token

    def _tables(self) -> list[nn.Parameter]:
        # Times belong to the second transformer, which is never frozen.
        return [table for table in super()._tables() if table is not self.time_embed]

    def _times(self, grid: Grid) -> Tensor:
        """Nothing: the first transformer doesn't know the time."""
        assert self.time_embed is not None
        return self.time_embed.new_zeros(())

    def _place(self, patches: Tensor) -> tuple[Tensor, Grid]:
        """patches: (B, t, h, w, C) -> (B * t, P + h * w, C) with positions added, and (t, h, w)."""
        grid = tuple(patches.shape[1:-1])
        first, on_grid = self._positions(grid, patches)
        tokens = (patches + on_grid).flatten(0, 1).flatten(1, 2)  # (B * t, h * w, C)
        given = (self.cls_token, self.dist_token, self.reg_token)
        prefix: list[Tensor] = [token for token in given if token is not None]
        if prefix:
            before = torch.cat(prefix, dim=1) + first  # (1, P, C)
            tokens = torch.cat([before.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        out: Tensor = self.norm_pre(tokens)
        return out, grid

    def _survey(self, grid: Grid, tokens: Tensor) -> list[Surroundings]:
        return super()._survey(grid[1:], tokens)

    def _split(self, x: Tensor, grid: Grid) -> Tokens:
        """x: (B * t, P + h * w, C) -> patches (B, t * h * w, C), prefix (B, t * P, C)."""
        clips = torch.unflatten(x, 0, (x.shape[0] // grid[0], grid[0]))  # (B, t, P + h * w, C)
        return Tokens(clips[:, :, self.num_prefix :].flatten(1, 2), clips[:, :, : self.num_prefix].flatten(1, 2), grid)

    def _pooled(self, tokens: Tokens) -> Tensor:
        """The last block's tokens, normed -> (B, embed_dim), by way of the transformer over time."""
        (batch, *_), (times, rows, columns) = tokens.patches.shape, tokens.grid
        found = super()._pooled(
            Tokens(
                torch.unflatten(tokens.patches, 1, (times, rows * columns)).flatten(0, 1),
                torch.unflatten(tokens.prefix, 1, (times, self.num_prefix)).flatten(0, 1),
                tokens.grid[1:],
            )
        )  # (B * t, C)
        found = torch.unflatten(found, 0, (batch, times))  # (B, t, C)
        assert self.time_embed is not None
        before = self.time_embed.shape[1] - self.stored_times
        places = resize_times(self.time_embed[:, before:], times, interpolation=self.time_interpolation)
        x = found + places
        if self.time_token is not None:
            first = (self.time_token + self.time_embed[:, :before]).expand(batch, -1, -1)
            x = torch.cat([first, x], dim=1)  # (B, 1 + t, C)
        for block in cast(Iterable[Block], self.time_blocks):
            x = self._run(block, x, Surroundings((times,)))
        normed: Tensor = self.time_norm(x)
        return normed.mean(dim=1) if self.time_token is None else normed[:, 0]

    def value_tokens(self, images: Tensor) -> Tokens:
        """images: (B, C, T, H, W), normalised -> the tokens of the first transformer: no more is known of a patch."""
        return self.tokens(images)

    def layer_of(self, parameter: str) -> int:
        """As of the first transformer; what is over time comes after its blocks."""
        return self.num_layers if parameter.startswith(_TIME_ENCODER) else super().layer_of(parameter)

    def unused_in_maps(self) -> set[str]:
        """As of the first transformer, and all of the second."""
        second = {name for name, _ in self.named_parameters() if name.startswith(_TIME_ENCODER)}
        return super().unused_in_maps() | second
