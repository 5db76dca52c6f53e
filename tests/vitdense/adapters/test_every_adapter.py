"""What holds for every adapter: true levels at any size, gradients everywhere, every precision, compiled, exported."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitdense.build import AdaptedBackbone
from vitdense.contracts import ADAPTERS, Backbone, Level
from vitdense.errors import UserError

NAMES = ADAPTERS.names()
NEEDS_A_PYRAMID = {"fpn"}
CELLS = [(name, patch) for name in NAMES for patch in ((4,) if name in NEEDS_A_PYRAMID else (14, 16))]
# Four stages of ten deformable attentions take a quarter of a minute to trace.
FOR_TRACING: dict[str, dict[str, Any]] = {"vit_adapter": {"stages": 1, "add_vit_feature": False, "extra_extractors": 1}}
PLAIN = [Level(24, 16)] * 4
PYRAMID = [Level(8 * 2**i, 4 * 2**i) for i in range(4)]
Adapted = Callable[..., AdaptedBackbone]
Enliven = Callable[[nn.Module], nn.Module]


@pytest.fixture
def adapted(plain: Callable[..., Backbone], pyramid: Callable[[], Backbone]) -> Adapted:
    """On a plain backbone of this patch size, or on a pyramid for what needs one."""

    def build(name: str, patch: int, stages: int = 4, **options: object) -> AdaptedBackbone:
        backbone = pyramid() if name in NEEDS_A_PYRAMID else plain(patch, stages=stages)
        return AdaptedBackbone(backbone, ADAPTERS.create(name, options)).eval()

    return build


def promised(backbone: Backbone, images: Tensor) -> list[tuple[int, ...]]:
    height, width = images.shape[-2:]
    return [
        (images.shape[0], level.channels, -(-height // level.stride), -(-width // level.stride))
        for level in backbone.levels
    ]


def total(maps: list[Tensor]) -> Tensor:
    return torch.stack([each.square().mean() for each in maps]).sum()


@torch.no_grad()
@pytest.mark.parametrize("patch", [8, 14, 16, 32])
@pytest.mark.parametrize("name", NAMES)
def test_levels_are_true_at_any_size(name: str, patch: int, adapted: Adapted) -> None:
    backbone = adapted(name, patch)
    for size in ((64, 96), (75, 98), (33, 130), (9, 5)):
        images = torch.randn(2, 3, *size)
        assert [tuple(each.shape) for each in backbone(images)] == promised(backbone, images)
    assert [level.stride for level in backbone.levels] == [4, 8, 16, 32]


@pytest.mark.parametrize(("name", "patch"), CELLS)
def test_gradients_reach_every_parameter_in_training(name: str, patch: int, adapted: Adapted) -> None:
    backbone = adapted(name, patch).train()
    torch.autograd.backward(total(backbone(torch.randn(2, 3, 75, 98))))
    for key, parameter in backbone.adapter.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@torch.no_grad()
@pytest.mark.parametrize(("name", "patch"), CELLS)
def test_pictures_of_a_batch_do_not_mix(name: str, patch: int, adapted: Adapted, enliven: Enliven) -> None:
    backbone = enliven(adapted(name, patch)).double()
    images = torch.randn(3, 3, 50, 70, dtype=torch.float64)
    together = backbone(images)
    for i in range(3):
        for alone, each in zip(backbone(images[i : i + 1]), together, strict=True):
            torch.testing.assert_close(alone[0], each[i], atol=1e-9, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("name", "patch"), CELLS)
def test_every_precision_runs_and_agrees(name: str, patch: int, adapted: Adapted, enliven: Enliven) -> None:
    backbone = enliven(adapted(name, patch))
    images = torch.randn(2, 3, 75, 98)
    single = backbone(images)
    with torch.autocast("cpu", torch.bfloat16):
        half = backbone(images)
    double = backbone.double()(images.double())
    for full, low, high in zip(single, half, double, strict=True):
        assert high.dtype == torch.float64
        assert (full - high).norm() < 1e-5 * high.norm()
        assert (low - high).norm() < 0.05 * high.norm()


@pytest.mark.parametrize("name", NAMES)
def test_it_compiles_into_one_graph(name: str, adapted: Adapted, enliven: Enliven) -> None:
    backbone = enliven(adapted(name, 14, **FOR_TRACING.get(name, {})))
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    images = torch.randn(1, 3, 40, 50)
    for ours, expected in zip(compiled(images), backbone(images), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_an_exported_graph_takes_other_sizes(name: str, adapted: Adapted, enliven: Enliven) -> None:
    backbone = enliven(adapted(name, 14, **FOR_TRACING.get(name, {})))
    free = torch.export.Dim.DYNAMIC
    example = (torch.randn(1, 3, 75, 98),)
    exported = torch.export.export(backbone, example, dynamic_shapes=({2: free, 3: free},)).module()
    for size in ((75, 98), (64, 96), (101, 150)):
        images = torch.randn(1, 3, *size)
        for ours, expected in zip(exported(images), backbone(images), strict=True):
            assert (ours - expected).norm() < 1e-5 * expected.norm()


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"vit_adapter"}))
def test_each_time_of_a_clip_is_adapted_as_a_picture(name: str) -> None:
    levels = tuple(PYRAMID if name in NEEDS_A_PYRAMID else PLAIN)
    torch.manual_seed(0)
    of_pictures = ADAPTERS.create(name).build(levels).eval()
    torch.manual_seed(0)
    of_clips = ADAPTERS.create(name).build(tuple(Level(each.channels, each.stride, 2) for each in levels)).eval()
    assert of_clips.levels == tuple(Level(each.channels, each.stride, 2) for each in of_pictures.levels)
    clips = torch.randn(2, 3, 5, 75, 98)
    maps = [torch.randn(2, each.channels, 3, -(-75 // each.stride), -(-98 // each.stride)) for each in levels]
    found = of_clips(maps, clips)
    for time in range(3):
        alone = of_pictures([each[:, :, time] for each in maps], clips[:, :, 0])
        for each, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(each[:, :, time], expected, atol=1e-5, rtol=1e-5)


def test_what_works_between_blocks_refuses_clips() -> None:
    levels = tuple(Level(each.channels, each.stride, 2) for each in PLAIN)
    with pytest.raises(UserError, match=r"vit_adapter works between .* time axis.*`adapter: {name: simple_pyramid}`"):
        ADAPTERS.create("vit_adapter").build(levels)
    with pytest.raises(UserError, match="reassemble with readout project works between"):
        ADAPTERS.create("reassemble", {"readout": "project"}).build(levels)


def test_maps_of_several_strides_in_time_are_refused() -> None:
    levels = tuple(Level(each.channels, each.stride, i + 1) for i, each in enumerate(PYRAMID))
    with pytest.raises(UserError, match="maps of one stride in time"):
        ADAPTERS.create("fpn").build(levels)


@pytest.mark.parametrize("name", NAMES)
def test_levels_that_do_not_fit_are_refused_with_what_would(name: str) -> None:
    wrong, other = (PLAIN, "simple_pyramid") if name in NEEDS_A_PYRAMID else (PYRAMID, "fpn")
    with pytest.raises(UserError, match=rf"^{name} .*\[.*16.*`adapter: {{name: {other}}}`"):
        ADAPTERS.create(name).build(tuple(wrong))
    ADAPTERS.create(other).build(tuple(wrong))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"reassemble"}))
def test_a_hybrids_levels_are_sent_to_reassemble(name: str) -> None:
    levels = (Level(8, 4), Level(16, 8), Level(24, 16), Level(24, 16))
    with pytest.raises(UserError, match=rf"^{name} .*\[4, 8, 16, 16\].*`adapter: {{name: reassemble}}`"):
        ADAPTERS.create(name).build(levels)
    ADAPTERS.create("reassemble").build(levels)
