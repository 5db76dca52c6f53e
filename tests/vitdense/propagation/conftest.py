"""Clips with masks of the embedded shapes, and the published protocol written a second time, straight on."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vitdense.contracts import Backbone, Level, Tokens


class Patches(Backbone):
    """A stand-in that mixes the pixels of each cell by one random matrix; cells that aren't whole are padded."""

    embed_dim, num_layers = 12, 1
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)

    def __init__(self, stride: int, *, seed: int = 0) -> None:
        super().__init__()
        self.levels = (Level(12, stride),)
        weight = torch.randn(12, 3, stride, stride, generator=torch.Generator().manual_seed(seed))
        self.weight = torch.nn.Parameter(weight)

    def forward(self, images: Tensor) -> list[Tensor]:
        stride = self.levels[0].stride
        height, width = images.shape[-2:]
        return [F.conv2d(F.pad(images, (0, -width % stride, 0, -height % stride)), self.weight, stride=stride)]

    def tokens(self, images: Tensor) -> Tokens:
        (maps,) = self(images)
        return Tokens(maps.flatten(2).mT, maps.new_ones(len(maps), 1, 12), tuple(maps.shape[-2:]))

    def embed(self, images: Tensor) -> Tensor:
        return self(images)[0].mean((2, 3))  # type: ignore[no-any-return]

    def layer_of(self, parameter: str) -> int:
        return 0


def whole_affinity(query: Tensor, sources: Tensor, neighbourhood: int, topk: int, temperature: float) -> Tensor:
    """query: (h, w, C), sources: (N, h, w, C) -> (N, h, w, h', w') made whole: weights of each source cell (h, w) for
    each cell (h', w') of the query, summing up to 1 over the first three."""
    height, width = query.shape[:2]
    affinity = torch.einsum("nabc,dec->nabde", sources, query).div(temperature).exp()
    rows, columns = torch.arange(height), torch.arange(width)
    if neighbourhood:
        for a in range(height):
            for b in range(width):
                far = ((rows - a).abs() > neighbourhood)[:, None] | ((columns - b).abs() > neighbourhood)
                affinity[:, a, b][:, far] = 0
    for d in range(height):
        for e in range(width):
            column = affinity[..., d, e]
            ordered = column.flatten().sort(descending=True).values
            column[column < ordered[min(topk, len(ordered)) - 1]] = 0
            column /= column.sum()
    return affinity


def published(backbone: Backbone, frames: list[Any], mask: Any, **options: Any) -> list[Any]:
    """Masks of all frames, by the whole affinity and with Pillow's way to resize masks."""
    last_frames, stride = options.pop("last_frames"), backbone.levels[0].stride
    size, classes = mask.shape, int(mask.max()) + 1
    mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (backbone.mean, backbone.std))

    def look(frame: Any) -> Tensor:
        image = torch.from_numpy(frame).double().permute(2, 0, 1) / 255
        return F.normalize(backbone(((image - mean) / std)[None])[0][0].permute(1, 2, 0), dim=2)

    features = [look(frame) for frame in frames]
    height, width = features[0].shape[:2]
    padded = np.pad(mask, ((0, -size[0] % stride), (0, -size[1] % stride)), mode="edge")
    small = np.array(Image.fromarray(padded.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST))
    labels = [F.one_hot(torch.from_numpy(small).long(), classes).double()]
    masks = [mask]
    for number in range(1, len(frames)):
        chosen = [0, *range(max(1, number - last_frames), number)]
        weights = whole_affinity(features[number], torch.stack([features[each] for each in chosen]), **options)
        found = torch.einsum("nabde,nabk->dek", weights, torch.stack([labels[each] for each in chosen]))
        labels.append(found)
        maps = F.interpolate(found.permute(2, 0, 1)[None], scale_factor=stride, mode="bilinear")[0]
        maps = maps[:, : size[0], : size[1]].detach().clone()
        for index in range(classes):
            if maps[index].max() > 0:
                maps[index] = maps[index] - maps[index].min()
                maps[index] = maps[index] / maps[index].max()
        masks.append(maps.argmax(0).numpy())
    return masks


@pytest.fixture(scope="session")
def patches() -> type[Patches]:
    return Patches


@pytest.fixture(scope="session")
def affinity() -> Any:
    return whole_affinity


@pytest.fixture(scope="session")
def protocol() -> Any:
    return published
