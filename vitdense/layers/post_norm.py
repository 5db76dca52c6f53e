"""Lean ways through the layers of DETR's kind, whose norms come after the sums: what can be made again isn't kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vitdense.layers.eager import Precision, is_bare, pieces, precision_of, runs_eagerly
from vitdense.layers.totals import Totals, leaf, pull


def normed_sum_with_mlp(tokens: Tensor, fc1: nn.Linear, fc2: nn.Linear, norm: nn.LayerNorm) -> Tensor:
    """tokens: (..., C) -> norm(tokens + fc2(relu(fc1(tokens)))), (..., C).

    What lies between the linear layers never exists for all tokens at once: the backward pass makes it again, which
    costs a fifth more products, and keeps the tokens and the sum. Whatever isn't plain takes the plain way.
    """
    if is_bare(nn.Linear, fc1, fc2) and is_bare(nn.LayerNorm, norm):
        parameters = (fc1.weight, fc1.bias, fc2.weight, fc2.bias, norm.weight, norm.bias)
        precision = precision_of(tokens, *parameters) if runs_eagerly(tokens, *parameters) else None
        if precision is not None:
            steps = _Steps(precision, norm.eps)
            linear = (each.to(precision.product) for each in parameters[:4])
            flat = tokens.reshape(-1, tokens.shape[-1])
            out: Tensor = _NormedSum.apply(steps, flat, *linear, *parameters[4:])
            return out.view(tokens.shape)
    plain: Tensor = norm(tokens + fc2(fc1(tokens).relu_()))
    return plain


@dataclass(frozen=True)
class _Steps:
    """All but the products."""

    precision: Precision
    eps: float

    def hidden(self, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.addmm(bias, tokens.to(self.precision.product), weight.t()).relu_()

    def norm(self, total: Tensor, affine: Sequence[Tensor]) -> Tensor:
        return self.precision.layer_norm(total, affine[0], affine[1], self.eps)


class _NormedSum(torch.autograd.Function):
    """(rows, C) -> (rows, C)."""

    @staticmethod
    def forward(ctx: Any, steps: _Steps, tokens: Tensor, *parameters: Tensor) -> Tensor:
        weight1, bias1, weight2, bias2, *affine = parameters
        total = torch.empty_like(tokens)
        for rows in pieces(tokens):
            change = torch.addmm(bias2, steps.hidden(tokens[rows], weight1, bias1), weight2.t())
            torch.add(tokens[rows], change, out=total[rows])
        ctx.steps = steps
        ctx.save_for_backward(tokens, total, *parameters)
        return steps.norm(total, affine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        steps, needed = ctx.steps, ctx.needs_input_grad
        tokens, total, *parameters = ctx.saved_tensors
        weight1, bias1, weight2, _ = parameters[:4]
        totals = Totals(needed[2:])
        affine = [leaf(each, wanted) for each, wanted in zip(parameters[4:], needed[6:], strict=True)]
        below = torch.empty_like(tokens)
        for rows in pieces(tokens, backward=True):
            with torch.enable_grad():
                before = leaf(total[rows], True)
                normed = steps.norm(before, affine)
            arrived, *of_affine = pull(normed, [before, *affine], above[rows])
            assert arrived is not None
            totals.add(4, *of_affine)
            given, product = tokens[rows].to(weight1.dtype), arrived.to(weight1.dtype)
            hidden = steps.hidden(given, weight1, bias1)
            totals.add_product(2, product, hidden)
            totals.add_sum(3, product)
            inner = product.mm(weight2).mul_(hidden > 0)
            del hidden
            totals.add_product(0, inner, given)
            totals.add_sum(1, inner)
            torch.add(arrived, inner.mm(weight1), out=below[rows])
        return None, below if needed[1] else None, *totals.sums


def linear_of_sum(tokens: Tensor, positions: Tensor, layers: Sequence[nn.Linear]) -> list[Tensor]:
    """tokens: (B, N, C), positions: (B or 1, N, C) -> each layer of their sum, (B, N, C_i).

    The backward pass makes the sum again. Whatever isn't plain takes the plain way.
    """
    parameters = [each for layer in layers for each in (layer.weight, layer.bias)]
    one_type = all(each.dtype == tokens.dtype for each in (positions, *parameters))
    casts = torch.is_autocast_enabled(tokens.device.type)
    if casts or not (one_type and is_bare(nn.Linear, *layers) and runs_eagerly(tokens, positions, *parameters)):
        total = tokens + positions
        return [layer(total) for layer in layers]
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    out: Tensor = _LinearOfSum.apply(tokens, positions, weight, bias)
    return list(torch.split(out, [layer.out_features for layer in layers], dim=-1))


class _LinearOfSum(torch.autograd.Function):
    """(B, N, C), (B or 1, N, C) -> (B, N, M)."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, positions: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, positions, weight)
        return F.linear(tokens + positions, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        tokens, positions, weight = ctx.saved_tensors
        flat = above.flatten(0, -2)
        of_weight = flat.t().mm((tokens + positions).flatten(0, -2)) if ctx.needs_input_grad[2] else None
        of_bias = flat.sum(0) if ctx.needs_input_grad[3] else None
        below = above.matmul(weight)
        of_positions = below.sum_to_size(positions.shape) if ctx.needs_input_grad[1] else None
        return below if ctx.needs_input_grad[0] else None, of_positions, of_weight, of_bias
