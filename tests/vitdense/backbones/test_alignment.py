"""The measure of alignment finds what it is made to find, and every backbone of our own and of the libraries stands it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.backbones.alignment import measure_alignment
from vitdense.backbones.examples import examples, shrunken
from vitdense.contracts import BACKBONES, Backbone, Level, Tokens

EXAMPLES = examples()
SIZE = (250, 333)
PLAIN = (
    *("vit_nano_patch8", "timm/test_vit", "timm/eva02_tiny_patch14_224", "timm/samvit_base_patch16_224"),
    *("hf/vit", "hf/deit", "hf/vit_mae", "hf/dinov2_with_registers", "hf/dinov3_vit", "hf/beit", "hf/yolos"),
    *("hf/clip_vision_model", "hf/siglip2_vision_model", "hf/vitdet", "hf/lw_detr_vit", "hf/radio"),
    *("open_clip/ViT-B-32", "open_clip/ViT-L-14-CLIPA", "open_clip/coca_ViT-B-32"),
)
PYRAMIDS = (
    *("swin_nano", "vit_nano_r_s16", "timm/test_resnet", "timm/test_convnext", "timm/test_efficientnet"),
    *("timm/test_byobnet", "timm/swin_tiny_patch4_window7_224", "timm/efficientvit_m0"),
    *("hf/swin", "hf/swinv2", "hf/convnext", "hf/resnet", "hf/segformer", "hf/pvt_v2", "hf/focalnet"),
    "open_clip/RN50",
)


class Patches(Backbone):
    """A backbone that gives the mean colour of each cell, perfectly aligned, and then spoils it."""

    mean, std = (0.0,) * 3, (1.0,) * 3

    def __init__(self, stride: int, spoil: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.levels = (Level(3, stride),)
        self.spoil = spoil

    def forward(self, images: Tensor) -> list[Tensor]:
        stride, (height, width) = self.levels[0].stride, images.shape[-2:]
        padded = F.pad(images, (0, -width % stride, 0, -height % stride))
        return [self.spoil(F.avg_pool2d(padded, stride), images)]

    def tokens(self, images: Tensor) -> Tokens:
        raise NotImplementedError

    def embed(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def layer_of(self, parameter: str) -> int:
        return 0


def kept(maps: Tensor, images: Tensor) -> Tensor:
    return maps


def floored_and_stretched(maps: Tensor, images: Tensor) -> Tensor:
    """What comes of transformers' flooring and a head that resizes to the picture."""
    return F.interpolate(F.avg_pool2d(images, 16), size=maps.shape[2:], mode="bilinear")


def shifted(maps: Tensor, images: Tensor) -> Tensor:
    """A prefix token that was taken for a patch."""
    return maps.flatten(2).roll(1, dims=2).reshape(maps.shape)


def transposed(maps: Tensor, images: Tensor) -> Tensor:
    return maps.mT.reshape(maps.shape)


def cropped_at_the_end(maps: Tensor, images: Tensor) -> Tensor:
    """Rows and columns that don't fill a cell never reach the map."""
    maps = maps.clone()
    maps[:, :, -1] = maps[..., -1] = 0.0
    return maps


def windows_left_in_place(maps: Tensor, images: Tensor) -> Tensor:
    """Windows of 4 x 4 cells, concatenated instead of put back."""
    height, width = (side // 4 * 4 for side in maps.shape[2:])
    inner = maps[:, :, :height, :width].unflatten(3, (-1, 4)).unflatten(2, (-1, 4))  # (B, C, h / 4, 4, w / 4, 4)
    mixed = maps.clone()
    mixed[:, :, :height, :width] = inner.transpose(3, 4).reshape(*maps.shape[:2], height, width)
    return mixed


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_aligned_cells_are_found_aligned(stride: int) -> None:
    found = measure_alignment(Patches(stride, kept), SIZE)
    assert [level.verdict for level in found] == ["yes"]
    assert found[0].offset == found[0].drift == found[0].spread == 0.0


@pytest.mark.parametrize(
    "spoil", [floored_and_stretched, shifted, transposed, cropped_at_the_end, windows_left_in_place]
)
def test_spoiled_maps_are_found_out(spoil: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert [level.verdict for level in measure_alignment(Patches(16, spoil), SIZE)] == ["no"]


def test_a_map_that_answers_to_nothing_is_unclear() -> None:
    blind = Patches(16, lambda maps, images: torch.zeros_like(maps))
    assert [level.verdict for level in measure_alignment(blind, SIZE)] == ["unclear"]


def build(name: str) -> Backbone:
    torch.manual_seed(0)
    options: dict[str, Any] = EXAMPLES[name]
    return BACKBONES.create(name, options).build().eval()


@pytest.mark.parametrize("name", PLAIN)
def test_cells_of_plain_networks_answer_to_their_own_pixels(name: str) -> None:
    found = measure_alignment(build(name), SIZE)
    assert [level.verdict for level in found] == ["yes"] * 4, found


@pytest.mark.parametrize("name", PYRAMIDS)
def test_cells_of_pyramids_answer_to_their_own_pixels(name: str) -> None:
    found = measure_alignment(build(name), SIZE)
    assert {level.verdict for level in found} == {"yes"}, found
