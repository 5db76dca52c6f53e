"""A convolution over resized and joined maps, computed at each map's own resolution where that is less work.

UperNet's fusion (https://arxiv.org/abs/1807.10221), its pyramid pooling and DPT's tail are of this kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vitdense.ops.eager import runs_eagerly
from vitdense.ops.fusion_axes import Axis
from vitdense.ops.fusion_level import Gradients, Level, add_level
from vitdense.ops.minimal_filtering import conv3x3, pays
from vitdense.ops.resizing import resize

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

STRIP = 2**21
"""How many numbers of the joined maps a CPU convolves at one time: the rest needs no second layout."""


def conv_of_resized(
    maps: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    size: tuple[int, int],
    align_corners: bool = False,
    padding: int = 1,
) -> Tensor:
    """maps: (B, C_i, h_i, w_i), weight: (O, sum of C_i, k, k) -> (B, O, H', W'): conv2d of all maps joined at `size`.

    Bilinear resizing is linear, and so is each of the kernel's taps: the taps' products may come first, at the map's
    own size, and be resized, shifted and added then. That takes k*k*C*h*w products for each of the O channels and a
    few for the interpolation in place of k*k*C*H'*W'. Each map goes the way of fewer products, so that what is as large
    as `size`, or nearly, is resized first (the benchmark's rows fuse_conv_forward and fuse_conv_train, of maps 1, 2, 4
    and 8 times smaller, say what the rule is worth). For the backward pass nothing is kept but maps and weight; there
    are no second derivatives. What others look through (torch.compile, torch.export) consists of torch's operations.
    """
    tensors = (*maps, weight) if bias is None else (*maps, weight, bias)
    kind = _product_type(tensors) if runs_eagerly(*tensors) else None
    fusion = None if kind is None else _Fusion.plan(maps, weight, size, align_corners=align_corners, padding=padding)
    if kind is None or fusion is None or not fusion.last:
        resized = [resize(each, size, align_corners=align_corners) for each in maps]
        joined = resized[0] if len(resized) == 1 else torch.cat(resized, dim=1)
        return F.conv2d(joined, weight, bias, padding=padding)
    parameters = (weight.to(kind), None if bias is None else bias.to(kind))
    maps = [each.to(kind) for each in maps]
    if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
        out: Tensor = _ConvOfResized.apply(fusion, *parameters, *maps)
        return out
    return _forward(fusion, *parameters, *maps)


@dataclass(frozen=True)
class _Fusion:
    """All levels of a convolution, in the order of its maps."""

    levels: tuple[Level, ...]

    @classmethod
    def plan(
        cls, maps: Sequence[Tensor], weight: Tensor, size: tuple[int, int], *, align_corners: bool, padding: int
    ) -> "_Fusion":
        """From the shapes of the maps alone."""
        edges = accumulate((each.shape[1] for each in maps), initial=0)
        levels = []
        for each, channels in zip(maps, pairwise(edges), strict=True):
            rows, columns = (
                Axis(count, resized, kernel, padding, align_corners)
                for count, resized, kernel in zip(each.shape[2:], size, weight.shape[2:], strict=True)
            )
            levels.append(Level.plan(rows, columns, slice(*channels)))
        return cls(tuple(levels))

    @property
    def is_3x3(self) -> bool:
        """Whether it is the usual kernel, with zeros that keep the size."""
        return all((axis.kernel, axis.padding) == (3, 1) for axis in (self.levels[0].rows, self.levels[0].columns))

    @property
    def first(self) -> list[tuple[int, Level]]:
        """The levels that are resized first, each with the place of its map."""
        return [(i, level) for i, level in enumerate(self.levels) if not level.last]

    @property
    def last(self) -> list[tuple[int, Level]]:
        """The levels that are resized last, each with the place of its map."""
        return [(i, level) for i, level in enumerate(self.levels) if level.last]


class _ConvOfResized(torch.autograd.Function):
    """`_forward` with a way back."""

    @staticmethod
    def forward(ctx: Any, fusion: _Fusion, weight: Tensor, bias: Tensor | None, *maps: Tensor) -> Tensor:
        ctx.fusion = fusion
        ctx.save_for_backward(weight, *maps)
        return _forward(fusion, weight, bias, *maps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        weight, *maps = ctx.saved_tensors
        _, of_weight, of_bias, *of_maps = ctx.needs_input_grad
        with torch.autocast(weight.device.type, enabled=False):
            grown = _backward(ctx.fusion, above.contiguous(), weight, maps, of_weight=of_weight, of_maps=of_maps)
        return None, grown[0], above.sum((0, 2, 3)) if of_bias else None, *grown[1:]


def _forward(fusion: _Fusion, weight: Tensor, bias: Tensor | None, *maps: Tensor) -> Tensor:
    """maps: (B, C_i, h_i, w_i) -> (B, O, H', W'), summed in float32 at least."""
    precise = torch.promote_types(weight.dtype, torch.float32)
    out = weight.new_empty(len(maps[0]), weight.shape[0], *fusion.levels[0].out, dtype=precise)
    with torch.autocast(weight.device.type, enabled=False):
        if fusion.first:
            joined, taps = _join(fusion, weight, maps)
            if fusion.is_3x3 and pays(joined, taps):
                conv3x3(joined, taps, bias, out=out)
            else:
                for strip in _strips(fusion.levels[0], joined):
                    out[:, :, strip.rows] = F.conv2d(strip.of(joined), taps, bias, padding=strip.padding)
            del joined
        else:
            out.copy_(out.new_zeros(()) if bias is None else bias[:, None, None])
        for i, level in fusion.last:
            add_level(out, level, weight, maps[i])
    return out.to(weight.dtype)


def _backward(
    fusion: _Fusion, above: Tensor, weight: Tensor, maps: list[Tensor], *, of_weight: bool, of_maps: list[bool]
) -> list[Tensor | None]:
    """above: (B, O, H', W'), what arrives at the output -> what arrives at the weight and at each map, where needed."""
    total = torch.empty_like(weight) if of_weight else None
    found: list[Tensor | None] = [None] * len(maps)
    if fusion.first:
        wanted = any(of_maps[i] for i, _ in fusion.first)
        of_joined, of_taps = _joined_backward(fusion, above, weight, maps, of_weight=of_weight, of_joined=wanted)
        start = 0
        for i, level in fusion.first:
            part = slice(start, start := start + maps[i].shape[1])
            if of_joined is not None and of_maps[i]:
                found[i] = _resize_backward(level, of_joined[:, part]).to(weight.dtype)
            if total is not None and of_taps is not None:
                total[:, level.channels] = of_taps[:, part]
        del of_joined, of_taps
    for i, level in fusion.last:
        if of_weight or of_maps[i]:
            grown = Gradients(level, above, maps[i], of_maps=of_maps[i], of_weight=of_weight)
            grown.pull(level, above, weight, maps[i])
            found[i] = None if grown.of_maps is None else grown.of_maps.to(weight.dtype)
            if total is not None and grown.of_weight is not None:
                total[:, level.channels] = grown.of_weight
    return [total, *found]


def _join(fusion: _Fusion, weight: Tensor, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The maps that are resized first and their weights: (B, sum of C_i, H, W), (O, sum of C_i, k, k)."""
    resized = [resize(maps[i], level.resized, align_corners=level.rows.align_corners) for i, level in fusion.first]
    taps = [weight[:, level.channels] for _, level in fusion.first]
    if len(resized) == 1:
        return resized[0], taps[0]
    return torch.cat(resized, dim=1), torch.cat(taps, dim=1)


@dataclass(frozen=True)
class _Strip:
    """Rows of the output, the rows they are made of, and the zeros above, below, and at both sides of those."""

    rows: slice
    below: slice
    zeros: tuple[int, int]
    sides: int

    @property
    def padding(self) -> tuple[int, int]:
        """What the convolution itself adds."""
        return (self.zeros[0] if self.zeros[0] == self.zeros[1] else 0), self.sides

    def of(self, joined: Tensor) -> Tensor:
        """joined: (B, C, H, W) -> (B, C, rows, W)."""
        strip = joined[:, :, self.below]
        return strip if self.zeros[0] == self.zeros[1] else F.pad(strip, (0, 0, *self.zeros))

    def add(self, total: Tensor, gradient: Tensor) -> None:
        """Adds what arrives at `of` to what arrives at joined."""
        begun = self.zeros[0] - self.padding[0]
        total[:, :, self.below] += gradient[:, :, begun : begun + self.below.stop - self.below.start]


def _strips(level: Level, joined: Tensor) -> list[_Strip]:
    rows, count = level.rows, 1
    if joined.device.type == "cpu":
        count = max(1, round(joined[0].numel() / STRIP))
    strips = []
    for first, end in pairwise(rows.out * i // count for i in range(count + 1)):
        above, below = first - rows.padding, end - 1 - rows.padding + rows.kernel
        inside = slice(max(above, 0), min(below, rows.resized))
        zeros = (inside.start - above, below - inside.stop)
        strips.append(_Strip(slice(first, end), inside, zeros, level.columns.padding))
    return strips


def _joined_backward(
    fusion: _Fusion, above: Tensor, weight: Tensor, maps: list[Tensor], *, of_weight: bool, of_joined: bool
) -> tuple[Tensor | None, Tensor | None]:
    """What arrives at both outcomes of `_join`."""
    joined, taps = _join(fusion, weight, maps)
    precise = torch.promote_types(weight.dtype, torch.float32)
    total = torch.zeros_like(joined, dtype=precise, memory_format=torch.contiguous_format) if of_joined else None
    of_taps = torch.zeros_like(taps, dtype=precise) if of_weight else None
    for strip in _strips(fusion.levels[0], joined):
        options = (None, (1, 1), strip.padding, (1, 1), False, (0, 0), 1, (of_joined, of_weight, False))
        arrived = above[:, :, strip.rows]
        of_strip, of_strips_taps, _ = torch.ops.aten.convolution_backward(arrived, strip.of(joined), taps, *options)
        if total is not None:
            strip.add(total, of_strip)
        if of_taps is not None:
            of_taps += of_strips_taps
    return total, of_taps


def _resize_backward(level: Level, above: Tensor) -> Tensor:
    """above: (B, C, H, W), what arrives at a resized map -> (B, C, h, w): by products, which sum in a fixed order."""
    if level.cells == level.resized:
        return above
    return level.rows.resizing(above).t() @ above @ level.columns.resizing(above)


def _product_type(tensors: Sequence[Tensor]) -> torch.dtype | None:
    """What the convolution would compute in; None where types are mixed or unusual, which is torch's to judge."""
    device, kinds = tensors[0].device, {each.dtype for each in tensors}
    if any(each.device != device for each in tensors) or not kinds <= set(FLOATS):
        return None
    if not torch.is_autocast_enabled(device.type):
        return kinds.pop() if len(kinds) == 1 else None
    return None if torch.float64 in kinds else torch.get_autocast_dtype(device.type)
