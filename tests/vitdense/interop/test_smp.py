"""Backbones as smp's encoders, under all of its decoders."""

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor

import vitdense
from vitdense.errors import UserError
from vitdense.interop.smp import register

DILATED = {"encoder_depth": 4, "encoder_output_stride": 16}
DECODERS: list[tuple[str, dict[str, Any]]] = [
    ("Unet", {}),
    ("UnetPlusPlus", {}),
    ("MAnet", {}),
    ("Linknet", {}),
    ("FPN", {}),
    ("PSPNet", {"encoder_depth": 5, "upsampling": 32}),
    ("UPerNet", {}),
    ("Segformer", {}),
    ("DeepLabV3", DILATED),
    ("DeepLabV3Plus", DILATED),
    ("PAN", DILATED),
]


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("small-vit", "other"):
        monkeypatch.delitem(smp.encoders.encoders, name, raising=False)
    register("small-vit", "vit_nano_patch8", adapter={"name": "simple_pyramid", "channels": 32}, depth=2)


def model(decoder: str, name: str, **options: Any) -> Any:
    return getattr(smp, decoder)(name, encoder_weights=None, classes=5, **options)


@pytest.mark.parametrize("name", ["vitdense-swin_nano", "small-vit"])
@pytest.mark.parametrize(("decoder", "options"), DECODERS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_decoder_runs_and_trains_the_encoder(decoder: str, options: dict[str, Any], name: str) -> None:
    network = model(decoder, name, **options)
    logits = network(torch.randn(2, 3, 128, 160))
    assert logits.shape == (2, 5, 128, 160)
    logits.square().mean().backward()
    reached = [parameter.grad is not None for parameter in network.encoder.parameters()]
    assert sum(reached) > len(reached) / 2
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.encoder.parameters())


@torch.no_grad()
def test_unet_takes_odd_sizes_and_the_others_say_what_they_want(odd_images: Tensor) -> None:
    for name in ("vitdense-swin_nano", "small-vit"):
        assert model("Unet", name).eval()(odd_images).shape == (1, 5, 97, 130)
        with pytest.raises(RuntimeError, match=r"divisible by 32.*\(128, 160\)"):
            model("UPerNet", name).eval()(odd_images)
        with pytest.raises(RuntimeError, match="divisible by 16"):
            model("DeepLabV3Plus", name, encoder_depth=4).eval()(odd_images)


@torch.no_grad()
def test_features_are_the_input_an_empty_map_and_the_levels(odd_images: Tensor) -> None:
    encoder = model("Unet", "vitdense-swin_nano").eval().encoder
    features = encoder(odd_images)
    assert [each.shape[1] for each in features] == encoder.out_channels == [3, 0, 32, 64, 128, 256]
    assert [tuple(each.shape[2:]) for each in features[:4]] == [(97, 130), (49, 65), (25, 33), (13, 17)]
    assert torch.equal(features[0], odd_images)
    assert all(torch.equal(a, b) for a, b in zip(features[2:], encoder.backbone(odd_images), strict=True))


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_depth_ends_the_features(depth: int) -> None:
    encoder = smp.encoders.get_encoder("vitdense-swin_nano", depth=depth)
    assert len(encoder(torch.randn(1, 3, 64, 64))) == len(encoder.out_channels) == depth + 1
    assert encoder.output_stride == 2**depth


@torch.no_grad()
def test_in_channels_adapt_the_weights(tmp_path: Path) -> None:
    trained = vitdense.create_backbone("swin_nano")
    torch.save(trained.state_dict(), tmp_path / "swin.pt")
    register("other", "swin_nano", weights=tmp_path / "swin.pt")
    same, grey = model("Unet", "other").encoder, model("Unet", "other", in_channels=1).encoder
    images = torch.randn(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(same(images)[2:], trained(images), strict=True))
    expected = vitdense.create_backbone("swin_nano", weights=tmp_path / "swin.pt", in_channels=1)(images[:, :1])
    assert all(torch.equal(a, b) for a, b in zip(grey(images[:, :1])[2:], expected, strict=True))
    assert (grey.out_channels[0], len(grey.mean), len(grey.std)) == (1, 1, 1)
    assert same.mean == [0.485, 0.456, 0.406]


@torch.no_grad()
def test_a_saved_model_gives_the_same_bits(tmp_path: Path, odd_images: Tensor) -> None:
    network = model("Unet", "vitdense-swin_nano").eval()
    network.save_pretrained(tmp_path)
    assert torch.equal(smp.from_pretrained(tmp_path).eval()(odd_images), network(odd_images))


def test_every_backbone_has_a_name() -> None:
    assert {f"vitdense-{name}" for name in vitdense.list_backbones()} <= smp.encoders.encoders.keys()


def test_a_plain_backbone_without_an_adapter_gets_a_pyramid() -> None:
    encoder = smp.encoders.get_encoder("vitdense-vit_nano_patch8")
    assert encoder.out_channels == [3, 0, 256, 256, 256, 256]


def test_a_backbone_of_timms_runs_too() -> None:
    register("other", "timm/test_convnext")
    assert model("UPerNet", "other").eval()(torch.randn(1, 3, 64, 96)).shape == (1, 5, 64, 96)


def test_what_can_not_be_is_said() -> None:
    with pytest.raises(UserError, match="can't be dilated to output stride 16; encoder_depth=4 has it"):
        model("DeepLabV3Plus", "vitdense-swin_nano")
    with pytest.raises(UserError, match="in_channels is given to the smp model"):
        register("other", "swin_nano", in_channels=4)
    register("other", "swin_nano", out_indices=(0, 1))
    with pytest.raises(UserError, match=r"swin_nano has strides \[4, 8\], and encoder_depth=5 ends at stride 32"):
        model("Unet", "other")
    with pytest.raises(UserError, match=r"encoder_depth must lie in 1 \.\. 5, given 6"):
        smp.encoders.get_encoder("vitdense-swin_nano", depth=6)
