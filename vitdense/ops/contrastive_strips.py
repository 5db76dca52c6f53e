"""Contrastive losses and their gradients from strips of the logits, one of which is held at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

VALUES = {"cpu": 2**20, "cuda": 2**26}
"""Logits of a strip: few enough for a CPU's cache, many enough for a GPU's products."""
ROWS = 128
"""A strip has no fewer: thinner products no longer keep a processor busy."""
LINEAR = 40.0
"""Beyond this, log(1 + exp(x)) is x in double precision too."""


@dataclass(frozen=True)
class Sums:
    """Sums of exponentials, one for each row or column: log-sum-exp = greatest + log(total)."""

    greatest: Tensor
    total: Tensor

    def part(self, rows: slice) -> "Sums":
        """Those of some rows."""
        return Sums(self.greatest[rows], self.total[rows])

    def logarithm(self) -> Tensor:
        """In float64, so that differences of logarithms keep their digits."""
        return self.greatest.double() + self.total.double().log()


@dataclass(frozen=True)
class Side:
    """Rows (n, D), each compared with every column (N, D) by scale * their product; row i belongs to column
    first + i. Columns that have the number of a row's own (`same`, (N,)) are left out, if it is given.
    """

    rows: Tensor
    columns: Tensor
    first: int
    scale: Tensor
    same: Tensor | None = None

    def strips(self) -> Iterator[tuple[slice, Tensor]]:
        """The rows of each strip, and its logits (rows, N), which are gone when the next one comes."""
        n, height = len(self.rows), self.height
        buffer = self.rows.new_empty(min(height, n), len(self.columns))
        for start in range(0, n, height):
            strip = slice(start, min(start + height, n))
            logits = torch.mm(self.rows[strip] * self.scale, self.columns.T, out=buffer[: strip.stop - start])
            yield strip, self._without_same(strip, logits)

    @property
    def height(self) -> int:
        """Rows of a strip."""
        return max(ROWS, VALUES[self.rows.device.type] // max(len(self.columns), 1))

    def own(self, strip: slice, logits: Tensor) -> Tensor:
        """The logits of pairs, (rows,): a view."""
        return logits[:, self.first + strip.start : self.first + strip.stop].diagonal()

    def _without_same(self, strip: slice, logits: Tensor) -> Tensor:
        if self.same is None:
            return logits
        pairs = self.own(strip, logits).clone()
        numbers = self.same[self.first + strip.start : self.first + strip.stop]
        logits.masked_fill_(numbers[:, None] == self.same, -torch.inf)
        self.own(strip, logits).copy_(pairs)
        return logits


@dataclass(frozen=True)
class Wanted:
    """Where gradients go: of the rows (n, D), which are written, and of the columns (N, D), which are added to; both
    of the sum of the losses, and before the factor `scale`."""

    rows: Tensor | None
    columns: Tensor | None

    def put(self, side: Side, strip: slice, gradient: Tensor) -> None:
        """gradient: of the logits of a strip."""
        if self.rows is not None:
            torch.mm(gradient, side.columns, out=self.rows[strip])
        if self.columns is not None:
            self.columns.addmm_(gradient.T, side.rows[strip])


def sum_exponentials(side: Side) -> tuple[Sums, Sums, Tensor]:
    """Sums over each row (n,) and, of these rows, over each column (N,), from one product; the logits of pairs (n,)."""
    n, number = len(side.rows), len(side.columns)
    greatest, total, pairs = side.rows.new_empty(3, n)
    # Not -inf, which has no difference to itself.
    above = side.rows.new_full((number,), torch.finfo(side.rows.dtype).min)
    below = above.new_zeros(number, dtype=torch.float64)
    spare = side.rows.new_empty(min(side.height, n), number)
    for strip, logits in side.strips():
        pairs[strip] = side.own(strip, logits)
        torch.amax(logits, dim=1, out=greatest[strip])
        shifted = torch.sub(logits, greatest[strip, None], out=spare[: len(logits)]).exp_()
        torch.sum(shifted, dim=1, out=total[strip])
        higher = torch.maximum(above, logits.amax(dim=0))
        below.mul_((above - higher).exp_()).add_(logits.sub_(higher).exp_().sum(dim=0))
        above = higher
    return Sums(greatest, total), Sums(above, below), pairs


def softmax_gradients(side: Side, by_row: Sums, by_column: Sums, wanted: Wanted) -> None:
    """Of the sum, over pairs, of the cross entropies by row and by column; `by_column` is of all rows there are."""
    spare = side.rows.new_empty(min(side.height, len(side.rows)), len(side.columns))
    inverse, inverse_by_column = by_row.total.reciprocal()[:, None], by_column.total.to(spare.dtype).reciprocal()
    for strip, logits in side.strips():
        gradient = torch.sub(logits, by_row.greatest[strip, None], out=spare[: len(logits)]).exp_()
        logits.sub_(by_column.greatest).exp_()
        gradient.mul_(inverse[strip]).addcmul_(logits, inverse_by_column)
        side.own(strip, gradient).sub_(2)
        wanted.put(side, strip, gradient)


def walk_sigmoids(side: Side, bias: Tensor, wanted: Wanted | None) -> tuple[Tensor, Tensor]:
    """The sum of the losses of yes or no, and its gradient by the bias, () in float64; others go to `wanted`."""
    total, slope = torch.zeros(2, dtype=torch.float64, device=side.rows.device)
    spare = side.rows.new_empty(min(side.height, len(side.rows)), len(side.columns))
    for strip, logits in side.strips():
        logits.add_(bias)
        side.own(strip, logits).neg_()
        losses = torch._C._nn.softplus(logits, 1.0, LINEAR, out=spare[: len(logits)])  # type: ignore[call-arg]
        total += losses.sum(dim=1).sum(dtype=torch.float64)
        if wanted is not None:
            gradient = logits.sigmoid_()
            side.own(strip, gradient).neg_()
            slope += gradient.sum(dim=1).sum(dtype=torch.float64)
            wanted.put(side, strip, gradient)
    return total, slope
