"""Steps of training whose texts are of like length, so that cutting behind the longest leaves little padding."""

import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from vitdense.contracts import Split
from vitdense.data.boxes.records import Fault
from vitdense.data.captions.samples import CaptionSamples, Entry
from vitdense.data.captions.views import PictureDataConfig

PIECES = re.compile(r"\w+|[^\w\s]")
"""About as many as tokens, whatever the tokenizer, which the data doesn't know."""

Indices = NDArray[np.int64]


class SortedConfig(PictureDataConfig):
    """`sort_window`: the samples of so many training steps, drawn as without it, are sorted by the length of their
    captions and dealt out to these steps again, which come in any order. A step compares texts of like length then;
    the larger the window, the more alike they are.
    """

    sort_window: PositiveInt | None = None


class SortedSamples(CaptionSamples):
    """Samples whose captions are known before they are read."""

    def __init__(self, config: SortedConfig, split: Split, faults: Sequence[Fault] = ()) -> None:
        super().__init__(config, split, faults)
        self.window, self.batch_size = config.sort_window, config.batch_size
        self._counts: Indices | None = None
        self._lengths: Indices | None = None

    @abstractmethod
    def captions(self) -> Iterable[Sequence[str]]:
        """The captions of each sample, in the order of the indices."""

    def order(self, seed: int, epoch: int) -> Sequence[int] | None:
        """Any; with a `sort_window` one that depends on it, on the batch size, and on what is given."""
        if self.window is None:
            return None
        shuffled = np.random.default_rng([seed, epoch]).permutation(len(self))
        generator = np.random.default_rng([seed, epoch, self.window])
        cuts = step_cuts(len(self), epoch, self.batch_size)
        first = epoch * len(self) // self.batch_size
        order: list[int] = []
        lengths = self.lengths(epoch)
        for window in windows(cuts, first, self.window):
            pieces = deal(shuffled[window[0] : window[-1]], lengths, np.diff(window), generator)
            order += np.concatenate(pieces).tolist()
        return order

    def lengths(self, epoch: int) -> Indices:
        """(N,): about the tokens of the caption that each sample has in this epoch."""
        if self._counts is None or self._lengths is None:
            pieces = [[len(PIECES.findall(caption)) for caption in captions] for captions in self.captions()]
            self._counts = np.array([len(each) for each in pieces], np.int64)
            self._lengths = np.array([length for each in pieces for length in each], np.int64)
        drawn = [
            0 if count == 1 else self.draw_caption(epoch, i, int(count))[0] for i, count in enumerate(self._counts)
        ]
        found: Indices = self._lengths[np.cumsum(self._counts) - self._counts + np.array(drawn, np.int64)]
        return found


def step_cuts(length: int, epoch: int, batch_size: int) -> Indices:
    """Where, within an epoch of `length` samples, one step of the stream of all epochs ends and the next begins; the
    first is 0 and the last `length`, also where the step goes on in another epoch."""
    start = epoch * length
    inside = np.arange(-start % batch_size or batch_size, length, batch_size)
    return np.concatenate([[0], inside, [length]])


def windows(cuts: Indices, first: int, size: int) -> Iterable[Indices]:
    """The cuts of each window: steps [k * size, (k + 1) * size) of the stream; `first` is that of the first cut."""
    steps = np.arange(first, first + len(cuts) - 1)
    for number in np.unique(steps // size):
        inside = np.flatnonzero(steps // size == number)
        yield cuts[inside[0] : inside[-1] + 2]


def deal(indices: Indices, lengths: Indices, sizes: Indices, generator: np.random.Generator) -> list[Indices]:
    """The indices of a window, sorted by length and dealt out to steps of these sizes; which step has the shortest is
    drawn."""
    ranked = indices[np.argsort(lengths[indices], kind="stable")]
    turns = generator.permutation(len(sizes))
    ends = np.cumsum(sizes[turns])
    dealt = np.split(ranked, ends[:-1])
    return [dealt[place] for place in np.argsort(turns)]


class ListedSamples(SortedSamples):
    """Entries that are in memory, with pictures in files."""

    def __init__(self, config: SortedConfig, split: Split, entries: Sequence[Entry], faults: Sequence[Fault]) -> None:
        super().__init__(config, split, faults)
        self.entries = tuple(entries)

    def __len__(self) -> int:
        return len(self.entries)

    def entry(self, epoch: int, index: int) -> Entry:
        """The entry at `index`."""
        return self.entries[index]

    def captions(self) -> Iterable[Sequence[str]]:
        """Those of the entries."""
        return (entry.captions for entry in self.entries)
