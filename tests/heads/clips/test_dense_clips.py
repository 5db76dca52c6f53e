"""Dense heads on maps with a time axis: equal to those of pictures where they should be, whole at any length."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads import create_head
from heads.frames import fold, of_frames, resize_3d, unfold
from heads.linear_3d import shuffle_3d
from vitdense.contracts import Batch, Head, Level
from vitdense.errors import UserError

FLAT = (Level(8, 4), Level(12, 8), Level(16, 16))
THIN: dict[str, Any] = {"channels": 8, "auxiliary_channels": 8, "dropout": 0.0}


def levels(time_stride: int) -> tuple[Level, ...]:
    return tuple(Level(level.channels, level.stride, time_stride) for level in FLAT)


def clip_batch(frames: int, count: int = 2, size: tuple[int, int] = (30, 44)) -> Batch:
    return {
        "images": torch.zeros(count, 3, frames, *size, dtype=torch.uint8),
        "masks": torch.randint(-1, 5, (count, frames, *size), dtype=torch.int16),
        "depth": 1 + 3 * torch.rand(count, frames, *size),
        "sizes": [size] * count,
    }


def maps_of(given: tuple[Level, ...], frames: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Of clips (30, 44)."""
    sizes = [
        (-(-frames // (level.time_stride or 1)), *(-(-side // level.stride) for side in (30, 44))) for level in given
    ]
    return [torch.randn(2, level.channels, *size, dtype=dtype) for level, size in zip(given, sizes, strict=True)]


def carry_signal(head: nn.Module) -> None:
    for name, tensor in head.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn_like(tensor) * (tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.5) + 0.1)


def bound(dtype: torch.dtype) -> float:
    return 1e-9 if dtype == torch.float64 else 1e-5


def test_folding_and_back_is_the_same() -> None:
    maps = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(fold(maps)[5], maps[1, :, 1])
    assert torch.equal(unfold(fold(maps), 2), maps)


def test_time_first_and_then_space_is_trilinear() -> None:
    maps = torch.randn(2, 3, 3, 4, 5, dtype=torch.float64)
    by_parts = F.interpolate(of_frames(maps, 7), size=(9, 11), mode="bilinear")
    torch.testing.assert_close(unfold(by_parts, 2), resize_3d(maps, (7, 9, 11)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["upernet", "linear", "fcn", "dpt", "linear_depth"])
def test_per_frame_is_the_head_of_pictures_on_each(name: str) -> None:
    options: dict[str, Any] = {"upernet": THIN, "fcn": {"channels": 8}, "dpt": {"channels": 8}}.get(name, {})
    head = create_head("per_frame", levels(1), num_classes=5, head={"name": name, "num_classes": 5, **options}).eval()
    carry_signal(head)
    inner = next(head.children())
    assert isinstance(inner, Head)
    maps, batch = maps_of(levels(1), 3), clip_batch(3)
    found = head.predict(head(maps, batch), batch)
    for clip in range(2):
        for frame in range(3):
            alone: Batch = {"images": batch["images"][clip : clip + 1, :, frame], "sizes": [(30, 44)]}
            expected = inner.predict(inner([each[clip : clip + 1, :, frame] for each in maps], alone), alone)[0]
            torch.testing.assert_close(found[clip][frame], expected, rtol=0, atol=1e-5)
    losses = head.losses(head(maps, batch), batch)
    assert all(bool(value.isfinite()) for value in losses.values())


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("name", ["per_frame", "linear_3d", "upernet_3d"])
def test_any_number_of_frames_learns_and_is_predicted(name: str, frames: int) -> None:
    options: dict[str, Any] = {
        "per_frame": {"head": {"name": "upernet", "num_classes": 5, **THIN}},
        "upernet_3d": THIN,
    }.get(name, {})
    head = create_head(name, levels(2), num_classes=5, **options)
    batch, maps = clip_batch(frames), maps_of(levels(2), frames)
    outputs = head(maps, batch)
    losses = head.losses(outputs, batch)
    assert ("loss_aux" in losses) == (name != "linear_3d")
    torch.stack([*losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
    assert [key for key, each in head.named_parameters() if each.grad is None] == []
    found = head.eval().predict(head(maps, batch), batch)
    assert [tuple(each.shape) for each in found] == [(frames, 30, 44)] * 2
    assert head.dense == "logits"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_upernet_3d_on_one_frame_is_upernet_with_the_middle_of_its_kernels(dtype: torch.dtype) -> None:
    solid = create_head("upernet_3d", levels(1), num_classes=5, **THIN).to(dtype).eval()
    carry_signal(solid)
    flat = create_head("upernet", FLAT, num_classes=5, **THIN).to(dtype).eval()
    state = {
        key: value[:, :, value.shape[2] // 2] if value.ndim == 5 else value for key, value in solid.state_dict().items()
    }
    theirs = {
        key.replace("auxiliary_head.0.", "auxiliary_head.convs.0.").replace(
            "auxiliary_head.2.", "auxiliary_head.classifier."
        ): value
        for key, value in state.items()
    }
    flat.load_state_dict(theirs)
    maps = maps_of(levels(1), 1, dtype)
    with torch.no_grad():
        found = solid(maps, {})["logits"][:, :, 0]
        expected = flat([each[:, :, 0] for each in maps], {})["logits"]
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=bound(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_3d_is_a_matrix_on_maps_of_one_size(dtype: torch.dtype) -> None:
    given = (Level(8, 4, 2), Level(12, 4, 2))
    head = create_head("linear_3d", given, num_classes=5, norm="none").to(dtype).eval()
    carry_signal(head)
    maps = maps_of(given, 5, dtype)
    weight, bias = head.get_parameter("classifier.weight")[..., 0, 0, 0], head.get_parameter("classifier.bias")
    expected = torch.einsum("kc,bcthw->bkthw", weight, torch.cat(maps, dim=1)) + bias.view(-1, 1, 1, 1)
    torch.testing.assert_close(head(maps, {})["logits"], expected, rtol=0, atol=bound(dtype))


def test_finer_logits_lie_inside_their_cell() -> None:
    maps = torch.arange(12.0)[None, :, None, None, None] + torch.tensor([0.0, 100.0]).view(1, 1, 1, 1, 2)
    found = shuffle_3d(maps, (1, 2, 3))
    assert found.shape == (1, 2, 1, 2, 6)
    assert found[0, 0, 0].tolist() == [[0, 1, 2, 100, 101, 102], [3, 4, 5, 103, 104, 105]]
    assert found[0, 1, 0, 0, 0] == 6
    head = create_head("linear_3d", levels(2), num_classes=5, finer=[2, 4, 4])
    assert head(maps_of(levels(2), 6), {})["logits"].shape == (2, 5, 6, 32, 44)


def test_the_loss_of_a_clip_is_that_of_its_trilinear_logits() -> None:
    head = create_head("linear_3d", levels(2), num_classes=5)
    batch = clip_batch(5)
    logits = torch.randn(2, 5, 3, 8, 11)
    full = resize_3d(logits, (5, 30, 44))
    expected = F.cross_entropy(full, batch["masks"].long(), ignore_index=-1)
    torch.testing.assert_close(head.losses({"logits": logits}, batch)["loss_ce"], expected)
    assert torch.equal(torch.stack(head.predict({"logits": logits}, batch)).long(), full.argmax(dim=1))


def test_what_can_not_be_is_refused() -> None:
    with pytest.raises(UserError, match="needs maps with a time axis"):
        create_head("linear_3d", FLAT, num_classes=5)
    with pytest.raises(UserError, match="per_frame"):
        create_head("linear", levels(2), num_classes=5)
    with pytest.raises(UserError, match=r"maps of the same frames, got time strides \[1, 2\]"):
        create_head("per_frame", (Level(8, 4, 1), Level(8, 8, 2)), head={"name": "linear", "num_classes": 5})
    with pytest.raises(UserError, match="align_corners"):
        create_head("linear_3d", levels(2), num_classes=5, align_corners=True)
    with pytest.raises(UserError, match="batch of at least 2"):
        create_head("upernet_3d", levels(1), num_classes=5, **THIN)([each[:1] for each in maps_of(levels(1), 2)], {})
    head = create_head("linear_3d", levels(2), num_classes=5)
    batch = clip_batch(5)
    with pytest.raises(UserError, match=r"masks of clips must be \(B, T, H, W\) = \(2, 5, 30, 44\)"):
        head.losses({"logits": torch.randn(2, 5, 3, 8, 11)}, {**batch, "masks": batch["masks"][:, :4]})
    with pytest.raises(UserError, match=r"needs images \(B, C, T, H, W\), got \(2, 3, 30, 44\)"):
        head.losses({"logits": torch.randn(2, 5, 3, 8, 11)}, {**batch, "images": batch["images"][:, :, 0]})
