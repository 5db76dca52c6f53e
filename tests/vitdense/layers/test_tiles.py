"""Windows go out and come back, as copies of a map and as lists of its cells."""

import pytest
import torch

from vitdense.layers.tiles import Tiling, merge, partition, pieces_of

CPU = torch.device("cpu")
SIZES = [(8, 12), (9, 14), (3, 6), (4, 4), (31, 29)]


def test_merge_undoes_partition() -> None:
    maps = torch.randn(2, 6, 9, 5)
    windows = partition(maps, 3)
    assert windows.shape == (2 * 2 * 3, 9, 5)
    assert torch.equal(windows[1].view(3, 3, 5), maps[0, :3, 3:6])
    assert torch.equal(merge(windows, 3, 6, 9), maps)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [(0, 0), (2, 2), (0, 1)])
@pytest.mark.parametrize("roll_first", [False, True])
def test_what_is_laid_out_can_be_taken_back(roll_first: bool, shift: tuple[int, int], size: tuple[int, int]) -> None:
    maps = torch.randn(2, *size, 3)
    tiling = Tiling(4, shift, roll_first)
    assert torch.equal(tiling.take_back(tiling.lay_out(maps), *size), maps)


@pytest.mark.parametrize("rows", [None, 1, 64, 200])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [(0, 0), (2, 2)])
@pytest.mark.parametrize("roll_first", [False, True])
def test_pieces_hold_every_window_once(
    roll_first: bool, shift: tuple[int, int], size: tuple[int, int], rows: int | None
) -> None:
    """The cells at the places of each window, with its kind, are those that cutting the map gives."""
    tiling, batch = Tiling(4, shift, roll_first), 3
    numbers = torch.arange(1, batch * size[0] * size[1] + 1).view(batch, *size, 1)
    laid_out = tiling.lay_out(numbers)
    kinds = tiling.kinds(laid_out.shape[1], laid_out.shape[2], CPU).repeat(batch).tolist()
    cut = [tuple(each) for each in partition(laid_out, 4)[..., 0].tolist()]
    expected = sorted(zip(cut, kinds if shift != (0, 0) else [0] * len(cut), strict=True))
    found = []
    for piece in pieces_of(tiling, batch, *size, rows, CPU):
        places = piece.cells + 1
        if piece.slots is not None:
            assert piece.places is not None
            assert piece.empty is not None
            assert torch.equal(piece.slots[piece.places], torch.arange(len(piece.cells)))
            places = places[piece.slots].index_fill(0, piece.empty, 0)
        windows = places.view(-1, 16).tolist()
        assert [first for _, first, _ in piece.runs] == [0, *(last for *_, last in piece.runs)][:-1]
        assert piece.runs[-1][2] == len(windows)
        found += [(tuple(windows[i]), kind) for kind, first, last in piece.runs for i in range(first, last)]
    assert sorted(found) == expected


def test_windows_of_a_kind_stand_together_over_the_batch() -> None:
    (piece,) = pieces_of(Tiling(4, (2, 2)), 5, 30, 30, None, CPU)
    assert [kind for kind, *_ in piece.runs] == [0, 1, 2, 3]
