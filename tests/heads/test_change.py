"""Head `change`: a siamese network written by hand, symmetry in the order of pictures, windows of pairs, refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vitdense
from heads import create_head
from tests.stubs import MapsAlone
from vitdense.build import AdaptedBackbone
from vitdense.contracts import Backbone, Batch, Head, Level
from vitdense.errors import UserError
from vitdense.inference import InferenceConfig, infer
from vitdense.inference.dense import _slide
from vitdense.model import Model

LEVELS = (Level(8, 4, 1), Level(12, 8, 1), Level(16, 16, 1))
THIN: dict[str, Any] = {"name": "upernet", "channels": 8, "auxiliary_channels": 8, "dropout": 0.0}
LINEAR: dict[str, Any] = {"name": "linear", "dropout": 0.0}
SIZE = (75, 98)
CASES: dict[str, tuple[str, dict[str, Any] | None, dict[str, Any]]] = {
    "vit": ("vit_nano_patch8", {"name": "simple_pyramid", "channels": 8}, THIN),
    "swin": ("swin_nano", None, THIN),
    "hybrid": ("vit_nano_r_s16", {"name": "reassemble", "channels": [8, 8, 8, 8]}, {"name": "dpt", "channels": 8}),
    "timm": ("timm/resnet18", None, {"name": "segformer", "channels": 8, "dropout": 0.0}),
}
Signal = Callable[[nn.Module], None]


class Siamese(nn.Module):
    """By hand: one backbone on either picture, what the maps differ by, a segmentation head; logits (B, K, h, w)."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        one, other = ([*self.backbone(self.normal(images))] for images in (before, after))
        differences = [(a - b).abs() for a, b in zip(one, other, strict=True)]
        logits: Tensor = self.head(differences, {"images": before})["logits"]
        return logits

    def normal(self, images: Tensor) -> Tensor:
        """With numbers in fp32, as `Model` keeps them."""
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (self.backbone.mean, self.backbone.std))
        return (images - mean) / std


def build(case: str, signal: Signal) -> tuple[Model, Siamese]:
    """Ours and one by hand, of equal weights in fp64 that carry a signal."""
    name, adapter, inner = CASES[case]
    clips: Any = vitdense.create_backbone(f"per_frame/{name}", adapter=adapter)
    head: Any = create_head("change", clips.levels, num_classes=2, head={**inner, "num_classes": 2})
    signal(clips)
    signal(head)
    single: Any = vitdense.create_backbone(name, adapter=adapter)
    if isinstance(single, AdaptedBackbone):
        single.backbone.load_state_dict(clips.backbone.backbone.state_dict())
        single.adapter.load_state_dict(clips.adapter.adapter.state_dict())
    else:
        single.load_state_dict(clips.backbone.state_dict())
    options = {key: value for key, value in inner.items() if key != "name"}
    plain = create_head(inner["name"], single.levels, num_classes=2, **options)
    plain.load_state_dict(head.head.state_dict())
    return Model(clips, head).double().eval(), Siamese(single, plain).double().eval()


class Pointwise(MapsAlone):
    """A stand-in whose maps see one pixel each."""

    levels = (Level(3, 1, 1),)
    embed_dim = 3

    def forward(self, images: Tensor) -> list[Tensor]:
        return [(5 * images).sin()]


def pair_batch(count: int = 2, size: tuple[int, int] = SIZE) -> Batch:
    return {
        "images": torch.rand(count, 3, 2, *size, dtype=torch.float64),
        "masks": torch.randint(-1, 2, (count, *size), dtype=torch.int16),
        "sizes": [size] * count,
    }


def maps_of(count: int = 2, frames: int = 2) -> list[Tensor]:
    sizes = [tuple(-(-side // level.stride) for side in SIZE) for level in LEVELS]
    return [torch.randn(count, level.channels, frames, *size) for level, size in zip(LEVELS, sizes, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_it_is_a_siamese_network_written_by_hand(case: str, signal: Signal) -> None:
    ours, by_hand = build(case, signal)
    batch = pair_batch()
    before, after = batch["images"].unbind(2)
    outputs, expected = ours(batch), by_hand(before, after)
    assert expected.std() > 0.01
    scale = max(float(expected.detach().abs().max()), 1.0)
    torch.testing.assert_close(outputs["logits"], expected, rtol=0, atol=1e-9 * scale)
    found = ours.head.predict(outputs, batch)
    assert [tuple(each.shape) for each in found] == [SIZE] * 2


def test_its_loss_is_that_of_the_full_size_logits(signal: Signal) -> None:
    ours, by_hand = build("swin", signal)
    batch = pair_batch()
    full = F.interpolate(by_hand(*batch["images"].unbind(2)), size=SIZE, mode="bilinear")
    expected = F.cross_entropy(full, batch["masks"].long(), ignore_index=-1)
    found = ours.head.losses(ours(batch), batch)["loss_ce"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_one_backbone_learns_from_both_pictures_as_the_one_by_hand(signal: Signal) -> None:
    ours, by_hand = build("swin", signal)
    batch = pair_batch()
    logits, expected = ours(batch)["logits"], by_hand(*batch["images"].unbind(2))
    weights = torch.randn_like(logits)
    for each in (logits, expected):
        (each * weights).sum().backward()
    theirs = {name: each.grad for name, each in by_hand.backbone.named_parameters() if each.grad is not None}
    found = {name.removeprefix("backbone."): each.grad for name, each in ours.backbone.named_parameters()}
    largest = max(float(each.abs().max()) for each in theirs.values())
    assert len(theirs) > 20
    for name, gradient in theirs.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-9 * largest)


@pytest.mark.parametrize("fuse", ["concat", "both"])
def test_joined_maps_are_projected_to_the_channels_of_one(fuse: str, signal: Signal) -> None:
    head: Any = create_head("change", LEVELS, fuse=fuse, head={**LINEAR, "num_classes": 3}).double().eval()
    signal(head)
    maps = [each.double() for each in maps_of()]
    fused = []
    for fusion, each in zip(head.fusions, maps, strict=True):
        a, b = each.unbind(2)
        joined = torch.cat([a, b] + ([(a - b).abs()] if fuse == "both" else []), dim=1)
        weight = fusion.projection.weight[..., 0, 0]
        assert weight.shape == (each.shape[1], joined.shape[1])
        fused.append(torch.einsum("oc,bchw->bohw", weight, joined) + fusion.projection.bias.view(-1, 1, 1))
    expected = head.head(fused, {})["logits"]
    torch.testing.assert_close(head(maps, {})["logits"], expected, rtol=0, atol=1e-9)
    swapped = head([each.flip(2) for each in maps], {})["logits"]
    assert (swapped - expected).abs().max() > 1e-3


def test_the_difference_does_not_know_the_order_of_pictures() -> None:
    head = create_head("change", LEVELS, head={**THIN, "num_classes": 2}).train()
    maps = maps_of()
    one, other = (head(given, {}) for given in (maps, [each.flip(2) for each in maps]))
    assert one.keys() == other.keys() == {"logits", "auxiliary_logits"}
    assert all(torch.equal(one[name], other[name]) for name in one)
    same = [each[:, :, :1].expand(-1, -1, 2, -1, -1) for each in maps]
    nothing = create_head("change", LEVELS, head={**LINEAR, "num_classes": 2}).eval()(same, {})["logits"]
    assert (nothing.amax((2, 3)) == nothing.amin((2, 3))).all()


def test_the_whole_model_does_not_know_the_order_either(signal: Signal) -> None:
    model, _ = build("swin", signal)
    batch = pair_batch()
    swapped: Batch = {**batch, "images": batch["images"].flip(2)}
    with torch.no_grad():
        torch.testing.assert_close(model(batch)["logits"], model(swapped)["logits"], rtol=0, atol=1e-11)


@pytest.mark.parametrize("fuse", ["difference", "concat", "both"])
def test_every_parameter_learns(fuse: str) -> None:
    losses = {"cross_entropy": 1.0, "dice": 0.5}
    head = create_head("change", LEVELS, fuse=fuse, head={**THIN, "losses": losses, "num_classes": 2})
    batch = pair_batch()
    found = head.losses(head(maps_of(), batch), batch)
    assert found.keys() == {"loss_ce", "loss_dice", "loss_aux"}
    torch.stack([*found.values()]).sum().backward()  # type: ignore[no-untyped-call]
    assert [name for name, each in head.named_parameters() if each.grad is None] == []


@pytest.mark.parametrize("name", ["mask_transformer", "fcn"])
def test_other_segmentation_heads_work_inside(name: str) -> None:
    few = {
        "task": "semantic",
        "num_queries": 6,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "pixel_channels": 32,
        "mask_channels": 8,
    }
    options = {"channels": 32, **(few if name == "mask_transformer" else {})}
    head = create_head("change", (*LEVELS, Level(16, 32, 1)), head={"name": name, "num_classes": 2, **options}).eval()
    batch = pair_batch()
    found = head.predict(head([*maps_of(), torch.randn(2, 16, 2, 3, 4)], batch), batch)
    assert [tuple(each.shape) for each in found] == [SIZE] * 2


@pytest.mark.parametrize(
    "options", [{"mode": "sliding", "window": [32, 40], "stride": 20}, {"flip": True}, {"scales": [0.5, 1.0]}]
)
def test_pairs_are_looked_at_in_windows_scales_and_flips(options: dict[str, Any], signal: Signal) -> None:
    model, _ = build("swin", signal)
    found = infer(model, pair_batch(), InferenceConfig.model_validate(options))
    assert [tuple(each.shape) for each in found] == [SIZE] * 2


@pytest.mark.parametrize("window", [20, [16, 100], [200, 33]])
def test_windows_of_what_sees_single_pixels_equal_the_whole(window: Any, signal: Signal) -> None:
    head = create_head("change", Pointwise.levels, head={**LINEAR, "norm": "none", "num_classes": 2}).eval()
    signal(head)
    model, batch = Model(Pointwise(), head).double().eval(), pair_batch()
    config = InferenceConfig.model_validate({"mode": "sliding", "window": window, "window_batch": 3})
    found, expected = _slide(model, batch, config), model(batch)["logits"]
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fuse", ["difference", "both"])
def test_it_is_exported_and_runs_in_half_precision(fuse: str) -> None:
    class OnMaps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = create_head("change", LEVELS, fuse=fuse, head={**LINEAR, "num_classes": 2})

        def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
            logits: Tensor = self.head([fine, middle, coarse], {})["logits"]
            return logits

    module, maps = OnMaps().eval(), maps_of()
    expected = module(*maps)
    program = torch.export.export(module, tuple(maps), strict=False).module()
    torch.testing.assert_close(program(*maps), expected, rtol=0, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(*maps).float(), expected, rtol=0, atol=0.1)


def test_a_window_as_large_as_the_pictures_changes_nothing(signal: Signal) -> None:
    model, _ = build("swin", signal)
    batch = pair_batch()
    with torch.no_grad():  # half of all pixels are to have changed
        low, high = model(batch)["logits"].unbind(1)
        model.head.get_parameter("head.decode_head.classifier.bias")[0] += (high - low).median()
    whole, slid = (
        infer(model, batch, InferenceConfig.model_validate(options)) for options in ({}, {"mode": "sliding"})
    )
    assert all(torch.equal(one, other) for one, other in zip(whole, slid, strict=True))
    assert len(torch.unique(torch.stack(whole))) == 2


def test_a_pair_of_arrays_is_predicted(signal: Signal) -> None:
    model, _ = build("swin", signal)
    pair = torch.randint(0, 256, (2, 40, 56, 3), dtype=torch.uint8).numpy()
    (mask,) = model.predict([pair])
    assert mask.shape == (40, 56)


def test_it_may_be_one_of_several_heads(signal: Signal) -> None:
    alone, _ = build("swin", signal)
    tasks = {name: {"head": {"name": "change", "head": {**THIN, "num_classes": 2}}} for name in ("new", "gone")}
    head: Any = create_head("tasks", alone.backbone, tasks=tasks)
    head.heads["gone"].load_state_dict(alone.head.state_dict())
    batch = pair_batch()
    (found, _), (expected, _) = (
        infer(model, batch, InferenceConfig()) for model in (Model(alone.backbone, head).double().eval(), alone)
    )
    assert found.keys() == {"new", "gone"}
    assert torch.equal(found["gone"], expected)


@pytest.mark.parametrize("frames", [1, 3])
def test_clips_of_another_length_are_refused(frames: int) -> None:
    head = create_head("change", LEVELS, head={**LINEAR, "num_classes": 2})
    with pytest.raises(UserError, match=rf"compares two pictures, \(B, C, 2, H, W\), got clips of {frames} frames"):
        head(maps_of(frames=frames), {})


def test_what_can_not_be_is_refused() -> None:
    flat, pooled = (Level(8, 4),), (Level(8, 4, 2),)
    for levels in (flat, pooled):
        with pytest.raises(UserError, match=r"take the backbone per_frame/NAME"):
            create_head("change", levels, head={**LINEAR, "num_classes": 2})
    with pytest.raises(UserError, match="needs a head with classes by pixel, such as upernet; LinearDepth"):
        create_head("change", LEVELS, head={"name": "linear_depth"})
    with pytest.raises(UserError, match="fuse"):
        create_head("change", LEVELS, fuse="sum", head=LINEAR)
    batch = pair_batch()
    batch["masks"] = batch["masks"][:, None].expand(-1, 2, -1, -1)
    head = create_head("change", LEVELS, head={**LINEAR, "num_classes": 2})
    with pytest.raises(UserError, match=r"masks must be \(B, H, W\) = \(2, 75, 98\)"):
        head.losses({"logits": torch.randn(2, 2, 19, 25)}, batch)
