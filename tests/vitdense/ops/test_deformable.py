"""Deformable sampling: equal to transformers', to a sum by hand, in every precision, compiled and exported."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitdense.ops.deformable import deformable_attention

SHAPES = ((5, 7), (3, 4), (1, 2))


def inputs(dtype: torch.dtype = torch.float32, *, queries: int = 6, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    cells = sum(height * width for height, width in SHAPES)
    values = torch.randn(batch, cells, 2, 4, generator=generator, dtype=dtype)
    # Also well beyond the edges, where nothing is to be read.
    locations = torch.rand(batch, queries, 2, 3, 4, 2, generator=generator, dtype=dtype) * 1.6 - 0.3
    weights = torch.randn(batch, queries, 2, 3, 4, generator=generator, dtype=dtype)
    return values, locations, weights


def theirs(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    shapes = torch.tensor(SHAPES)
    sampled: Tensor = MultiScaleDeformableAttention()(values, shapes, SHAPES, None, locations, weights, 64)
    return sampled


def gradients(result: Tensor, leaves: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    towards = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=result.dtype)
    return torch.autograd.grad(result, leaves, towards)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_values_and_gradients_equal_transformers(dtype: torch.dtype, tolerance: float) -> None:
    leaves = tuple(each.requires_grad_() for each in inputs(dtype))
    values, locations, weights = leaves
    ours, reference = deformable_attention(values, SHAPES, locations, weights), theirs(values, locations, weights)
    torch.testing.assert_close(ours, reference, atol=tolerance, rtol=0)
    for own, other in zip(gradients(ours, leaves), gradients(reference, leaves), strict=True):
        torch.testing.assert_close(own, other, atol=tolerance, rtol=tolerance)


def test_strips_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = tuple(each.requires_grad_() for each in inputs(torch.float64, queries=23))
    whole = deformable_attention(leaves[0], SHAPES, *leaves[1:])
    wanted = (whole, *gradients(whole, leaves))
    monkeypatch.setattr("vitdense.ops.deformable_strips._POINTS", 100)
    monkeypatch.setattr("vitdense.ops.deformable_strips._ROWS", 130)
    pieces = deformable_attention(leaves[0], SHAPES, *leaves[1:])
    torch.testing.assert_close((pieces, *gradients(pieces, leaves)), wanted, atol=1e-12, rtol=0)


def test_a_place_that_is_no_number_reads_nothing_of_others() -> None:
    """A model that has diverged says so by its values, and reads no memory that isn't its own."""
    values, locations, weights = inputs()
    expected = deformable_attention(values, SHAPES, locations, weights)
    locations[0, 1, 0, 2, 1] = torch.nan
    locations[1, 3, 1, 0, 0, 0] = torch.inf
    leaf = locations.requires_grad_()
    found = deformable_attention(values, SHAPES, leaf, weights)
    assert found[0, 1, :4].isnan().all()
    assert found[0, 1, 4:].isfinite().all()
    assert torch.equal(found[0, 2:], expected[0, 2:])
    assert found[1].isfinite().all()
    assert torch.autograd.grad(found.sum(), leaf)[0].shape == locations.shape


def test_rows_beyond_what_single_precision_counts_are_read_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = tuple(each.requires_grad_() for each in inputs())
    expected = deformable_attention(leaves[0], SHAPES, *leaves[1:])
    monkeypatch.setattr("vitdense.ops.deformable.Layout.fits", lambda *_: False)
    found = deformable_attention(leaves[0], SHAPES, *leaves[1:])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for own, other in zip(gradients(found, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


def test_gradients_are_the_differences() -> None:
    leaves = tuple(each.requires_grad_() for each in inputs(torch.float64, queries=2, batch=1))
    assert torch.autograd.gradcheck(lambda v, at, w: deformable_attention(v, SHAPES, at, w), leaves)


def test_a_point_on_a_cell_reads_that_cell_and_beyond_the_grid_nothing() -> None:
    values = torch.arange(1.0, 7.0).view(1, 6, 1, 1)  # one grid of 2 x 3
    places = torch.tensor([[2.5 / 3, 0.25], [0.5, 0.75], [1.0 / 3, 0.5], [1.5, 0.5], [-1e30, 0.5]])
    locations = places.view(1, 5, 1, 1, 1, 2)
    read = deformable_attention(values, [(2, 3)], locations, torch.ones(1, 5, 1, 1, 1))
    torch.testing.assert_close(read[0, :, 0], torch.tensor([3.0, 5.0, (1 + 2 + 4 + 5) / 4, 0.0, 0.0]))


def test_half_precision_is_summed_in_full() -> None:
    values, locations, weights = inputs()
    half = deformable_attention(values.bfloat16(), SHAPES, locations, weights)
    exact = deformable_attention(values.bfloat16().float(), SHAPES, locations, weights)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, exact.bfloat16())


class Sampling(nn.Module):
    def forward(self, grids: list[Tensor], locations: Tensor, weights: Tensor) -> Tensor:
        shapes = [(grid.shape[1], grid.shape[2]) for grid in grids]
        return deformable_attention(
            torch.cat([each.flatten(1, 2) for each in grids], dim=1), shapes, locations, weights
        )


def as_grids(values: Tensor) -> list[Tensor]:
    parts = torch.split(values, [height * width for height, width in SHAPES], dim=1)
    return [torch.unflatten(part, 1, shape) for part, shape in zip(parts, SHAPES, strict=True)]


def test_it_compiles_into_one_graph() -> None:
    values, locations, weights = inputs()
    compiled = torch.compile(Sampling(), fullgraph=True, backend="aot_eager")
    leaves = (values.requires_grad_(), locations.requires_grad_(), weights.requires_grad_())
    ours = compiled(as_grids(values), locations, weights)
    expected = deformable_attention(values, SHAPES, locations, weights)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    for own, other in zip(gradients(ours, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_exported_graph_takes_other_sizes() -> None:
    def example(scale: int, queries: int) -> tuple[list[Tensor], Tensor, Tensor]:
        grids = [torch.randn(1, height * scale + 2, width * scale + 3, 2, 4) for height, width in SHAPES]
        return grids, torch.rand(1, queries, 2, 3, 4, 2) * 1.6 - 0.3, torch.randn(1, queries, 2, 3, 4)

    free = torch.export.Dim.DYNAMIC
    sizes: Any = ([{1: free, 2: free}] * 3, {1: free}, {1: free})
    exported = torch.export.export(Sampling(), example(1, 5), dynamic_shapes=sizes).module()
    for scale, queries in ((1, 5), (2, 9), (3, 4)):
        arguments = example(scale, queries)
        torch.testing.assert_close(exported(*arguments), Sampling()(*arguments), atol=1e-5, rtol=0)
