"""Pictures with captions, wherever they lie: the entry of one, and the samples that every layout shares."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vitdense.contracts import Sample, Samples, Split
from vitdense.data.boxes.records import Fault
from vitdense.data.captions.audit import CaptionAudit, audit_captions
from vitdense.data.captions.views import Picture, PictureDataConfig


class Entry(NamedTuple):
    """One picture and all of its captions, at least one."""

    id: str
    picture: Picture
    captions: tuple[str, ...]


class CaptionSamples(Samples):
    """One split: training draws a view and one of the captions by (seed, epoch, index), validation gives the whole
    picture and all of them.

    `faults` are records that were left out; `filtered` counts what a layout passes over without a word for each.
    """

    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    headers: int = 20_000
    """Of so many pictures an audit reads the header where it doesn't read all."""

    def __init__(self, config: PictureDataConfig, split: Split, faults: Sequence[Fault] = ()) -> None:
        self.split, self.seed, self.views = split, config.seed, config.views()
        self.faults = list(faults)
        self.filtered: Counter[str] = Counter()

    @abstractmethod
    def entry(self, epoch: int, index: int) -> Entry:
        """The picture of (epoch, index); raises DataError where it has no caption or can't be found."""

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        entry = self.entry(*key)
        if self.split == "val":
            return Sample(id=entry.id, image=self.views.whole(entry.picture), captions=list(entry.captions))
        chosen, generator = self.draw_caption(*key, len(entry.captions))
        image = self.views.drawn(entry.picture, generator)
        return Sample(id=entry.id, image=image, captions=[entry.captions[chosen]])

    def draw_caption(self, epoch: int, index: int, count: int) -> tuple[int, np.random.Generator]:
        """Which of `count` captions a sample has in training, and what draws the rest of it."""
        generator = np.random.default_rng([self.seed, epoch, index])
        return int(generator.integers(count)), generator

    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        """What reading the records found, then headers of pictures, and at most `limit` of them read in full."""
        return audit_captions(self, limit=limit, report=report).faults

    def survey(self, report: Callable[[str], None] | None = None) -> CaptionAudit:
        """The same with counts, of all pictures."""
        return audit_captions(self, limit=None, report=report)
