"""A map's cells answer to their own pixels; and the measure of that tells a stretched or floored map."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vitdense
from tests.stubs import MapsAlone
from vitdense.backbones import VideoViTConfig
from vitdense.backbones.alignment import measure_alignment
from vitdense.contracts import BACKBONES, Backbone, Level

SIZE = (250, 333)
SMALL = BACKBONES.names("*small*patch*")
PLAIN = [name for name in SMALL if not issubclass(BACKBONES.find(name)[0], VideoViTConfig)]


class Toy(MapsAlone):
    """One convolution of stride 16 that pads, floors, or stretches what it floored."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fault = nn.Conv2d(3, 8, 16, stride=16), fault
        self.levels, self.embed_dim = (Level(8, 16),), 8

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        size = (-(-height // 16), -(-width // 16))
        if self.fault == "none":
            return [self.conv(F.pad(images, (0, -width % 16, 0, -height % 16)))]
        floored = self.conv(images)
        if self.fault == "stretched":
            return [F.interpolate(floored, size=size, mode="bilinear")]
        return [F.pad(floored, (1, 0, 1, 0))]  # shifted


def verdicts(backbone: Backbone) -> set[str]:
    return {each.verdict for each in measure_alignment(backbone.eval(), SIZE)}


@pytest.mark.parametrize(("fault", "verdict"), [("none", "yes"), ("stretched", "no"), ("shifted", "no")])
def test_the_measure_tells_true_maps_from_false_ones(fault: str, verdict: str) -> None:
    assert verdicts(Toy(fault)) == {verdict}


@pytest.mark.parametrize(
    "name", ["timm/resnet18", "timm/convnext_atto", "vit_nano_patch8", "swin_nano", "swinv2_nano", "vit_nano_r_s16"]
)
def test_maps_are_aligned(name: str) -> None:
    torch.manual_seed(0)
    assert "no" not in verdicts(vitdense.create_backbone(name))


@pytest.mark.parametrize("name", PLAIN)
def test_plain_presets_are_aligned(name: str) -> None:
    torch.manual_seed(0)
    backbone = BACKBONES.create(name, {"depth": 2, "out_indices": (0, 1)}).build()
    assert verdicts(backbone) == {"yes"}
