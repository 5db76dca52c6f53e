"""Windows gathered from the map give the values and gradients of a map that is padded, rolled and cut."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitdense.layers.cosine_window import CosineWindowAttention
from vitdense.layers.window import WindowAttention, WindowOrder, normed_window_attention


def made(shift: int, order: WindowOrder, *, qkv_bias: bool = True) -> tuple[nn.LayerNorm, WindowAttention]:
    torch.manual_seed(0)
    norm, attn = (
        nn.LayerNorm(12),
        WindowAttention(12, num_heads=3, window=4, shift=shift, order=order, qkv_bias=qkv_bias),
    )
    with torch.no_grad():
        for parameter in (*norm.parameters(), *attn.parameters()):
            parameter.normal_(std=0.5)
    return norm.double(), attn.double()


def cosine(shift: int, *, qkv_bias: bool = True) -> CosineWindowAttention:
    torch.manual_seed(0)
    attn = CosineWindowAttention(12, num_heads=3, window=4, shift=shift, static_shift=False, qkv_bias=qkv_bias)
    with torch.no_grad():
        for parameter in attn.parameters():
            parameter.normal_(std=0.5)
        attn.logit_scale[0] += 9.0  # beyond what it may reach
    return attn.double()


def plainly(maps: Tensor, norm: nn.LayerNorm, attn: WindowAttention) -> Tensor:
    return attn._cut(norm(maps))


@pytest.mark.parametrize("order", ["pad_roll", "roll_pad"])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(8, 12), (9, 14), (3, 6), (4, 4)])
@pytest.mark.parametrize("residual", [False, True])
def test_values_and_gradients_are_those_of_the_plain_way(
    residual: bool, size: tuple[int, int], shift: int, order: WindowOrder
) -> None:
    norm, attn = made(shift, order)
    maps = torch.randn(3, *size, 12, dtype=torch.float64, requires_grad=True)
    wanted = [maps, *norm.parameters(), *attn.parameters()]
    ours = normed_window_attention(maps, norm, attn, residual=residual)
    expected = plainly(maps, norm, attn) + (maps if residual else 0)
    torch.testing.assert_close(ours, expected, atol=1e-11, rtol=1e-11)
    above = torch.randn_like(ours)
    given = [torch.autograd.grad(out, wanted, above) for out in (ours, expected)]
    torch.testing.assert_close(given[0], given[1], atol=1e-10, rtol=1e-10)
    with torch.inference_mode():
        torch.testing.assert_close(normed_window_attention(maps, norm, attn, residual=residual), expected.detach())


def test_no_bias_of_queries_and_frozen_parts_are_served() -> None:
    norm, attn = made(2, "pad_roll", qkv_bias=False)
    attn.qkv.requires_grad_(False)
    maps = torch.randn(2, 9, 7, 12, dtype=torch.float64, requires_grad=True)
    wanted = [maps, attn.proj.weight, attn.relative_position_bias_table]
    ours = torch.autograd.grad(normed_window_attention(maps, norm, attn).square().sum(), wanted)
    torch.testing.assert_close(ours, torch.autograd.grad(plainly(maps, norm, attn).square().sum(), wanted))


def test_less_is_kept_for_the_backward_pass_than_in_the_plain_way() -> None:
    norm, attn = made(2, "pad_roll")
    maps = torch.randn(1, 32, 32, 12, dtype=torch.float64, requires_grad=True)
    kept = []
    for run in (normed_window_attention, plainly):
        storages: dict[int, int] = {}

        def note(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            run(maps, norm, attn)
        kept.append(sum(storages.values()))
    assert kept[0] < 0.6 * kept[1]


def test_a_replaced_part_is_called() -> None:
    """An adapter or a hook on qkv would be passed over by the lean way."""
    norm, attn = made(0, "pad_roll")
    calls: list[nn.Module] = []
    attn.qkv.register_forward_hook(lambda module, *_: calls.append(module))
    normed_window_attention(torch.randn(1, 8, 8, 12, dtype=torch.float64), norm, attn)
    assert calls == [attn.qkv]


def test_caches_made_in_inference_mode_serve_training() -> None:
    norm, attn = made(2, "pad_roll")
    maps = torch.randn(1, 23, 29, 12, dtype=torch.float64)
    with torch.inference_mode():
        normed_window_attention(maps, norm, attn)
    normed_window_attention(maps.requires_grad_(), norm, attn).sum().backward()  # type: ignore[no-untyped-call]
    assert attn.proj.weight.grad is not None


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(8, 12), (9, 14), (3, 6)])
def test_cosine_windows_are_gathered_too(size: tuple[int, int], shift: int, qkv_bias: bool) -> None:
    attn = cosine(shift, qkv_bias=qkv_bias)
    maps = torch.randn(2, *size, 12, dtype=torch.float64, requires_grad=True)
    wanted = [maps, *attn.parameters()]
    gathered, cut = attn.gathered(maps), attn._cut(maps)
    assert gathered is not None
    torch.testing.assert_close(gathered, cut, atol=1e-11, rtol=1e-11)
    above = torch.randn_like(cut)
    given = [torch.autograd.grad(out, wanted, above) for out in (gathered, cut)]
    torch.testing.assert_close(given[0], given[1], atol=1e-10, rtol=1e-10)


def test_many_pieces_and_kinds_of_windows_add_up() -> None:
    """A map of several thousand cells is worked on piece by piece, and whatever arrives is summed over the pieces."""
    norm, attn = made(2, "pad_roll")
    maps = torch.randn(2, 61, 58, 12, dtype=torch.float64, requires_grad=True)
    wanted = [maps, *norm.parameters(), *attn.parameters()]
    outs = normed_window_attention(maps, norm, attn), plainly(maps, norm, attn)
    torch.testing.assert_close(*outs, atol=1e-11, rtol=1e-11)
    above = torch.randn_like(outs[0])
    torch.testing.assert_close(*(torch.autograd.grad(out, wanted, above) for out in outs), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("residual", [False, True])
def test_second_derivatives_are_those_of_the_formula(residual: bool) -> None:
    norm, attn = made(2, "pad_roll")
    maps = torch.randn(1, 6, 9, 12, dtype=torch.float64, requires_grad=True)
    wanted = [maps, *norm.parameters(), *attn.parameters()]
    inputs = [each.detach().requires_grad_() for each in wanted]

    def run(*tensors: Tensor) -> Tensor:
        return normed_window_attention(maps, norm, attn, residual=residual)

    torch.manual_seed(1)
    first = torch.autograd.grad(run(*inputs).square().sum(), wanted, create_graph=True)
    directions = [torch.randn_like(each) for each in wanted]
    slope = torch.stack([(a * b).sum() for a, b in zip(first, directions, strict=True)]).sum()
    second = torch.autograd.grad(slope, wanted)
    step = 1e-5
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for each, direction in zip(wanted, directions, strict=True):
                each += sign * step * direction
        sides.append(torch.autograd.grad(run(*inputs).square().sum(), wanted))
        with torch.no_grad():
            for each, direction in zip(wanted, directions, strict=True):
                each -= sign * step * direction
    for ours, above, below in zip(second, *sides, strict=True):
        torch.testing.assert_close(ours, (above - below) / (2 * step), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("residual", [False, True])
def test_autocast_gives_the_plain_types_and_errors(residual: bool) -> None:
    norm, attn = made(2, "pad_roll")
    maps = torch.randn(2, 30, 37, 12, dtype=torch.float64, requires_grad=True)
    wanted = [maps, *norm.parameters(), *attn.parameters()]
    above = torch.randn(maps.shape, dtype=torch.float64)

    def results(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
        return [out.detach(), *torch.autograd.grad(out, inputs, above.to(out.dtype))]

    exact = results(plainly(maps, norm, attn) + (maps if residual else 0), wanted)
    norm.float(), attn.float()
    maps = maps.detach().float().requires_grad_()
    wanted = [maps, *norm.parameters(), *attn.parameters()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lean = normed_window_attention(maps, norm, attn, residual=residual)
        plain = plainly(maps, norm, attn) + (maps if residual else 0)
    for ours, theirs, true in zip(results(lean, wanted), results(plain, wanted), exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert float((ours - true).norm()) <= 1.2 * float((theirs - true).norm())


def test_windows_can_be_gathered_again_in_the_backward_pass() -> None:
    norm, attn = made(2, "pad_roll")
    maps = torch.randn(1, 9, 14, 12, dtype=torch.float64, requires_grad=True)
    wanted = [maps, *norm.parameters(), *attn.parameters()]
    again = checkpoint(normed_window_attention, maps, norm, attn, use_reentrant=False)
    once = normed_window_attention(maps, norm, attn)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), wanted) for out in (again, once)))


def test_transformed_the_plain_way_is_taken() -> None:
    norm, attn = made(2, "pad_roll")
    maps = torch.randn(2, 1, 9, 6, 12, dtype=torch.float64)
    mapped = torch.func.vmap(lambda each: normed_window_attention(each, norm, attn))(maps)
    torch.testing.assert_close(mapped, torch.stack([normed_window_attention(each, norm, attn) for each in maps]))
