"""Window attention without padded, rolled and cut copies of the map: windows are gathered from it, piece by piece.

What is kept for the backward pass is the map and its queries, keys and values; all else is made again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from vitdense.layers.eager import Precision, linear_into
from vitdense.layers.masked import masked_attention
from vitdense.layers.tiles import Piece
from vitdense.layers.totals import Totals, leaf, pull

Prepare = Callable[[Tensor, Tensor], Tensor]
Mix = Callable[[Tensor, Tensor, float], Tensor]


class Weights(NamedTuple):
    """What is learned: `bias` (heads, N, N) adds to the logits; with `factors` (heads, 1), q, k and v are prepared.

    `gain` and `shift` are those of a norm before qkv.
    """

    qkv: Tensor
    qkv_bias: Tensor | None
    proj: Tensor
    proj_bias: Tensor
    bias: Tensor
    factors: Tensor | None
    gain: Tensor | None
    shift: Tensor | None


@dataclass(frozen=True)
class Windows:
    """How to attend: pieces of a batch of maps, masks (kinds, N, N) for their windows, logits as products x scale.

    Where `residual`, the tokens are added to what comes out.
    """

    pieces: tuple[Piece, ...]
    masks: Tensor | None
    num_heads: int
    scale: float
    precision: Precision
    prepare: Prepare
    norm_eps: float
    residual: bool

    def norm(self, rows: Tensor, gain: Tensor | None, shift: Tensor | None) -> Tensor:
        """rows: (rows, C) -> (rows, C), in the type of the products."""
        if gain is None or shift is None:
            return rows.to(self.precision.product)
        return self.precision.layer_norm(rows, gain, shift, self.norm_eps)

    def kind_of_output(self, tokens: Tensor) -> torch.dtype:
        """The type of what comes out."""
        kind = self.precision.product
        return torch.promote_types(kind, tokens.dtype) if self.residual else kind


def gathered_attention(windows: Windows, tokens: Tensor, weights: Weights) -> Tensor:
    """tokens: (B * H * W, C) -> (B * H * W, C)."""
    inputs = (tokens, *weights)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in inputs):
        out: Tensor = _Gathered.apply(windows, *inputs)
        return out
    return _forward(windows, None, tokens, weights)


def _forward(windows: Windows, kept: Tensor | None, tokens: Tensor, weights: Weights) -> Tensor:
    """tokens: (rows, C) -> (rows, C), leaving queries, keys and values in `kept`, (rows, 3C), if it is given."""
    out = tokens.new_empty(tokens.shape, dtype=windows.kind_of_output(tokens))
    start = 0
    with torch.autocast(tokens.device.type, enabled=False):
        for piece in windows.pieces:
            stop = start + len(piece.cells)
            rows = tokens.index_select(0, piece.cells)
            normed = windows.norm(rows, weights.gain, weights.shift)
            qkv = _linear(normed, weights.qkv, weights.qkv_bias, None if kept is None else kept[start:stop])
            mixed = _attend(windows, piece, qkv, weights)
            result = torch.empty_like(rows, dtype=out.dtype)
            linear_into(result, mixed, weights.proj, weights.proj_bias, rows if windows.residual else None)
            out.index_copy_(0, piece.cells, result)
            start = stop
    return out


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)


def _attend(windows: Windows, piece: Piece, qkv: Tensor, weights: Weights, mix: Mix | None = None) -> Tensor:
    """qkv: (cells, 3C) of a piece -> (cells, C). Beyond the map, where zeros are padded, qkv is its bias."""
    area, heads = weights.bias.shape[-1], windows.num_heads
    dim = qkv.shape[-1] // (3 * heads)
    if piece.slots is not None:
        qkv = _Spread.apply(qkv, weights.qkv_bias, piece)
    qkv = qkv.view(-1, area, 3, heads, dim)
    if weights.factors is not None:
        qkv = windows.prepare(qkv, weights.factors)
    mixed = []
    for part, (kind, *_) in zip(_runs(qkv, piece), piece.runs, strict=True):
        bias = weights.bias if windows.masks is None or kind == 0 else weights.bias + windows.masks[kind]
        mixed.append((mix or _mix)(part, bias, windows.scale))
    together = mixed[0] if len(mixed) == 1 else torch.cat(mixed)
    return together if piece.slots is None else _Collect.apply(together, piece)


def _runs(qkv: Tensor, piece: Piece) -> Sequence[Tensor]:
    """qkv: (windows, ...) -> windows of one kind each; split, since slices would each be filled up on the way back."""
    return [qkv] if len(piece.runs) == 1 else torch.split(qkv, [last - first for _, first, last in piece.runs])


def _mix(qkv: Tensor, bias: Tensor, scale: float) -> Tensor:
    """qkv: (windows, N, 3, heads, d), bias: (heads, N, N) -> (windows * N, C)."""
    if not qkv.is_cuda and qkv.dtype.itemsize >= 4:
        out: Tensor = _Mix.apply(qkv, bias, scale)
        return out
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (windows, heads, N, d) each
    return masked_attention(q, k, v, bias[None], scale=scale).transpose(1, 2).flatten(2).flatten(0, 1)


def _mix_differentiably(qkv: Tensor, bias: Tensor, scale: float) -> Tensor:
    """As `_mix`, for second derivatives, which torch's kernels and ours lack."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (windows, heads, N, d) each
    mixed = (scale * q @ k.mT + bias).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2).flatten(0, 1)  # (windows * N, C)


class _Spread(torch.autograd.Function):
    """Rows to the places of their windows, `beyond` or zeros where there is none: no two ask for the same row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, beyond: Tensor | None, piece: Piece) -> Tensor:
        assert piece.slots is not None
        assert piece.empty is not None
        ctx.piece = piece
        places = rows.index_select(0, piece.slots)
        return places.index_fill_(0, piece.empty, 0.0) if beyond is None else places.index_put_((piece.empty,), beyond)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        of_beyond = above[ctx.piece.empty].sum(0) if ctx.needs_input_grad[1] else None
        return _Collect.apply(above, ctx.piece), of_beyond, None


class _Collect(torch.autograd.Function):
    """Places that hold a row, back in the order of rows: the inverse of `_Spread`, and its way back."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, piece: Piece) -> Tensor:
        assert piece.places is not None
        ctx.piece = piece
        return places.index_select(0, piece.places)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        return _Spread.apply(above, None, ctx.piece), None


class _Mix(torch.autograd.Function):
    """Softmax attention under a bias, whose gradient torch's fast CPU kernel doesn't give."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, scale: float) -> Tensor:
        count, area, _, heads, dim = qkv.shape
        q, k, v = packed = qkv.permute(2, 0, 3, 1, 4).reshape(3, count * heads, area, dim)
        logits = torch.bmm(q, k.mT).view(count, heads, area, area)
        shares = torch.add(bias, logits, alpha=scale, out=logits).softmax(-1)
        mixed = torch.bmm(shares.view(-1, area, area), v).view(count, heads, area, dim)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(packed, shares)
            ctx.scale = scale
        return mixed.transpose(1, 2).reshape(count * area, heads * dim)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        (q, k, v), shares = packed, _ = ctx.saved_tensors
        count, heads, area, _ = shares.shape
        above = above.view(count, area, heads, -1).transpose(1, 2).reshape(q.shape)
        below, shares = torch.empty_like(packed), shares.view(-1, area, area)
        torch.bmm(shares.mT, above, out=below[2])
        logits = torch._softmax_backward_data(torch.bmm(above, v.mT), shares, -1, shares.dtype)
        torch.baddbmm(below[0], logits, k, beta=0, alpha=ctx.scale, out=below[0])
        torch.baddbmm(below[1], logits.mT, q, beta=0, alpha=ctx.scale, out=below[1])
        of_qkv = below.view(3, count, heads, area, -1).permute(1, 3, 0, 2, 4)  # (windows, N, 3, heads, d)
        return of_qkv, logits.view(count, heads, area, area).sum(0), None


class _Gathered(torch.autograd.Function):
    """`_forward` with a way back."""

    @staticmethod
    def forward(ctx: Any, windows: Windows, tokens: Tensor, *inputs: Tensor | None) -> Tensor:
        weights = _named(inputs)
        kept = tokens.new_empty(tokens.shape[0], weights.qkv.shape[0], dtype=windows.precision.product)
        ctx.windows = windows
        ctx.save_for_backward(kept, tokens, *inputs)
        return _forward(windows, kept, tokens, weights)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        kept, tokens, *inputs = ctx.saved_tensors
        windows, needed = ctx.windows, ctx.needs_input_grad[1:]
        with torch.autocast(tokens.device.type, enabled=False):
            if torch.is_grad_enabled():
                return None, *_differentiable_backward(windows, needed, above, tokens, *inputs)
            return None, *_backward(windows, needed, above, kept, tokens, _named(inputs))


def _backward(
    windows: Windows, needed: Sequence[bool], above: Tensor, kept: Tensor, tokens: Tensor, weights: Weights
) -> tuple[Tensor | None, ...]:
    """above: (rows, C), what arrives at the output -> what arrives at tokens and weights, where it is needed."""
    totals, below, start = Totals(needed[1:]), torch.empty_like(tokens) if needed[0] else None, 0
    own = _named([None if w is None else leaf(w, wanted) for w, wanted in zip(weights, needed[1:], strict=True)])
    for piece in windows.pieces:
        stop = start + len(piece.cells)
        arrived = above.index_select(0, piece.cells)
        with torch.enable_grad():
            qkv, rows = leaf(kept[start:stop], True), leaf(tokens.index_select(0, piece.cells), needed[0])
            mixed = _attend(windows, piece, qkv, own)
            normed = windows.norm(rows, own.gain, own.shift)
        gradient = arrived.to(mixed.dtype)
        totals.add_product(2, gradient, mixed)
        totals.add_sum(3, gradient)
        within, *others = pull(mixed, [qkv, own.qkv_bias, own.bias, own.factors], gradient.mm(weights.proj))
        assert within is not None
        totals.add_product(0, within, normed)
        totals.add_sum(1, within)
        totals.add(1, others[0])
        totals.add(4, *others[1:])
        onward, *others = pull(normed, [rows, own.gain, own.shift], within.mm(weights.qkv))
        totals.add(6, *others)
        if below is not None and onward is not None:
            below.index_copy_(0, piece.cells, onward.add_(arrived) if windows.residual else onward)
        start = stop
    return below, *totals.sums


def _differentiable_backward(
    windows: Windows, needed: Sequence[bool], above: Tensor, tokens: Tensor, *inputs: Tensor | None
) -> list[Tensor | None]:
    """As `_backward`, out of operations that have a way back themselves."""
    weights, cells = _named(inputs), torch.cat([piece.cells for piece in windows.pieces])
    qkv = F.linear(windows.norm(tokens[cells], weights.gain, weights.shift), weights.qkv, weights.qkv_bias)
    pairs = zip(windows.pieces, torch.split(qkv, [len(piece.cells) for piece in windows.pieces]), strict=True)
    mixed = torch.cat([_attend(windows, piece, part, weights, _mix_differentiably) for piece, part in pairs])
    out = F.linear(mixed, weights.proj, weights.proj_bias)[cells.argsort()]
    wanted = [each for each, is_needed in zip((tokens, *inputs), needed, strict=True) if is_needed and each is not None]
    found = iter(torch.autograd.grad(out + tokens if windows.residual else out, wanted, above, create_graph=True))
    return [next(found) if is_needed else None for is_needed in needed]


def _named(inputs: Sequence[Tensor | None]) -> Weights:
    """The inputs of an autograd function by their names; which of them may be None, autograd doesn't tell."""
    return Weights(*cast(Any, inputs))
