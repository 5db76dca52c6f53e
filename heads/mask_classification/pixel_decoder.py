"""From a pyramid to maps that queries read and one that masks are made of: deformable attention over the coarsest
levels, and finer ones on top (Mask2Former, Cheng et al. 2022, https://arxiv.org/abs/2112.01527)."""

import torch
from torch import Tensor, nn

from heads.deformable.grids import Grids
from heads.deformable.transformer import Encoder
from heads.detection.positions import sine_positions
from heads.detection.transformer import Shape
from vitdense.contracts import Level
from vitdense.ops.resizing import resize

POINTS = 4
"""Points of each level that a cell reads."""


class PixelDecoder(nn.Module):
    """`levels` finest first, of which the `count` coarsest are read by deformable attention, the coarsest first."""

    def __init__(self, levels: tuple[Level, ...], shape: Shape, mask_channels: int, *, layers: int, count: int) -> None:
        super().__init__()
        width = shape.channels
        self.count, self.width = count, width
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(level.channels, width, 1), nn.GroupNorm(32, width))
            for level in levels[::-1][:count]
        )
        self.level_embed = nn.Parameter(torch.randn(count, width))
        self.encoder = Encoder(shape, layers, levels=count, points=POINTS)
        finer = levels[:-count]
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(level.channels, width, 1, bias=False), nn.GroupNorm(32, width)) for level in finer
        )
        self.outputs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(32, width), nn.ReLU())
            for _ in finer
        )
        self.mask_projection = nn.Conv2d(width, mask_channels, 1)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """features: (B, C_i, h_i, w_i), finest first -> the maps of the coarsest levels (B, C, h_i, w_i), the coarsest
        first, and pixels (B, E, h_0, w_0)."""
        coarse = features[::-1][: self.count]
        projected = [project(each) for project, each in zip(self.input_projections, coarse, strict=True)]
        grids = Grids(tuple((each.shape[-2], each.shape[-1]) for each in projected), None, None)
        cells = torch.cat([each.flatten(2).mT for each in projected], dim=1)  # (B, S, C)
        places = [
            level + place_cells(each, self.width) for each, level in zip(projected, self.level_embed, strict=True)
        ]
        del projected
        maps = grids.maps(self.encoder(cells, torch.cat(places, dim=1).to(cells.dtype), grids))
        finest = maps[-1]
        finer = zip(features[: -self.count], self.laterals, self.outputs, strict=True)
        for feature, lateral, output in reversed(list(finer)):
            joined = lateral(feature)
            finest = output(joined + resize(finest, (joined.shape[-2], joined.shape[-1])))
        return maps, self.mask_projection(finest)


def place_cells(maps: Tensor, channels: int) -> Tensor:
    """maps: (B, C, h, w) -> the sine embedding of their cells, (1, h * w, channels), in float32 at least."""
    everywhere = torch.ones(1, *maps.shape[-2:], dtype=torch.bool, device=maps.device)
    precise = torch.promote_types(maps.dtype, torch.float32)
    return sine_positions(everywhere, channels, centred=False, dtype=precise).flatten(2).mT
