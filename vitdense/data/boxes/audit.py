"""What is in a data set of boxes and what is wrong with it: faults by record, counts of things and of pictures."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitdense.contracts import Samples
from vitdense.data.audit import DRAWN, THREADS, Report, Size, shorten, told_sizes
from vitdense.data.boxes.records import Fault, Record
from vitdense.data.images import read_image, read_size
from vitdense.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table


class WithRecords(Protocol):
    """Samples whose things are in memory and whose pictures are in files."""

    classes: tuple[str, ...]
    records: tuple[Record, ...]
    faults: tuple[Fault, ...]


@dataclass
class BoxAudit:
    """Counts over one split: `things` and `pictures` (K,) of each class; `clipped` boxes reach out of their picture and
    are cut in training, `empty` pictures show nothing, crowds are counted apart.
    """

    classes: tuple[str, ...]
    total: int
    read: int = 0
    clipped: int = 0
    crowds: int = 0
    empty: int = 0
    sizes: Counter[Size] = field(default_factory=Counter)
    things: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    pictures: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.things = np.zeros(len(self.classes), np.int64)
        self.pictures = np.zeros(len(self.classes), np.int64)

    def count(self, labels: NDArray[np.int64], crowd: NDArray[np.bool_], clipped: int = 0) -> None:
        """Add one picture's things: labels (N,) and which of them are crowds (N,)."""
        counts = np.bincount(labels[~crowd], minlength=len(self.classes))
        self.things += counts
        self.pictures += counts > 0
        self.crowds += int(crowd.sum())
        self.empty += len(labels) == 0
        self.clipped += clipped

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain types."""
        return {
            "pictures": self.total,
            "pictures_read": self.read,
            "pictures_without_things": self.empty,
            "sizes": {f"{height}x{width}": count for (height, width), count in self.sizes.most_common()},
            "things": int(self.things.sum()),
            "crowds": self.crowds,
            "clipped_boxes": self.clipped,
            "classes": {
                name: {"things": int(things), "pictures": int(pictures)}
                for name, things, pictures in zip(self.classes, self.things, self.pictures, strict=True)
            },
            "faults": self.faults,
        }

    def table(self, split: str) -> "Table":
        """Pictures, sizes and what is special in the title, and a row for each class."""
        # Imported here: the engine audits too, and prints no table.
        from rich.table import Table

        title = (
            f"{split}: {self.total} pictures ({self.empty} without things), {told_sizes(self.sizes)},"
            f" {self.crowds} crowds, {self.clipped} boxes clipped"
        )
        table = Table(title=title, min_width=60)
        table.add_column("class")
        table.add_column("things", justify="right")
        table.add_column("in pictures", justify="right")
        for name, things, pictures in zip(self.classes, self.things, self.pictures, strict=True):
            table.add_row(name, str(things), str(pictures), style=None if things else "dim")
        return table


def audit_boxes(samples: WithRecords, *, limit: int | None, report: Report | None = None) -> BoxAudit:
    """What was found while reading, the header of every picture, and `limit` pictures (all where None) in full."""
    total = len(samples.records)
    count = total if limit is None else min(limit, total)
    deep = {i * total // count for i in range(count)}
    audit = BoxAudit(samples.classes, total, read=count)
    faults = list(samples.faults)
    with ThreadPoolExecutor(THREADS) as pool:
        checked = pool.map(lambda index: _inspect(samples.records[index], index in deep), range(total))
        for done, (record, fault) in enumerate(zip(samples.records, checked, strict=True), start=1):
            if fault is not None:
                faults.append(fault)
            audit.sizes[record.size] += 1
            reaching = (record.boxes != record.inside()).any(1)
            audit.count(record.labels, record.crowd, int(reaching.sum()))
            if report is not None and (done % 100 == 0 or done == total):
                report(f"{done} of {total} pictures")
    audit.faults = shorten(faults)
    return audit


def survey_drawn(samples: Samples, report: Report | None = None) -> BoxAudit:
    """Counts of the first samples of a data set without files."""
    audit = BoxAudit(samples.classes, len(samples), faults=samples.audit(report=report))
    for index in range(min(DRAWN, len(samples))):
        sample = samples[0, index]
        target = sample["target"]
        labels = target["labels"].numpy()
        audit.sizes[sample["image"].shape[1], sample["image"].shape[2]] += 1
        audit.count(labels, target["crowd"].numpy() if "crowd" in target else np.zeros(len(labels), np.bool_))
        audit.read += 1
    return audit


def size_fault(record: Record, size: Size) -> str:
    """The message for a picture that has another size (H, W) than its record says."""
    height, width = record.size
    return f"{record.where}: the record says {width} x {height}, {record.image} is {size[1]} x {size[0]} pixels"


def _inspect(record: Record, deep: bool) -> Fault | None:
    try:
        size = read_size(record.image)
        if size != record.size:
            return Fault("pictures of another size", size_fault(record, size))
        if deep:
            read_image(record.image)
    except DataError as fault:
        return Fault("unreadable pictures", f"{record.where}: {fault}")
    return None
