"""Contrastive losses and their gradients from strips of the logits, one of which is held at a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vitdense.ops.gathering import greatest_of_all

VALUES = {"cpu": 2**23, "cuda": 2**26}
"""Logits of a strip: many enough for products that keep a processor busy."""
PART = {"cpu": 2**20, "cuda": 2**26}
"""Logits of a part of a strip, which is gone through several times: few enough for a CPU's cache."""
ROWS = 128
"""A strip has no fewer."""
LINEAR = 40.0
"""Beyond this, log(1 + exp(x)) is x in double precision too."""
REACH = 0.6
"""Of a type's greatest exponent: exponentials of numbers no farther from 0 than this are summed without loss."""


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

    @property
    def height_of_parts(self) -> int:
        """Rows of a part of a strip."""
        return max(1, PART[self.rows.device.type] // max(len(self.columns), 1))

    def spare(self) -> Tensor:
        """Room for a part of a strip."""
        return self.rows.new_empty(min(self.height_of_parts, len(self.rows)), len(self.columns))

    def parts(self, strip: slice, logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """A strip's rows and logits in parts: views."""
        for part in torch.split(logits, self.height_of_parts):
            rows = slice(strip.start, strip.start + len(part))
            yield rows, part
            strip = slice(rows.stop, strip.stop)

    def bounds(self) -> Tensor:
        """(2,): the log-sum-exp of a row or of a column, over the rows of all processes, is not below the first, since
        the pair is among the logits; no logit is above the second, the product of lengths.
        """
        columns = self.columns[self.first : self.first + len(self.rows)]
        pairs = self.scale * torch.linalg.vecdot(self.rows, columns)
        first, second = (torch.linalg.vector_norm(each, dim=1) for each in (self.rows, self.columns))
        most = self.scale.abs() * torch.cat([first, second[:1]]).amax() * second.amax()
        return torch.stack([-greatest_of_all(-torch.cat([pairs, most[None]]).amin()), most])

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


Softmaxes = Iterator[tuple[slice, Tensor]]
"""The rows of each strip, and what takes the place of its logits, (rows, N)."""


def sum_exponentials(side: Side) -> tuple[Sums, Sums, Tensor]:
    """Sums over each row (n,) and, of these rows, over each column (N,), from one product; the logits of pairs (n,)."""
    shift = _shift_within(side.bounds(), side.rows.dtype)
    return _sums_by_greatest(side) if shift is None else _sums_of_shifted(side, shift)


def softmax_gradients(side: Side, by_row: Sums, by_column: Sums, wanted: Wanted) -> None:
    """Of the sum, over pairs, of the cross entropies by row and by column; `by_column` is of all rows there are."""
    rows, columns = by_row.logarithm(), by_column.logarithm()
    shift = _shift_within(torch.cat([rows, columns]), side.rows.dtype)
    softmaxes = _softmaxes_by_greatest(side, by_row, by_column)
    if shift is not None:
        softmaxes = _softmaxes_of_shifted(side, shift, (shift - rows).exp(), (shift - columns).exp())
    for strip, gradient in softmaxes:
        side.own(strip, gradient).sub_(2)
        wanted.put(side, strip, gradient)


def _shift_within(bounds: Tensor, dtype: torch.dtype) -> float | None:
    """What is taken from numbers between the least and the greatest of `bounds` before their exponentials are summed;
    None where no one number serves all.
    """
    least, most = torch.stack([bounds.amin(), bounds.amax()]).tolist()
    reach = REACH * math.log(torch.finfo(dtype).max)
    if max(-least, most) <= reach:
        return 0.0
    return (least + most) / 2 if most - least <= 2 * reach else None


def _sums_of_shifted(side: Side, shift: float) -> tuple[Sums, Sums, Tensor]:
    """One exponential of each logit serves its row and its column."""
    total, pairs = side.rows.new_empty(2, len(side.rows))
    below = side.rows.new_zeros(len(side.columns), dtype=torch.float64)
    for strip, logits in side.strips():
        pairs[strip] = side.own(strip, logits)
        for rows, part in side.parts(strip, logits):
            powers = _shifted(part, shift).exp_()
            torch.sum(powers, dim=1, out=total[rows])
            below += powers.sum(dim=0)
    above = side.rows.new_full((len(below),), shift)
    return Sums(torch.full_like(total, shift), total), Sums(above, below), pairs


def _sums_by_greatest(side: Side) -> tuple[Sums, Sums, Tensor]:
    """Two exponentials of each logit, below the greatest of its row and below that of its column."""
    greatest, total, pairs = side.rows.new_empty(3, len(side.rows))
    # Not -inf, which has no difference to itself.
    above = side.rows.new_full((len(side.columns),), torch.finfo(side.rows.dtype).min)
    below, spare = torch.zeros_like(above, dtype=torch.float64), side.spare()
    for strip, logits in side.strips():
        pairs[strip] = side.own(strip, logits)
        for rows, part in side.parts(strip, logits):
            torch.amax(part, dim=1, out=greatest[rows])
            shifted = torch.sub(part, greatest[rows, None], out=spare[: len(part)]).exp_()
            torch.sum(shifted, dim=1, out=total[rows])
            higher = torch.maximum(above, part.amax(dim=0))
            below.mul_((above - higher).exp_()).add_(part.sub_(higher).exp_().sum(dim=0))
            above = higher
    return Sums(greatest, total), Sums(above, below), pairs


def _softmaxes_of_shifted(side: Side, shift: float, by_row: Tensor, by_column: Tensor) -> Softmaxes:
    """Of each strip the softmaxes by row and by column, summed: shifted exponentials over their sums, whose reciprocals
    are `by_row` (n,) and `by_column` (N,) in float64.
    """
    spare = side.spare()
    first, second = by_row.to(spare.dtype)[:, None], by_column.to(spare.dtype)
    for strip, logits in side.strips():
        for rows, part in side.parts(strip, logits):
            factors = torch.add(first[rows], second, out=spare[: len(part)])
            _shifted(part, shift).exp_().mul_(factors)
        yield strip, logits


def _softmaxes_by_greatest(side: Side, by_row: Sums, by_column: Sums) -> Softmaxes:
    """The same of logits of any range."""
    spare = side.spare()
    first, second = by_row.total.reciprocal()[:, None], by_column.total.to(spare.dtype).reciprocal()
    for strip, logits in side.strips():
        for rows, part in side.parts(strip, logits):
            powers = torch.sub(part, by_row.greatest[rows, None], out=spare[: len(part)]).exp_()
            part.sub_(by_column.greatest).exp_().mul_(second).addcmul_(powers, first[rows])
        yield strip, logits


def _shifted(logits: Tensor, shift: float) -> Tensor:
    return logits.sub_(shift) if shift else logits


def walk_sigmoids(side: Side, bias: Tensor, wanted: Wanted | None) -> tuple[Tensor, Tensor]:
    """The sum of the losses of yes or no, and its gradient by the bias, () in float64; others go to `wanted`."""
    total, slope = torch.zeros(2, dtype=torch.float64, device=side.rows.device)
    spare = side.spare()
    for strip, logits in side.strips():
        logits.add_(bias)
        side.own(strip, logits).neg_()
        for _, part in side.parts(strip, logits):
            losses = torch._C._nn.softplus(part, 1.0, LINEAR, out=spare[: len(part)])  # type: ignore[call-arg]
            total += losses.sum(dim=1).sum(dtype=torch.float64)
            if wanted is not None:
                part.sigmoid_()
        if wanted is not None:
            side.own(strip, logits).neg_()
            slope += logits.sum(dim=1).sum(dtype=torch.float64)
            wanted.put(side, strip, logits)
    return total, slope
