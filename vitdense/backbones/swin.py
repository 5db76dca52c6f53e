"""Swin, the hierarchical transformer of shifted windows (https://arxiv.org/abs/2103.14030)."""

from typing import Self, cast

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from vitdense.backbones.options import check_frozen_stages, freeze, pixel_statistics, resolve_out_indices
from vitdense.contracts import BACKBONES, Backbone, BackboneConfig, Level, Tokens
from vitdense.layers.block import DropPath, drop_path_rates, init_linear, runner
from vitdense.layers.embed import STEMS, Stem, pad_rows_and_columns
from vitdense.layers.looks import Look
from vitdense.layers.mlp import Mlp, normed_mlp
from vitdense.layers.window import WindowAttention, WindowOrder, normed_window_attention

_UNDECAYED = {"relative_position_bias_table", "cpb_mlp", "logit_scale"}


@BACKBONES.register("swin_nano", embed_dim=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))
@BACKBONES.register("swin_tiny", embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
@BACKBONES.register("swin_tiny_window12", embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window=12)
@BACKBONES.register("swin_small", embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24))
@BACKBONES.register("swin_small_window12", embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), window=12)
@BACKBONES.register("swin_base", embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
@BACKBONES.register("swin_base_window12", embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), window=12)
@BACKBONES.register("swin_large", embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))
@BACKBONES.register("swin_large_window12", embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window=12)
class SwinConfig(BackboneConfig):
    """`out_indices` are stages; `frozen_stages` n freezes the embedding and the first n - 1 stages.

    `window_order` "pad_roll" is the paper's; "roll_pad" is timm's, other wherever a window doesn't divide the map.
    `always_shift` shifts even where one window covers the map, as transformers' SwinBackbone and mmseg do.
    """

    embed_dim: PositiveInt
    depths: tuple[PositiveInt, ...]
    num_heads: tuple[PositiveInt, ...]
    window: PositiveInt = 7
    patch_size: PositiveInt = 4
    stem: Stem = "patch"
    mlp_ratio: PositiveFloat = 4.0
    qkv_bias: bool = True
    layer_norm_eps: PositiveFloat = 1e-5
    window_order: WindowOrder = "pad_roll"
    always_shift: bool = False
    norm_maps: bool = True

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.depths or len(self.depths) != len(self.num_heads):
            raise ValueError(f"depths has {len(self.depths)} stages and num_heads {len(self.num_heads)}")
        for stage, heads in enumerate(self.num_heads):
            if self.channels(stage) % heads:
                raise ValueError(f"stage {stage}: {self.channels(stage)} channels don't divide by {heads} heads")
        return self

    def channels(self, stage: int) -> int:
        """Channels of a stage: they double at each."""
        return int(self.embed_dim * 2**stage)

    def block(self, stage: int, *, shifted: bool, drop_path: float) -> nn.Module:
        """A block of a stage."""
        return SwinBlock(self, stage=stage, shifted=shifted, drop_path=drop_path)

    def merging(self, stage: int) -> nn.Module:
        """What stands before the blocks of a stage other than the first."""
        return PatchMerging(self.channels(stage - 1), norm_eps=self.layer_norm_eps)

    def build(self) -> "Swin":
        """A Swin with fresh weights."""
        return Swin(self)


class SwinBlock(nn.Module):
    """Window attention and MLP, each normed before and added."""

    def __init__(self, config: SwinConfig, *, stage: int, shifted: bool, drop_path: float) -> None:
        super().__init__()
        dim = config.channels(stage)
        self.norm1 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attn = WindowAttention(
            dim,
            num_heads=config.num_heads[stage],
            window=config.window,
            shift=config.window // 2 if shifted else 0,
            qkv_bias=config.qkv_bias,
            order=config.window_order,
            always_shift=config.always_shift,
        )
        self.norm2 = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.mlp = Mlp(dim, hidden=int(dim * config.mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.drops = drop_path > 0.0

    def look(self, maps: Tensor) -> Look:
        """What `forward` attends to, of the same maps."""
        return self.attn.look(self.norm1(maps))

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, H, W, C) -> (B, H, W, C)."""
        if not (self.training and self.drops):
            maps = normed_window_attention(maps, self.norm1, self.attn, residual=True)
            return normed_mlp(maps, self.norm2, self.mlp, residual=True)
        maps = maps + self.drop_path(normed_window_attention(maps, self.norm1, self.attn))
        out: Tensor = maps + self.drop_path(normed_mlp(maps, self.norm2, self.mlp))
        return out


class PatchMerging(nn.Module):
    """Each 2 x 2 cells become one of twice the channels."""

    def __init__(self, dim: int, *, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=norm_eps)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2C)."""
        out: Tensor = self.reduction(self.norm(quads(maps)))
        return out


def quads(maps: Tensor) -> Tensor:
    """maps: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 4C), four neighbours side by side, zeros beyond the edge."""
    maps = pad_rows_and_columns(maps, 2, channels_last=True)
    cells = torch.unflatten(torch.unflatten(maps, 2, (-1, 2)), 1, (-1, 2))  # (B, H/2, 2, W/2, 2, C)
    # The published order of the four: down the rows first, then across.
    return cells.permute(0, 1, 3, 4, 2, 5).flatten(3)  # (B, H/2, W/2, 4C)


class SwinStage(nn.Module):
    """Patch merging, from the second stage on, and blocks of which every second is shifted."""

    def __init__(self, config: SwinConfig, *, stage: int, drop_path: list[float]) -> None:
        super().__init__()
        self.downsample = config.merging(stage) if stage else nn.Identity()
        self.blocks = nn.ModuleList(
            config.block(stage, shifted=i % 2 == 1, drop_path=rate) for i, rate in enumerate(drop_path)
        )
        self._run = runner(config.grad_checkpointing)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, H, W, C) -> the same, or (B, ceil(H / 2), ceil(W / 2), 2C) from the second stage on."""
        maps = self.downsample(maps)
        for block in self.blocks:
            maps = self._run(block, maps)
        return maps


class Swin(Backbone):
    """A level for each stage, normed by a norm of its own; the last stage's also serves tokens and embed."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        stages = len(config.depths)
        check_frozen_stages(config, stages + 1)
        self.depths, self.num_layers = config.depths, sum(config.depths)
        self.embed_dim = config.channels(stages - 1)
        self.mean, self.std = pixel_statistics(config)
        self.out_indices = resolve_out_indices(config.out_indices, stages, tuple(range(stages)))
        self.levels = tuple(Level(config.channels(i), config.patch_size * 2**i) for i in self.out_indices)
        self.frozen_stages = config.frozen_stages
        self.patch_embed = STEMS[config.stem](
            config.in_channels,
            embed_dim=config.embed_dim,
            patch=config.patch_size,
            norm_eps=config.layer_norm_eps,
        )
        rates = drop_path_rates(config.drop_path, sum(config.depths))
        starts = [sum(config.depths[:i]) for i in range(stages)]
        self.layers = nn.ModuleList(
            SwinStage(config, stage=i, drop_path=rates[start : start + depth])
            for i, (start, depth) in enumerate(zip(starts, config.depths, strict=True))
        )
        normed = set(self.out_indices) if config.norm_maps else set()
        self.norms = nn.ModuleDict(
            {str(i): nn.LayerNorm(config.channels(i), eps=config.layer_norm_eps) for i in sorted(normed | {stages - 1})}
        )
        self.normed = frozenset(normed)
        self.apply(init_linear)
        self._freeze()

    def _freeze(self) -> None:
        if self.frozen_stages:
            freeze([self.patch_embed, *self.layers[: self.frozen_stages - 1]])

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the frozen part."""
        super().train(mode)
        self._freeze()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """images: (B, C, H, W), normalised -> [(B, C_i, ceil(H / s_i), ceil(W / s_i))] for each level."""
        x = self.patch_embed(images)  # (B, H, W, C)
        maps = []
        for i, stage in enumerate(self.layers[: self.out_indices[-1] + 1]):
            x = stage(x)
            if i in self.out_indices:
                maps.append((self.norms[str(i)](x) if i in self.normed else x).permute(0, 3, 1, 2))  # (B, C, H, W)
        return maps

    def tokens(self, images: Tensor) -> Tokens:
        """images: (B, C, H, W), normalised -> patches (B, h * w, C) of the last stage; there is no prefix."""
        x = self.patch_embed(images)  # (B, H, W, C)
        for stage in self.layers:
            x = stage(x)
        x = self.norms[str(len(self.depths) - 1)](x)
        grid = (x.shape[1], x.shape[2])
        return Tokens(x.flatten(1, 2), x.new_zeros(x.shape[0], 0, x.shape[3]), grid)

    def attention_blocks(self) -> list[nn.Module]:
        """Those of all stages."""
        return [block for stage in self.layers for block in cast(SwinStage, stage).blocks]

    def embed(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W), normalised -> (B, embed_dim): the mean of the last stage."""
        return self.tokens(images).patches.mean(dim=1)

    def maps_and_vector(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """images: (B, C, H, W), normalised -> maps and vector, in one pass where the last stage gives a map."""
        last = len(self.depths) - 1
        if last not in self.normed:
            return super().maps_and_vector(images)
        maps = self(images)
        return maps, maps[-1].mean(dim=(2, 3))

    def layer_of(self, parameter: str) -> int:
        """0 for the embedding, then blocks counted through all stages; a merging belongs to the block behind it."""
        part, _, rest = parameter.partition(".")
        if part != "layers":
            return self.num_layers if part == "norms" else 0
        stage, kind, *more = rest.split(".")
        before = sum(self.depths[: int(stage)])
        return before + 1 + (int(more[0]) if kind == "blocks" else 0)

    def unused_in_maps(self) -> set[str]:
        """The stages and the norm behind the last of `out_indices`, and the last norm where maps aren't normed."""
        stages = {f"layers.{i}." for i in range(self.out_indices[-1] + 1, len(self.depths))}
        norms = {f"norms.{i}." for i in range(len(self.depths)) if i not in self.normed}
        return {name for name, _ in self.named_parameters() if name.startswith((*stages, *norms))}

    def unused_in_embed(self) -> set[str]:
        """The norms of all stages but the last."""
        last = f"norms.{len(self.depths) - 1}."
        return {name for name, _ in self.named_parameters() if name.startswith("norms.") and not name.startswith(last)}

    def no_decay(self) -> set[str]:
        """What makes the biases of positions, and the scales of Swin v2's logits."""
        return {name for name, _ in self.named_parameters() if any(part in _UNDECAYED for part in name.split(".")[-3:])}
