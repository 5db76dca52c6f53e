"""When a layer may leave the plain road: work in pieces, write in place, and bring its own backward pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as all_modules

from vitdense.ops.eager import runs_eagerly as runs_eagerly

SINGLE_OR_HALF = (torch.float32, torch.bfloat16, torch.float16)


def is_bare(kind: type[nn.Module], *modules: nn.Module) -> bool:
    """Whether they are of exactly this kind and nobody listens to their calls, as adapters, hooks and FSDP do."""
    if all_modules._has_any_global_hook():  # type: ignore[no-untyped-call]
        return False
    return not any(
        type(each) is not kind
        or each._forward_hooks
        or each._forward_pre_hooks
        or each._backward_hooks
        or each._backward_pre_hooks
        for each in modules
    )


@dataclass(frozen=True)
class Precision:
    """What autocast does to the plain layers: the type of their products, and norms in float32 on CUDA."""

    product: torch.dtype
    single_norms: bool = False

    def layer_norm(self, x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
        """x: (..., C) -> (..., C), normed, in the type of the products."""
        if self.single_norms:
            x, gain, shift = x.float(), gain.float(), shift.float()
        return F.layer_norm(x, gain.shape, gain, shift, eps).to(self.product)


def precision_of(tokens: Tensor, *parameters: Tensor) -> Precision | None:
    """What the plain layers would compute in; None where types are mixed, which is theirs to judge."""
    device = tokens.device.type
    if not torch.is_autocast_enabled(device):
        return Precision(tokens.dtype) if all(each.dtype == tokens.dtype for each in parameters) else None
    if any(each.dtype not in SINGLE_OR_HALF for each in (tokens, *parameters)):
        return None
    return Precision(torch.get_autocast_dtype(device), single_norms=device == "cuda")


def piece_rows(kind: torch.dtype, device: torch.device, *, backward: bool) -> int | None:
    """How many rows to work on at once: few enough for a CPU's cache, many enough for its products; None for all.

    On a CPU these were the fastest for 96 to 768 channels. Halves go back in one piece, since the sums over rows would
    be rounded in each.
    """
    if backward and kind.itemsize < 4:
        return None
    return (2**11 if backward else 2**10) if device.type == "cpu" else 2**15


def pieces(tokens: Tensor, *, backward: bool = False) -> Iterator[slice]:
    """About equal slices of (rows, C), each of about `piece_rows`."""
    rows, wanted = tokens.shape[0], piece_rows(tokens.dtype, tokens.device, backward=backward)
    count = 1 if wanted is None else max(1, round(rows / wanted))
    edges = [rows * i // count for i in range(count + 1)]
    return (slice(*pair) for pair in pairwise(edges))


def linear_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> None:
    """x: (rows, N) -> out: (rows, M), plus `residual` (rows, M) if there is one."""
    if residual is None:
        torch.addmm(bias, x, weight.t(), out=out)
    elif residual.dtype == x.dtype:
        torch.add(residual, bias, out=out).addmm_(x, weight.t())
    else:
        torch.add(residual, torch.addmm(bias, x, weight.t()), out=out)
