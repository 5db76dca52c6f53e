"""DPT's reassembling of a plain transformer's tokens into maps of four strides (https://arxiv.org/abs/2103.13413)."""

from typing import Literal, cast

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.adapters.frames import over_frames
from vitdense.adapters.grids import STRIDES, check_pictures, check_plain, crop_to, grow, lattice, resample
from vitdense.contracts import ADAPTERS, Adapter, AdapterConfig, Backbone, Level, Tokens
from vitdense.errors import UserError
from vitdense.layers.eager import is_bare


@ADAPTERS.register("reassemble")
class ReassembleConfig(AdapterConfig):
    """Strides 4, 8, 16 and 32 of `channels`, from four plain maps.

    A hybrid's maps that have those strides already stay as they are, as in DPT-Hybrid, and keep their channels.
    `readout` is what becomes of the class token: "ignore" leaves it out, "add" adds it to every patch, "project" maps
    both together back to the backbone's width. The last two take a backbone of vitdense's own with a class token.
    """

    channels: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (96, 192, 384, 768)
    readout: Literal["ignore", "add", "project"] = "ignore"

    def build(self, levels: tuple[Level, ...]) -> Adapter:
        """Reassembling for four levels of one stride, or of a hybrid."""
        _check(levels)
        if self.readout == "ignore":
            return over_frames(Reassemble(self, levels), levels)
        check_pictures(f"reassemble with readout {self.readout}", levels)
        return (AddingReassemble if self.readout == "add" else ProjectingReassemble)(self, levels)


def _check(levels: tuple[Level, ...]) -> None:
    strides = [level.stride for level in levels]
    if grow(strides):
        check_plain("reassemble", levels)
    plain = strides.count(strides[-1])
    if len(levels) != len(STRIDES) or strides[:-plain] != list(STRIDES[: len(STRIDES) - plain]):
        raise UserError(
            f"reassemble takes 4 plain maps, or a hybrid's of strides 4 and 8 and plain ones; got strides {strides}: "
            "change the backbone's out_indices, or take `adapter: {name: simple_pyramid}` on its last map alone"
        )


class ReassembleLayer(nn.Module):
    """One map: a 1 x 1 convolution, and up by a transposed convolution or down by a strided one.

    A stride that doesn't lead to the target by a power of two, such as 14, is resampled to 16 in between.
    """

    def __init__(self, level: Level, *, channels: int, target: int) -> None:
        super().__init__()
        self.patch, self.lattice = level.stride, lattice(level.stride)
        self.projection = nn.Conv2d(level.channels, channels, kernel_size=1)
        self.resize: nn.Module = nn.Identity()
        if self.lattice > target:
            factor = self.lattice // target
            self.resize = nn.ConvTranspose2d(channels, channels, kernel_size=factor, stride=factor)
        elif self.lattice < target:
            factor = target // self.lattice
            # 3 x 3 as published where it halves; a quartering of 3 x 3 would never look at every fourth patch.
            reach = factor - 1
            self.resize = nn.Conv2d(channels, channels, kernel_size=2 * reach + 1, stride=factor, padding=reach)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, h, w) of the patches -> (B, channels, h', w') of the target stride, the picture and beyond."""
        resized: Tensor = self.resize(resample(self.projection(maps), self.patch, self.lattice))
        return resized


class Reassemble(Adapter):
    """Map i to stride i; the class token is left out."""

    def __init__(self, config: ReassembleConfig, levels: tuple[Level, ...]) -> None:
        super().__init__()
        self.kept = sum(level.stride < levels[-1].stride for level in levels)
        plain = (Level(*each) for each in zip(config.channels, STRIDES, strict=True))
        self.levels = (*levels[: self.kept], *tuple(plain)[self.kept :])
        self.layers = nn.ModuleList(
            nn.Identity() if i < self.kept else ReassembleLayer(level, channels=out.channels, target=out.stride)
            for i, (level, out) in enumerate(zip(levels, self.levels, strict=True))
        )

    def forward(self, maps: list[Tensor], images: Tensor) -> list[Tensor]:
        """maps: four of (B, C_i, h_i, w_i), images: (B, C, H, W) -> [(B, channels_i, ceil(H / s_i), ceil(W / s_i))]."""
        return [
            crop_to(layer(each), images, level.stride)
            for layer, each, level in zip(self.layers, maps, self.levels, strict=True)
        ]


class AddingReassemble(Reassemble):
    """The class token of its block is added to every patch."""

    def adapt(self, backbone: Backbone, images: Tensor) -> list[Tensor]:
        """The maps of images (B, C, H, W), made of patches that have read the class token."""
        maps = []
        for i, tokens in enumerate(backbone.forward_stages(images)):
            patches = tokens.patches if i < self.kept else self.read(i, tokens)
            maps.append(patches.mT.reshape(patches.shape[0], -1, *tokens.grid))  # (B, C, h, w)
        return self(maps, images)  # type: ignore[no-any-return]

    def read(self, stage: int, tokens: Tokens) -> Tensor:
        """tokens of a stage -> patches (B, h * w, C)."""
        return tokens.patches + _class_token(tokens)


class ProjectingReassemble(AddingReassemble):
    """Patch and class token of its block are mapped together to the width of one."""

    def __init__(self, config: ReassembleConfig, levels: tuple[Level, ...]) -> None:
        super().__init__(config, levels)
        self.readout_projects = nn.ModuleList(
            nn.Identity() if i < self.kept else nn.Sequential(nn.Linear(2 * level.channels, level.channels), nn.GELU())
            for i, level in enumerate(levels)
        )

    def read(self, stage: int, tokens: Tokens) -> Tensor:
        """tokens of a stage -> patches (B, h * w, C)."""
        patches, readout = tokens.patches, _class_token(tokens)
        # A cast, since ModuleList forgets what it holds.
        linear, activate = cast(nn.Sequential, self.readout_projects[stage])
        if not is_bare(nn.Linear, linear):
            joined: Tensor = activate(linear(torch.cat([patches, readout.expand_as(patches)], dim=-1)))
            return joined
        assert isinstance(linear, nn.Linear)
        # Of the product of both joined, the class token's part is the same for all patches.
        of_patches, of_readout = torch.split(linear.weight, patches.shape[-1], dim=1)
        projected: Tensor = activate(F.linear(patches, of_patches).add_(F.linear(readout, of_readout, linear.bias)))
        return projected


def _class_token(tokens: Tokens) -> Tensor:
    """(B, 1, C): the first of the prefix."""
    if tokens.prefix.shape[1] == 0:
        raise UserError(
            "reassemble reads a class token into the patches, and this backbone has none: "
            "`adapter: {name: reassemble, readout: ignore}` does without"
        )
    return tokens.prefix[:, :1]
