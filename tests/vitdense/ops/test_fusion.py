"""The fusion convolution equals torch's resize, join and convolve, wherever and however it is taken."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vitdense.ops import fusion, fusion_level
from vitdense.ops.fusion import conv_of_resized

Sizes = Sequence[tuple[int, int]]
PYRAMID: Sizes = ((63, 84), (32, 42), (16, 21), (8, 11))
POOLED: Sizes = ((13, 17), (12, 17), (6, 6), (3, 3), (2, 2), (1, 1))
# One map of a multiple, none that is as large as the outcome; and one that is larger.
TAIL: Sizes = ((11, 17),)
MIXED: Sizes = ((40, 30), (5, 4), (13, 9))
RESULTS: dict[Sizes, tuple[int, int]] = {PYRAMID: (63, 84), POOLED: (13, 17), TAIL: (77, 119), MIXED: (25, 19)}


def plain(
    maps: list[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    size: tuple[int, int],
    align_corners: bool = False,
    padding: int = 1,
) -> Tensor:
    resized = [F.interpolate(each, size=size, mode="bilinear", align_corners=align_corners) for each in maps]
    return F.conv2d(torch.cat(resized, dim=1), weight, bias, padding=padding)


def inputs(
    sizes: Sizes, *, channels: int = 24, out: int = 10, kernel: int = 3, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Weight, bias, maps, all of which want gradients."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(out, channels * len(sizes), kernel, kernel), (out,), *((2, channels, *size) for size in sizes)]
    leaves = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    leaves[0] /= leaves[0][0].numel() ** 0.5
    return [each.requires_grad_() for each in leaves]


def run(conv: Any, leaves: list[Tensor], **options: Any) -> list[Tensor]:
    """The outcome and every gradient."""
    weight, bias, *maps = leaves
    out = conv(maps, weight, bias, **options)
    towards = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    wanted = [each for each in leaves if each.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, towards)]


def takes_the_shortcut(out: Tensor) -> bool:
    return out.grad_fn is not None and out.grad_fn.name() == "_ConvOfResizedBackward"


@pytest.mark.parametrize("sizes", RESULTS, ids=["pyramid", "pooled", "tail", "mixed"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (1, 0), (3, 0)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_values_and_gradients_equal_torchs(
    sizes: Sizes, align_corners: bool, kernel: int, padding: int, dtype: torch.dtype, bound: float
) -> None:
    leaves = inputs(sizes, kernel=kernel, dtype=dtype)
    options: dict[str, Any] = {"size": RESULTS[sizes], "align_corners": align_corners, "padding": padding}
    weight, bias, *maps = leaves
    assert takes_the_shortcut(conv_of_resized(maps, weight, bias, **options))
    for ours, theirs in zip(run(conv_of_resized, leaves, **options), run(plain, leaves, **options), strict=True):
        assert float((ours - theirs).abs().max()) <= bound * float(theirs.abs().max())
    with torch.inference_mode():
        found, expected = conv_of_resized(maps, weight, bias, **options), plain(maps, weight, bias, **options)
    torch.testing.assert_close(found, expected, atol=bound, rtol=bound)


def test_many_strips_chunks_and_blocks_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = inputs(PYRAMID)
    expected = run(plain, leaves, size=PYRAMID[0])
    monkeypatch.setattr(fusion, "STRIP", 24 * 84 * 7)
    monkeypatch.setitem(fusion_level.BUDGET, "cpu", 9 * 8 * 11 * 3)
    monkeypatch.setattr(fusion_level, "BLOCK", 5)
    for ours, theirs in zip(run(conv_of_resized, leaves, size=PYRAMID[0]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


def test_gradients_are_the_differences() -> None:
    sizes = ((8, 6), (2, 2), (7, 6))
    weight, bias, *maps = inputs(sizes, channels=4, out=2)
    assert takes_the_shortcut(conv_of_resized(maps, weight, bias, size=(8, 6)))
    # In double precision and on few outputs: every gradient is checked along a random direction.
    assert torch.autograd.gradcheck(
        lambda weight, bias, *maps: conv_of_resized(maps, weight, bias, size=(8, 6)),
        (weight, bias, *maps),
        fast_mode=True,
    )


def test_second_derivatives_are_refused() -> None:
    weight, bias, *maps = inputs(PYRAMID)
    out = conv_of_resized(maps, weight, bias, size=PYRAMID[0])
    (first,) = torch.autograd.grad(out.square().sum(), maps[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()  # type: ignore[no-untyped-call]


def test_maps_and_weight_are_kept_and_nothing_else() -> None:
    weight, bias, *maps = inputs(PYRAMID)
    kept: list[int] = []

    def note(saved: Tensor) -> Tensor:
        kept.append(saved.data_ptr())
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        conv_of_resized(maps, weight, bias, size=PYRAMID[0])
    assert set(kept) <= {each.data_ptr() for each in (weight, bias, *maps)}


@pytest.mark.parametrize("frozen", [[0], [1], [2, 5], [2, 3, 4, 5], [0, 1, 2]])
def test_what_is_frozen_gets_no_gradient(frozen: list[int]) -> None:
    leaves = inputs(PYRAMID)
    for index in frozen:
        leaves[index].requires_grad_(False)
    torch.testing.assert_close(
        run(conv_of_resized, leaves, size=PYRAMID[0]), run(plain, leaves, size=PYRAMID[0]), atol=1e-9, rtol=1e-9
    )


def test_channels_last_maps_give_the_same() -> None:
    leaves = inputs(PYRAMID)
    expected = run(plain, leaves, size=PYRAMID[0])
    leaves[2:] = [each.detach().to(memory_format=torch.channels_last).requires_grad_() for each in leaves[2:]]
    torch.testing.assert_close(run(conv_of_resized, leaves, size=PYRAMID[0]), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_halves_stray_no_further_than_torchs(half: torch.dtype, autocast: bool) -> None:
    exact = run(plain, inputs(PYRAMID), size=PYRAMID[0])
    leaves = [each.detach().to(torch.float32 if autocast else half).requires_grad_() for each in inputs(PYRAMID)]
    with torch.autocast("cpu", half, enabled=autocast):
        ours, theirs = (run(conv, leaves, size=PYRAMID[0]) for conv in (conv_of_resized, plain))
    for own, other, true in zip(ours, theirs, exact, strict=True):
        assert own.dtype == other.dtype
        # The products are rounded once more, before they are resized; 2 is what the benchmark allows.
        assert float((own - true).norm()) <= 1.5 * float((other - true).norm())


def test_inference_leaves_nothing_behind_that_training_trips_over() -> None:
    leaves = inputs(PYRAMID)
    weight, bias, *maps = leaves
    with torch.inference_mode():
        conv_of_resized(maps, weight, bias, size=PYRAMID[0])
    assert all(each.isfinite().all() for each in run(conv_of_resized, leaves, size=PYRAMID[0]))


def test_two_runs_are_equal_to_the_bit() -> None:
    leaves = inputs(MIXED, dtype=torch.float32)
    first, second = (run(conv_of_resized, leaves, size=RESULTS[MIXED]) for _ in range(2))
    assert all(torch.equal(*both) for both in zip(first, second, strict=True))


def test_can_be_run_again_in_backward() -> None:
    def again(maps: list[Tensor], weight: Tensor, bias: Tensor, **options: Any) -> Any:
        return checkpoint(conv_of_resized, maps, weight, bias, use_reentrant=False, **options)

    leaves = inputs(PYRAMID)
    torch.testing.assert_close(run(again, leaves, size=PYRAMID[0]), run(conv_of_resized, leaves, size=PYRAMID[0]))


def test_maps_that_are_nearly_as_large_are_resized_first() -> None:
    weight, bias, *maps = inputs(((12, 12), (10, 10)))
    out = conv_of_resized(maps, weight, bias, size=(12, 12))
    assert not takes_the_shortcut(out)
    torch.testing.assert_close(out, plain(maps, weight, bias, size=(12, 12)), atol=1e-12, rtol=0)


class Fusing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(24, 3, 3)

    def forward(self, maps: list[Tensor]) -> Tensor:
        size = (maps[0].shape[2], maps[0].shape[3])
        return conv_of_resized(maps, self.conv.weight, self.conv.bias, size=size)


def test_compiled_and_exported_the_plain_way_is_taken() -> None:
    torch.manual_seed(0)
    module = Fusing()
    maps = [torch.randn(2, 8, *size) for size in ((20, 24), (10, 12), (5, 6))]
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(maps), module(maps), atol=1e-5, rtol=1e-5)
    free = [{2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}] * 3
    program = torch.export.export(module, (maps,), dynamic_shapes=(free,))
    larger = [torch.randn(2, 8, *size) for size in ((63, 84), (32, 42), (16, 21))]
    torch.testing.assert_close(program.module()(larger), module(larger), atol=1e-5, rtol=1e-5)


def test_transformed_the_plain_way_is_taken() -> None:
    module, maps = Fusing(), [torch.randn(2, 8, *size) for size in ((20, 24), (10, 12), (5, 6))]
    rows = torch.func.vmap(lambda first, *others: module([first[None], *(each[None] for each in others)])[0])(*maps)
    torch.testing.assert_close(rows, module(maps), atol=1e-5, rtol=1e-5)
