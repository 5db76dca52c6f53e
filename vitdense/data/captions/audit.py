"""What is in a data set of captions and what is wrong with it: pictures, captions, their lengths, and faults."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vitdense.data.audit import THREADS, Report, Size, shorten, told_sizes
from vitdense.data.boxes.records import Fault
from vitdense.data.captions.views import Picture
from vitdense.data.images import read_image, read_size
from vitdense.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

MANY_WORDS = 75
"""A text tower of 77 tokens never sees the end of a caption with more words, for each word is a token or more."""


class HasCaptions(Protocol):
    """What is asked of an entry."""

    @property
    def picture(self) -> Picture:
        """Where the picture is."""

    @property
    def captions(self) -> tuple[str, ...]:
        """All of them."""


class WithEntries(Protocol):
    """Samples that give their entries without decoding pictures."""

    faults: list[Fault]
    filtered: Counter[str]
    headers: int

    def __len__(self) -> int: ...

    def entry(self, epoch: int, index: int) -> HasCaptions:
        """Raises DataError."""


@dataclass
class CaptionAudit:
    """Counts over one split: `words` of each caption, `repeats` of a text that another picture or line has too;
    `filtered` by reason is what was passed over.
    """

    total: int
    read: int = 0
    sizes: Counter[Size] = field(default_factory=Counter)
    words: list[int] = field(default_factory=list)
    texts: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def count(self, captions: tuple[str, ...], size: Size) -> None:
        """Add one picture of (H, W)."""
        self.read += 1
        self.sizes[size] += 1
        self.words += [len(caption.split()) for caption in captions]
        self.texts.update(captions)

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain types."""
        words = np.array(self.words or [0])
        return {
            "pictures": self.total,
            "pictures_read": self.read,
            "sizes": {f"{height}x{width}": count for (height, width), count in self.sizes.most_common()},
            "captions": len(self.words),
            "words": {"least": int(words.min()), "median": float(np.median(words)), "most": int(words.max())},
            "long_captions": int((words > MANY_WORDS).sum()),
            "repeated_captions": len(self.words) - len(self.texts),
            "filtered": dict(self.filtered),
            "faults": self.faults,
        }

    def table(self, split: str) -> "Table":
        """Pictures and sizes in the title, and a row for each count."""
        # Imported here: the engine audits too, and prints no table.
        from rich.table import Table

        facts = self.to_json()
        words = facts["words"]
        table = Table(title=f"{split}: {self.total} pictures, {told_sizes(self.sizes)}", min_width=60)
        table.add_column("captions")
        table.add_column("", justify="right")
        table.add_row("captions", str(facts["captions"]))
        table.add_row("words, least / median / most", f"{words['least']} / {words['median']:g} / {words['most']}")
        table.add_row(f"more than {MANY_WORDS} words, cut by a tokenizer of 77", str(facts["long_captions"]))
        table.add_row("the same text again", str(facts["repeated_captions"]))
        for reason, count in self.filtered.items():
            table.add_row(f"passed over: {reason}", str(count))
        return table


def audit_captions(samples: WithEntries, *, limit: int | None, report: Report | None = None) -> CaptionAudit:
    """The faults of the records, the headers of `samples.headers` pictures and `limit` pictures in full, both evenly
    spread; all where limit is None.
    """
    total = len(samples)
    deep = _spread(total, limit)
    seen = sorted(deep | _spread(total, None if limit is None else samples.headers))
    audit = CaptionAudit(total)
    faults = []
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda index: _inspect(samples, index, index in deep), seen)
        for done, each in enumerate(found, start=1):
            if isinstance(each, Fault):
                faults.append(each)
            else:
                audit.count(*each)
            if report is not None and (done % 100 == 0 or done == len(seen)):
                report(f"{done} of {len(seen)} pictures")
    audit.filtered += samples.filtered
    audit.faults = shorten([*samples.faults, *faults])
    return audit


def _spread(total: int, count: int | None) -> set[int]:
    count = total if count is None else min(count, total)
    return {place * total // count for place in range(count)}


def _inspect(samples: WithEntries, index: int, deep: bool) -> Fault | tuple[tuple[str, ...], Size]:
    try:
        entry = samples.entry(0, index)
    except DataError as fault:
        return Fault("bad captions", str(fault))
    try:
        if not deep:
            return entry.captions, read_size(*entry.picture)
        pixels = read_image(*entry.picture)
    except DataError as fault:
        return Fault("unreadable pictures", str(fault))
    return entry.captions, (pixels.shape[0], pixels.shape[1])
