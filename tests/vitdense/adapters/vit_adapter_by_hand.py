"""ViT-Adapter's equations, written down once more from the paper."""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.adapters.interaction import Grid
from vitdense.contracts import Backbone

HEADS, POINTS = 3, 2
Weights = dict[str, Tensor]


def grids_of(size: tuple[int, int], strides: Sequence[int]) -> list[Grid]:
    return [Grid(-(-size[0] // stride), -(-size[1] // stride), stride) for stride in strides]


def centres(grids: Sequence[Grid]) -> Tensor:
    """(Q, 2): the pixel (x, y) at the centre of each cell."""
    cells = [((j + 0.5) * s, (i + 0.5) * s) for h, w, s in grids for i, j in product(range(h), range(w))]
    return torch.tensor(cells, dtype=torch.float64)


def part(weights: Weights, name: str) -> Weights:
    return {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}


def linear(x: Tensor, p: Weights, name: str) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def norm(x: Tensor, p: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * p[f"{name}.weight"] + p[f"{name}.bias"]


def batch_norm(x: Tensor, p: Weights, name: str) -> Tensor:
    mean, var, weight, bias = (
        p[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def as_map(tokens: Tensor, grid: Grid) -> Tensor:
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, grid.height, grid.width)


def split(tokens: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
    maps, start = [], 0
    for grid in grids:
        maps.append(as_map(tokens[:, start : start + grid.height * grid.width], grid))
        start += grid.height * grid.width
    return maps


def read(maps: Tensor, places: Tensor, stride: int, padding: str) -> Tensor:
    """maps: (B, d, h, w), places: (B, Q, 2) in pixels -> (B, Q, d)."""
    extent = torch.tensor([maps.shape[3] * stride, maps.shape[2] * stride])
    at = (2 * places / extent - 1).to(maps.dtype)[:, :, None]
    return F.grid_sample(maps, at, padding_mode=padding, align_corners=False)[..., 0].transpose(1, 2)


def attend(queries: Tensor, at: Tensor, features: Tensor, grids: Sequence[Grid], p: Weights) -> Tensor:
    batch, count = queries.shape[:2]
    shape = (batch, count, HEADS, len(grids), POINTS)
    offsets = linear(queries, p, "sampling_offsets").reshape(*shape, 2)
    shares = linear(queries, p, "attention_weights").reshape(batch, count, HEADS, -1).softmax(-1).reshape(shape)
    values = split(linear(features, p, "value_proj"), grids)
    width = values[0].shape[1] // HEADS
    out = queries.new_zeros(batch, count, HEADS * width)
    for head, level, point in product(range(HEADS), range(len(grids)), range(POINTS)):
        mine = slice(head * width, (head + 1) * width)
        places = at + offsets[:, :, head, level, point] * grids[level].stride
        found = read(values[level][:, mine], places, grids[level].stride, "zeros")
        out[:, :, mine] += shares[:, :, head, level, point, None] * found
    return linear(out, p, "output_proj")


def inject(patches: Tensor, patch_grid: Grid, prior: Tensor, grids: Sequence[Grid], p: Weights) -> Tensor:
    queries, features = norm(patches, p, "query_norm"), norm(prior, p, "feat_norm")
    return patches + p["gamma"] * attend(queries, centres([patch_grid]), features, grids, part(p, "attn"))


def conv_ffn(tokens: Tensor, grids: Sequence[Grid], p: Weights) -> Tensor:
    mixed = []
    for maps in split(linear(tokens, p, "fc1"), grids):
        kernel = p["dwconv.dwconv.weight"]
        padded, result = F.pad(maps, (1, 1, 1, 1)), p["dwconv.dwconv.bias"][:, None, None].expand_as(maps)
        for i, j in product(range(3), range(3)):
            result = result + kernel[:, 0, i, j, None, None] * padded[..., i : i + maps.shape[2], j : j + maps.shape[3]]
        mixed.append(result.flatten(2).transpose(1, 2))
    return linear(F.gelu(torch.cat(mixed, 1)), p, "fc2")


def extract(prior: Tensor, grids: Sequence[Grid], patches: Tensor, patch_grid: Grid, p: Weights) -> Tensor:
    queries, features = norm(prior, p, "query_norm"), norm(patches, p, "feat_norm")
    prior = prior + attend(queries, centres(grids), features, [patch_grid], part(p, "attn"))
    return prior + conv_ffn(norm(prior, p, "ffn_norm"), grids, part(p, "ffn"))


def spatial_prior(images: Tensor, p: Weights) -> list[Tensor]:
    def unit(x: Tensor, name: str, at: int, stride: int) -> Tensor:
        return batch_norm(F.conv2d(x, p[f"{name}.{at}.weight"], None, stride, 1), p, f"{name}.{at + 1}").clamp(min=0)

    x = unit(unit(unit(images, "stem", 0, 2), "stem", 3, 1), "stem", 6, 1)
    c1 = F.pad(x, (1, 1, 1, 1), value=float("-inf")).unfold(2, 3, 2).unfold(3, 3, 2).amax((-1, -2))
    maps = [c1]
    for name in ("conv2", "conv3", "conv4"):
        maps.append(unit(maps[-1], name, 0, 2))
    return [F.conv2d(each, p[f"fc{i}.weight"], p[f"fc{i}.bias"]) for i, each in enumerate(maps, 1)]


class SecondWriting:
    """The interactions, as the equations say them."""

    def __init__(self, prior: Tensor, grids: Sequence[Grid], patch: int, p: Weights) -> None:
        self.prior, self.grids, self.patch, self.p = prior, grids, patch, p

    def before(self, stage: int, patches: Tensor, grid: tuple[int, ...]) -> Tensor:
        p = part(self.p, f"interactions.{stage}.injector")
        return inject(patches, Grid(grid[0], grid[1], self.patch), self.prior, self.grids, p)

    def after(self, stage: int, patches: Tensor, grid: tuple[int, ...]) -> None:
        extras = [f"extra_extractors.{i}" for i in range(2)] if stage == 3 else []
        for name in ["extractor", *extras]:
            p = part(self.p, f"interactions.{stage}.{name}")
            self.prior = extract(self.prior, self.grids, patches, Grid(grid[0], grid[1], self.patch), p)


def whole(backbone: Backbone, images: Tensor, patch: int, p: Weights) -> list[Tensor]:
    size = (images.shape[2], images.shape[3])
    grids = grids_of(size, (4, 8, 16, 32))
    finest, *coarser = spatial_prior(images, part(p, "spm"))
    prior = [each.flatten(2).transpose(1, 2) + own for each, own in zip(coarser, p["level_embed"], strict=True)]
    exchange = SecondWriting(torch.cat(prior, 1), grids[1:], patch, p)
    stages = backbone.forward_stages(images, exchange)
    coarser = split(exchange.prior, grids[1:])
    spread = torch.einsum("bchw,cdij->bdhiwj", coarser[0], p["up.weight"])
    up = spread.reshape(len(images), -1, 2 * grids[1].height, 2 * grids[1].width) + p["up.bias"][:, None, None]
    maps = [finest + up[..., : grids[0].height, : grids[0].width], *coarser]
    outputs = []
    for i, (each, stage, grid) in enumerate(zip(maps, stages, grids, strict=True)):
        patches = as_map(stage.patches, Grid(stage.grid[0], stage.grid[1], patch))
        added = read(patches, centres([grid]).expand(len(images), -1, -1), patch, "border")
        outputs.append(batch_norm(each + as_map(added, grid), p, f"norm{i + 1}"))
    return outputs
