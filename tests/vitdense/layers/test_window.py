"""Windows go out and come back, and the masks and bias tables say what the paper says."""

import itertools

import pytest
import torch

from vitdense.layers.tiles import partition
from vitdense.layers.window import MASKED, WindowAttention, relative_positions, shift_masks

CPU = torch.device("cpu")


def test_relative_positions_depend_on_the_offset_alone() -> None:
    index = relative_positions(3, CPU).view(9, 9)
    rows: dict[tuple[int, int], int] = {}
    for a, b in itertools.product(range(9), range(9)):
        offset = (a // 3 - b // 3, a % 3 - b % 3)
        assert rows.setdefault(offset, int(index[a, b])) == int(index[a, b])
        assert int(index[a, b]) == (offset[0] + 2) * 5 + offset[1] + 2
    assert sorted(rows.values()) == list(range(25))


@pytest.mark.parametrize("shift", [(1, 1), (2, 2), (0, 1), (1, 0)])
def test_masks_part_what_only_the_roll_brought_together(shift: tuple[int, int]) -> None:
    window, rows, columns = 4, 2, 3
    place = torch.arange(rows * window * columns * window).view(rows * window, columns * window)
    rolled = partition(place.roll((-shift[0], -shift[1]), (0, 1))[None, :, :, None].float(), window)[..., 0].long()
    masks = shift_masks(window, shift, CPU)
    for i, tokens in enumerate(rolled):
        kind = 2 * (i // columns == rows - 1) + (i % columns == columns - 1)
        row, column = tokens // (columns * window), tokens % (columns * window)
        far = ((row[:, None] - row).abs() >= window) | ((column[:, None] - column).abs() >= window)
        assert torch.equal(masks[kind] == MASKED, far)
        assert torch.equal(masks[kind] == 0.0, ~far)


def test_one_window_is_not_shifted_unless_asked() -> None:
    torch.manual_seed(0)
    maps = torch.randn(1, 4, 9, 8)
    plain, shifted, always = (
        WindowAttention(8, num_heads=2, window=4, shift=shift, always_shift=force).eval()
        for shift, force in ((0, False), (2, False), (2, True))
    )
    for other in (shifted, always):
        other.load_state_dict(plain.state_dict())
    assert torch.equal(plain(maps[:, :, :4]), shifted(maps[:, :, :4]))
    assert not torch.allclose(plain(maps[:, :, :4]), always(maps[:, :, :4]))
    assert not torch.allclose(plain(maps), shifted(maps))


def test_sizes_leave_no_trace() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(8, num_heads=2, window=4, shift=2)
    maps = torch.randn(1, 9, 10, 8)
    with torch.inference_mode():
        before = attention(maps)
        attention(torch.randn(1, 3, 2, 8))
        attention(torch.randn(2, 16, 5, 8))
        assert torch.equal(attention(maps), before)
    attention(maps).sum().backward()  # what was cached in inference mode serves training
    assert attention.relative_position_bias_table.grad is not None


def test_windows_attend_under_bfloat16() -> None:
    attention = WindowAttention(8, num_heads=2, window=4, shift=2).to(torch.bfloat16)
    assert attention(torch.randn(2, 9, 10, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention.float()(torch.randn(2, 9, 10, 8)).dtype == torch.bfloat16
