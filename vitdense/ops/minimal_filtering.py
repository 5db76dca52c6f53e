"""A 3 x 3 convolution in 16 products for four outputs in place of 36, by minimal filtering (Winograd's F(2 x 2, 3 x 3);
Lavin and Gray 2016, https://arxiv.org/abs/1509.09308)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.ops.eager import runs_eagerly

TILES = 256
"""About how many tiles of 2 x 2 outputs are made at once: few enough for a cache, many enough for products."""
CHANNELS, CELLS = 256, 1024
"""From how many channels and cells on it is faster than torch's own convolution: fewer are too little work to share."""


def conv3x3(maps: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """maps: (B, C, H, W), weight: (O, C, 3, 3) -> (B, O, H, W), in `out` if `pays`: conv2d with padding 1.

    On a CPU, for wide and large maps without a backward pass, with fewer products; every sum of products is that of
    the convolution, but rounded otherwise (benchmark rows dpt_b_mask and upernet_swin_t_mask).
    """
    if not pays(maps, weight):
        return F.conv2d(maps, weight, bias, padding=1)
    height, width = maps.shape[-2:]
    taps, tall, wide = _transform_weight(weight), -(-height // 2), -(-width // 2)
    if out is None:
        out = maps.new_empty(len(maps), len(weight), height, width)
    at_once = min(tall, max(1, TILES // wide))
    inputs = maps.new_empty(16 * maps.shape[1] * at_once * wide)  # written to again and again: fresh memory is slow
    products = maps.new_empty(16 * len(weight) * at_once * wide)
    for picture, into in zip(maps, out, strict=True):
        for first in range(0, tall, at_once):
            end = min(first + at_once, tall)
            above, below = max(2 * first - 1, 0), min(2 * end + 1, height)
            zeros = (1, 2 * wide + 1 - width, above - (2 * first - 1), 2 * end + 1 - below)
            tiles = (end - first) * wide
            read = inputs[: 16 * maps.shape[1] * tiles].view(4, 4, -1, end - first, wide)
            _transform_inputs(F.pad(picture[:, above:below], zeros), read)
            found = products[: 16 * len(weight) * tiles].view(16, -1, tiles)
            torch.bmm(taps, read.view(16, -1, tiles), out=found)
            _write(into[:, 2 * first : 2 * end], found.view(4, 4, -1, end - first, wide), bias)
    return out


def pays(maps: Tensor, weight: Tensor) -> bool:
    """Whether these are large enough, on a CPU, in one full precision, and nobody needs a way back."""
    return (
        runs_eagerly(maps, weight)
        and not (torch.is_grad_enabled() and (maps.requires_grad or weight.requires_grad))
        and maps.device.type == "cpu"
        and maps.dtype == weight.dtype
        and maps.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and min(weight.shape[:2]) >= CHANNELS
        and maps.shape[-2] * maps.shape[-1] >= CELLS
    )


def _transform_weight(weight: Tensor) -> Tensor:
    """weight: (O, C, 3, 3) -> (16, O, C): what each place of a tile of 4 x 4 inputs is multiplied by."""
    rows = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
    side = torch.tensor(rows, dtype=weight.dtype)
    both = torch.einsum("ia,jb->ijab", side, side).view(16, 9)
    return torch.mm(both, weight.reshape(-1, 9).t()).view(16, *weight.shape[:2])


def _transform_inputs(strip: Tensor, out: Tensor) -> None:
    """strip: (C, 2 rows + 2, 2 wide + 2) -> out: (4, 4, C, rows, wide), of tiles of 4 x 4 that overlap by 2."""
    channels, tall, broad = strip.shape
    halves = strip.view(channels, tall, broad // 2, 2).permute(3, 0, 1, 2).contiguous()  # even and odd columns
    columns = halves.new_empty(4, channels, tall, broad // 2 - 1)
    _differences(columns, halves[0, :, :, :-1], halves[1, :, :, :-1], halves[0, :, :, 1:], halves[1, :, :, 1:])
    even, odd = columns[:, :, 0::2], columns[:, :, 1::2]
    _differences(out, even[:, :, :-1], odd[:, :, :-1], even[:, :, 1:], odd[:, :, 1:])


def _differences(out: Tensor, first: Tensor, second: Tensor, third: Tensor, fourth: Tensor) -> None:
    """Four inputs in a row -> out: (4, ...)."""
    torch.sub(first, third, out=out[0])
    torch.add(second, third, out=out[1])
    torch.sub(third, second, out=out[2])
    torch.sub(second, fourth, out=out[3])


def _write(out: Tensor, products: Tensor, bias: Tensor | None) -> None:
    """products: (4, 4, O, rows, wide), down and across -> out: (O, up to 2 rows, up to 2 wide)."""
    for down in range(2):
        wide = _sums(products.unbind(0), down)  # (4, O, rows, wide)
        for across in range(2):
            place = out[:, down::2, across::2]
            found = _sums(wide.unbind(0), across)[:, : place.shape[1], : place.shape[2]]
            if bias is None:
                place.copy_(found)
            else:
                torch.add(found, bias[:, None, None], out=place)


def _sums(products: tuple[Tensor, ...], place: int) -> Tensor:
    """The first or the second of two outputs in a row, of what four products gave."""
    zeroth, first, second, third = products
    return (first + second).add_(zeroth) if place == 0 else (first - second).sub_(third)
