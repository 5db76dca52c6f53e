"""Which windows a raster is read off in, and in which order."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from vitdense.errors import UserError
from vitdense.inference import InferenceConfig, window_starts

MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """Windows of one size at each of `tops` x `lefts`, as of a picture that fits in memory, walked strip by strip.

    A strip is a range of columns, from its first to before its end; windows that reach over its edge are looked at in
    both strips. Rows of windows, one after the other, finish the bands of a strip: `tops[i]` to before `tops[i + 1]`.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    strips: tuple[tuple[int, int], ...]

    @property
    def bands(self) -> int:
        """How many there are, in all strips."""
        return len(self.strips) * len(self.tops)

    def rows(self, row: int) -> tuple[int, int]:
        """The rows of pixels, from and before, that no window after this row of them reaches."""
        return self.tops[row], self.tops[row + 1] if row + 1 < len(self.tops) else self.size[0]

    def first_reaching(self, row: int) -> int:
        """The first row of windows that reaches into the band of `row`."""
        return next(index for index, top in enumerate(self.tops) if top + self.window[0] > self.tops[row])

    def across(self, strip: int) -> list[int]:
        """The left edges of the windows that reach into a strip."""
        first, end = self.strips[strip]
        return [left for left in self.lefts if left < end and left + self.window[1] > first]

    def steps(self, finished: int) -> Iterator[tuple[int, int, int]]:
        """After `finished` bands, for each strip that is left: its number, the row of windows to begin with, which may
        have been looked at before, and the first row whose band is not finished."""
        begun, row = divmod(finished, len(self.tops))
        for strip in range(begun, len(self.strips)):
            first = row if strip == begun else 0
            yield strip, self.first_reaching(first), first

    def windows(self, finished: int = 0) -> int:
        """How many are looked at after so many bands."""
        return sum(len(self.across(strip)) * (len(self.tops) - begin) for strip, begin, _ in self.steps(finished))


def make_plan(size: tuple[int, int], config: InferenceConfig, planes: int, memory_mib: int) -> Plan:
    """As many strips as it takes for sums of `planes` numbers a pixel, a window high, to fit in the memory; UserError
    where they can't."""
    (tall, wide), stride = config.window_and_stride()
    window = (min(tall, size[0]), min(wide, size[1]))
    a_column = window[0] * (4 * (planes + 1) + 1)  # the sums, what they were weighted with, and what is missing
    widest = memory_mib * MIB // a_column
    if widest < window[1]:
        least = -(-window[1] * a_column // MIB)
        raise UserError(
            f"memory_mib: {memory_mib} doesn't hold the sums of one window of {window[0]} x {window[1]} pixels and "
            f"{planes} classes: give {least} or more, or smaller windows"
        )
    count = -(-size[1] // widest)
    edges = [size[1] * index // count for index in range(count + 1)]
    return Plan(
        size,
        window,
        tuple(window_starts(size[0], window[0], stride[0])),
        tuple(window_starts(size[1], window[1], stride[1])),
        tuple(pairwise(edges)),
    )
