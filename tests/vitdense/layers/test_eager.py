"""Where layers leave the plain road, and in which pieces."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitdense.layers.eager import is_bare, pieces, precision_of, runs_eagerly


@pytest.mark.parametrize("rows", [0, 1, 1535, 1536, 1537, 40_000])
def test_pieces_cover_all_rows_once_in_equal_parts(rows: int) -> None:
    slices = list(pieces(torch.empty(rows, 3)))
    assert [row for each in slices for row in range(each.start, each.stop)] == list(range(rows))
    lengths = [each.stop - each.start for each in slices]
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= 1536


def test_halves_go_back_in_one_piece() -> None:
    assert len(list(pieces(torch.empty(9000, 2, dtype=torch.bfloat16), backward=True))) == 1
    assert len(list(pieces(torch.empty(9000, 2), backward=True))) > 1


def test_others_that_look_on_are_noticed() -> None:
    x = torch.zeros(2)
    assert runs_eagerly(x, nn.Parameter(x))
    with FlopCounterMode(display=False):
        assert not runs_eagerly(x)
    assert not runs_eagerly(torch.zeros(2, device="meta"))
    assert not runs_eagerly(nn.Buffer(x).as_subclass(type("Odd", (torch.Tensor,), {})))
    assert not torch.func.vmap(lambda each: each if runs_eagerly(each) else each + 1)(x).eq(x).any()


def test_modules_that_somebody_changed_are_not_bare() -> None:
    linear = nn.Linear(2, 2)
    assert is_bare(nn.Linear, linear)
    assert not is_bare(nn.Linear, nn.LazyLinear(2), linear)
    nn.utils.parametrizations.weight_norm(linear)
    assert not is_bare(nn.Linear, linear)
    with torch.nn.modules.module.register_module_forward_hook(lambda *_: None):
        assert not is_bare(nn.Identity, nn.Identity())
    assert is_bare(nn.Identity, nn.Identity())


def test_mixed_types_are_left_to_torch() -> None:
    single, double, half = (torch.zeros(2, dtype=kind) for kind in (torch.float32, torch.float64, torch.bfloat16))
    assert precision_of(single, double) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = precision_of(single, half)
        assert found is not None
        assert found.product == torch.bfloat16
        assert precision_of(single, double) is None
