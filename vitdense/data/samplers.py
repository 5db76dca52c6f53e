"""Which samples are read when: streams of (epoch, index) that depend on the seed and the step alone, on no state."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from vitdense.errors import UserError

Key = tuple[int, int]
Order = Callable[[int, int], Sequence[int] | None]
"""(seed, epoch) -> the indices of an epoch in the order in which they are read, None for any."""


class StepSampler(Sampler[list[Key]]):
    """Micro-batches of training: step s takes positions [s * batch_size, (s + 1) * batch_size) of an endless stream
    of shuffled epochs, which follow one another without dropping or repeating a sample.

    Each step gives `accumulate` lists, of batch_size / (accumulate * world_size) keys; what all ranks read together
    is the same for every world size. `num_steps` counts from `start_step`. `order` is the data's own shuffling.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int,
        num_steps: int,
        start_step: int = 0,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        order: Order | None = None,
    ) -> None:
        if length < 1:
            raise UserError("the training split has no samples")
        if batch_size % (accumulate * world_size):
            raise UserError(
                f"data.batch_size = {batch_size} can't be divided by engine.accumulate x processes"
                f" = {accumulate} x {world_size} = {accumulate * world_size}; it counts the pictures of one step"
                " over all processes"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start_step, self.num_steps = start_step, num_steps
        self.accumulate, self.rank, self.world_size = accumulate, rank, world_size
        self._given = order
        self._orders: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return self.num_steps * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        micro = self.batch_size // self.accumulate
        share = micro // self.world_size
        for step in range(self.start_step, self.start_step + self.num_steps):
            for part in range(self.accumulate):
                first = step * self.batch_size + part * micro + self.rank * share
                yield [self.key(position) for position in range(first, first + share)]

    def key(self, position: int) -> Key:
        """(epoch, index) at a position of the stream."""
        epoch, offset = divmod(position, self.length)
        return epoch, int(self._order(epoch)[offset])

    def state(self, step: int) -> dict[str, int]:
        """Where the stream stands before `step`: seed, epoch, and how many samples of that epoch were consumed."""
        epoch, consumed = divmod(step * self.batch_size, self.length)
        return {"seed": self.seed, "epoch": epoch, "consumed": consumed}

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            self._orders = {old: order for old, order in self._orders.items() if old >= epoch - 1}
            given = None if self._given is None else self._given(self.seed, epoch)
            self._orders[epoch] = (
                np.random.default_rng([self.seed, epoch]).permutation(self.length)
                if given is None
                else np.asarray(given, np.int64)
            )
        return self._orders[epoch]


class EvalSampler(Sampler[list[Key]]):
    """Batches of evaluation: each sample once over all ranks, in order; `limit` takes that many, evenly spread."""

    def __init__(
        self, length: int, *, batch_size: int, rank: int = 0, world_size: int = 1, limit: int | None = None
    ) -> None:
        count = length if limit is None else min(limit, length)
        self.indices = [i * length // count for i in range(count)][rank::world_size]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for first in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[first : first + self.batch_size]]
