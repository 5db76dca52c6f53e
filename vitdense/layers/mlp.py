"""The two-layer perceptron of transformer blocks, plain and gated, and a lean way through its norm and itself.

ViT: https://arxiv.org/abs/2010.11929, gates: https://arxiv.org/abs/2002.05202.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitdense.layers.eager import Precision, is_bare, linear_into, pieces, precision_of, runs_eagerly
from vitdense.layers.totals import Totals, leaf, pull

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": _quick_gelu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class Between:
    """What an MLP does between its linear layers, as `normed_mlp` needs to know it; `norm` is a weight and a bias."""

    activate: Callable[[Tensor], Tensor]
    gated: bool = False
    norm: tuple[Tensor, ...] = ()
    norm_eps: float = 0.0

    def __call__(self, hidden: Tensor, norm: Sequence[Tensor], precision: Precision) -> Tensor:
        """hidden: (rows, width of fc1) -> (rows, width of fc2's input)."""
        if not self.gated:
            return self.activate(hidden)
        gate, value = hidden.chunk(2, dim=-1)
        out = self.activate(gate) * value
        return precision.layer_norm(out, norm[0], norm[1], self.norm_eps) if norm else out


class Mlp(nn.Module):
    """Two linear layers with an activation between them, on the last dimension."""

    def __init__(self, dim: int, *, hidden: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.activate = ACTIVATIONS[activation]

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (..., C) -> (..., C)."""
        out: Tensor = self.fc2(self.activate(self.fc1(tokens)))
        return out

    def between(self) -> Between | None:
        """For `normed_mlp`; None where this module and its parts must be called, since somebody replaced one."""
        bare = is_bare(Mlp, self) and is_bare(nn.Linear, self.fc1, self.fc2)
        return Between(self.activate) if bare else None


class GatedMlp(nn.Module):
    """SwiGLU: fc1 gives a gate and then a value, each `hidden` wide; their product is normed if asked, then fc2."""

    def __init__(
        self, dim: int, *, hidden: int, activation: Activation = "silu", norm_eps: float | None = None
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(hidden, eps=norm_eps)
        self.fc2 = nn.Linear(hidden, dim)
        self.activate = ACTIVATIONS[activation]
        self.norm_eps = norm_eps

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (..., C) -> (..., C)."""
        gate, value = self.fc1(tokens).chunk(2, dim=-1)
        out: Tensor = self.fc2(self.norm(self.activate(gate) * value))
        return out

    def between(self) -> Between | None:
        """For `normed_mlp`; None where this module and its parts must be called, since somebody replaced one."""
        if not (is_bare(GatedMlp, self) and is_bare(nn.Linear, self.fc1, self.fc2)):
            return None
        if self.norm_eps is None:
            return Between(self.activate, gated=True) if is_bare(nn.Identity, self.norm) else None
        if not is_bare(nn.LayerNorm, self.norm):
            return None
        return Between(self.activate, gated=True, norm=tuple(self.norm.parameters()), norm_eps=self.norm_eps)


def normed_mlp(tokens: Tensor, norm: nn.LayerNorm, mlp: Mlp | GatedMlp, *, residual: bool = False) -> Tensor:
    """tokens: (..., C) -> mlp(norm(tokens)), plus the tokens where `residual`, for about half of the memory.

    For the backward pass nothing is kept but the tokens and fc1's output: what comes of them elementwise is made again.
    Without a backward pass fc1's output never exists for all tokens at once. Whatever isn't plain takes the plain way.
    """
    between = mlp.between() if is_bare(nn.LayerNorm, norm) and norm.bias is not None else None
    if between is not None:
        affine = (norm.weight, norm.bias, *between.norm)
        linear = (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)
        precision = precision_of(tokens, *affine, *linear) if runs_eagerly(tokens, *affine, *linear) else None
        if precision is not None:
            steps = _Steps(precision, norm.eps, between, residual)
            parameters = (*(each.to(precision.product) for each in linear), *affine)
            return steps.run(tokens.reshape(-1, tokens.shape[-1]), *parameters).view(tokens.shape)
    out: Tensor = mlp(norm(tokens))
    return tokens + out if residual else out


@dataclass(frozen=True)
class _Steps:
    """All but the two products; `affine` is the norm's weight and bias, and then the gated MLP's."""

    precision: Precision
    norm_eps: float
    between: Between
    residual: bool

    def norm(self, tokens: Tensor, affine: Sequence[Tensor]) -> Tensor:
        return self.precision.layer_norm(tokens, affine[0], affine[1], self.norm_eps)

    def activate(self, hidden: Tensor, affine: Sequence[Tensor]) -> Tensor:
        return self.between(hidden, affine[2:], self.precision)

    def run(self, tokens: Tensor, *parameters: Tensor) -> Tensor:
        """tokens: (rows, C) -> (rows, C); parameters: weight1, bias1, weight2, bias2, and `affine`."""
        if torch.is_grad_enabled() and any(each.requires_grad for each in (tokens, *parameters)):
            out: Tensor = _NormedMlp.apply(self, tokens, *parameters)
            return out
        return _forward(self, None, tokens, parameters)


def _forward(steps: _Steps, hidden: Tensor | None, tokens: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """tokens: (rows, C) -> (rows, C), leaving fc1's output in `hidden`, (rows, width), if it is given."""
    (weight1, bias1, weight2, bias2), affine = parameters[:4], parameters[4:]
    kind = steps.precision.product
    out = torch.empty_like(tokens, dtype=torch.promote_types(kind, tokens.dtype) if steps.residual else kind)
    with torch.autocast(tokens.device.type, enabled=False):
        for rows in pieces(tokens, backward=hidden is not None):
            kept = None if hidden is None else hidden[rows]
            kept = torch.addmm(bias1, steps.norm(tokens[rows], affine), weight1.t(), out=kept)
            linear_into(
                out[rows], steps.activate(kept, affine), weight2, bias2, tokens[rows] if steps.residual else None
            )
    return out


class _NormedMlp(torch.autograd.Function):
    """`_forward` with a way back."""

    @staticmethod
    def forward(ctx: Any, steps: _Steps, tokens: Tensor, *parameters: Tensor) -> Tensor:
        hidden = tokens.new_empty(tokens.shape[0], parameters[0].shape[0], dtype=steps.precision.product)
        ctx.steps = steps
        ctx.save_for_backward(hidden, tokens, *parameters)
        return _forward(steps, hidden, tokens, parameters)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        hidden, tokens, *parameters = ctx.saved_tensors
        with torch.autocast(tokens.device.type, enabled=False):
            if torch.is_grad_enabled():
                return None, *_differentiable_backward(ctx.steps, ctx.needs_input_grad[1:], above, tokens, *parameters)
            return None, *_backward(ctx.steps, ctx.needs_input_grad[1:], above, hidden, tokens, *parameters)


def _backward(
    steps: _Steps, needed: Sequence[bool], above: Tensor, hidden: Tensor, tokens: Tensor, *parameters: Tensor
) -> tuple[Tensor | None, ...]:
    """above: (rows, C), what arrives at the output -> what arrives at tokens and parameters, where it is needed."""
    (weight1, _, weight2, _), totals = parameters[:4], Totals(needed[1:])
    affine = [leaf(each, wanted) for each, wanted in zip(parameters[4:], needed[5:], strict=True)]
    below = torch.empty_like(tokens) if needed[0] else None
    for rows in pieces(hidden, backward=True):
        with torch.enable_grad():
            kept, before = leaf(hidden[rows], True), leaf(tokens[rows], needed[0])
            activated, normed = steps.activate(kept, affine), steps.norm(before, affine)
        arrived = above[rows].to(activated.dtype)
        totals.add_product(2, arrived, activated)
        totals.add_sum(3, arrived)
        gradient, *of_affine = pull(activated, [kept, *affine[2:]], arrived.mm(weight2))
        assert gradient is not None
        del activated
        totals.add_product(0, gradient, normed)
        totals.add_sum(1, gradient)
        totals.add(6, *of_affine)
        gradient, *of_affine = pull(normed, [before, *affine[:2]], gradient.mm(weight1))
        totals.add(4, *of_affine)
        if below is not None and gradient is not None:
            below[rows] = gradient.add_(above[rows]) if steps.residual else gradient
    return below, *totals.sums


def _differentiable_backward(
    steps: _Steps, needed: Sequence[bool], above: Tensor, *inputs: Tensor
) -> list[Tensor | None]:
    """As `_backward`, out of torch's own operations, so that there is a way back from here as well."""
    tokens, weight1, bias1, weight2, bias2, *affine = inputs
    hidden = F.linear(steps.norm(tokens, affine), weight1, bias1)
    out = F.linear(steps.activate(hidden, affine), weight2, bias2)
    wanted = [each for each, is_needed in zip(inputs, needed, strict=True) if is_needed]
    found = iter(torch.autograd.grad(out + tokens if steps.residual else out, wanted, above, create_graph=True))
    return [next(found) if is_needed else None for is_needed in needed]
