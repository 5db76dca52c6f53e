"""Gradients made piece by piece, for layers that bring their own backward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor


def leaf(tensor: Tensor, needed: bool) -> Tensor:
    """The same values as the start of a graph of their own."""
    return tensor.detach().requires_grad_(needed)


def pull(output: Tensor, inputs: Sequence[Tensor | None], gradient: Tensor) -> list[Tensor | None]:
    """What arrives at each of `inputs` from a gradient at `output`; None at those that need none."""
    wanted = [each for each in inputs if each is not None and each.requires_grad]
    found = iter(torch.autograd.grad(output, wanted, gradient, allow_unused=True) if wanted else ())
    return [next(found) if each is not None and each.requires_grad else None for each in inputs]


class Totals:
    """A sum over pieces for each parameter of a function; None for those that need no gradient."""

    def __init__(self, needed: Sequence[bool]) -> None:
        self.needed = needed
        self.sums: list[Tensor | None] = [None] * len(needed)

    def add(self, first: int, *parts: Tensor | None) -> None:
        """Add parts, which are taken over, to the sums from `first` on."""
        for index, part in enumerate(parts, start=first):
            total = self.sums[index]
            if total is None or part is None:
                self.sums[index] = total if part is None else part
            else:
                total.add_(part)

    def add_product(self, index: int, above: Tensor, x: Tensor) -> None:
        """above: (rows, M), x: (rows, N): add the gradient of a linear layer's weight, (M, N)."""
        total = self.sums[index]
        if self.needed[index]:
            self.sums[index] = above.t().mm(x) if total is None else total.addmm_(above.t(), x)

    def add_sum(self, index: int, above: Tensor) -> None:
        """above: (rows, M): add the gradient of a linear layer's bias, (M,), in no less than float32."""
        if self.needed[index]:
            self.add(index, above.sum(0, dtype=torch.promote_types(above.dtype, torch.float32)))
