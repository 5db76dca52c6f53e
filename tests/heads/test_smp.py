"""smp's decoders on our levels: equal to smp's whole models, true at any size, and clear about what they can't use."""

import re
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch

from heads import create_head
from vitdense.contracts import Level
from vitdense.errors import UserError

LEVELS = (Level(8, 4), Level(12, 8), Level(16, 16), Level(20, 32))
NAMES = (
    "unet",
    "unetplusplus",
    "manet",
    "linknet",
    "fpn",
    "pspnet",
    "deeplabv3",
    "deeplabv3plus",
    "upernet",
    "segformer",
)


class Maps(torch.nn.Module):
    """An encoder of smp's that gives maps made beforehand."""

    output_stride = 32

    def __init__(self, levels: tuple[Level, ...], depth: int, output_stride: int) -> None:
        super().__init__()
        at = {level.stride: level.channels for level in levels}
        self.out_channels = [3, *(at.get(2**halved, 0) for halved in range(1, depth + 1))]
        self.given: list[torch.Tensor] = []

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None: ...

    def make_dilated(self, output_stride: int) -> None: ...

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        empty = images.new_empty(len(images), 0, images.shape[-2] // 2, images.shape[-1] // 2)
        return [images, empty, *self.given][: len(self.out_channels)]


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_smps_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder = {"encoder": Maps, "params": {"levels": LEVELS}, "pretrained_settings": {}}
    monkeypatch.setitem(smp.encoders.encoders, "maps", encoder)
    depth = {"deeplabv3plus": 4}.get(name, 5)
    widths: dict[str, Any] = {}
    if name in ("unet", "unetplusplus", "manet"):
        widths = {"decoder_channels": [16, 8, 8, 8, 8]}
    reference = smp.create_model(name, "maps", None, classes=7, encoder_depth=depth, **widths).eval()
    head = create_head(f"smp/{name}", LEVELS, num_classes=7, options=widths).eval()
    head.get_submodule("decoder").load_state_dict(reference.decoder.state_dict())
    head.get_submodule("classifier").load_state_dict(reference.segmentation_head[0].state_dict())
    features = [torch.randn(2, level.channels, 128 // level.stride, 192 // level.stride) for level in LEVELS]
    images = torch.randn(2, 3, 128, 192)
    reference.encoder.given = features
    got, expected = head(features, {"images": images})["logits"], reference.decoder(reference.encoder(images))
    torch.testing.assert_close(got, reference.segmentation_head[0](expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "stride"), [("unet", 1), ("fpn", 4), ("deeplabv3", 32)])
def test_any_size_gives_whole_cells(name: str, stride: int) -> None:
    features = [torch.randn(2, each.channels, -(-250 // each.stride), -(-333 // each.stride)) for each in LEVELS]
    outputs = create_head(f"smp/{name}", LEVELS, num_classes=7)(features, {"images": torch.empty(2, 3, 250, 333)})
    assert outputs["logits"].shape == (2, 7, -(-250 // stride), -(-333 // stride))


@pytest.mark.parametrize(
    ("name", "levels", "options", "message"),
    [
        ("unett", LEVELS, {}, "smp has no decoder of maps named 'unett'; known: deeplabv3, deeplabv3plus, fpn"),
        ("unet", (Level(8, 16), Level(8, 16)), {}, "needs a pyramid: levels of different strides .* simple_pyramid"),
        (
            "unet",
            LEVELS,
            {"options": {"decoder_channel": 3}},
            r"no options \['decoder_channel'\]; allowed: .*decoder_channels",
        ),
        ("unet", LEVELS, {"options": {"decoder_channels": [8]}}, r"smp/unet with options .*decoder_channels.*5"),
        ("fpn", LEVELS[:3], {}, r"smp/fpn needs .* with 2, 4, 8, 16 among them; got strides \[4, 8, 16\]"),
    ],
)
def test_mistakes_are_named(name: str, levels: tuple[Level, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        create_head(f"smp/{name}", levels, num_classes=7, **options)
    assert re.search(message, str(caught.value)), caught.value
