"""Counts of pictures by class, and what is wrong with their files."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vitdense.data.audit import THREADS, Report, Size, shorten, told_sizes
from vitdense.data.boxes.records import Fault
from vitdense.data.captions.views import Picture
from vitdense.data.images import read_image, read_size
from vitdense.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class ClassAudit:
    """Counts over one split: pictures of each class that were read."""

    classes: tuple[str, ...]
    total: int
    read: int = 0
    sizes: Counter[Size] = field(default_factory=Counter)
    pictures: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def count(self, label: int, size: Size) -> None:
        """Add one picture of (H, W)."""
        self.read += 1
        self.pictures[label] += 1
        self.sizes[size] += 1

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain types."""
        return {
            "pictures": self.total,
            "pictures_read": self.read,
            "sizes": {f"{height}x{width}": count for (height, width), count in self.sizes.most_common()},
            "classes": {name: self.pictures[label] for label, name in enumerate(self.classes)},
            "faults": self.faults,
        }

    def table(self, split: str) -> "Table":
        """Pictures and sizes in the title, and a row for each class."""
        # Imported here: the engine audits too, and prints no table.
        from rich.table import Table

        table = Table(title=f"{split}: {self.total} pictures, {told_sizes(self.sizes)}", min_width=60)
        table.add_column("class")
        table.add_column(f"pictures (of {self.read})", justify="right")
        for label, name in enumerate(self.classes):
            table.add_row(name, str(self.pictures[label]), style=None if self.pictures[label] else "dim")
        return table


def audit_classes(
    classes: tuple[str, ...],
    files: Sequence[tuple[Picture, int]],
    faults: Sequence[Fault],
    *,
    limit: int | None,
    report: Report | None = None,
) -> ClassAudit:
    """The faults of the layout, the headers of all pictures, and `limit` of them (all where None) in full."""
    total = len(files)
    count = total if limit is None else min(limit, total)
    deep = {place * total // count for place in range(count)}
    audit, found = ClassAudit(classes, total), list(faults)
    with ThreadPoolExecutor(THREADS) as pool:
        checked = pool.map(lambda index: _inspect(files[index][0], index in deep), range(total))
        for done, ((_, label), each) in enumerate(zip(files, checked, strict=True), start=1):
            if isinstance(each, Fault):
                found.append(each)
            else:
                audit.count(label, each)
            if report is not None and (done % 100 == 0 or done == total):
                report(f"{done} of {total} pictures")
    audit.faults = shorten(found)
    return audit


def _inspect(picture: Picture, deep: bool) -> Fault | Size:
    try:
        if not deep:
            return read_size(*picture)
        pixels = read_image(*picture)
    except DataError as fault:
        return Fault("unreadable pictures", str(fault))
    return pixels.shape[0], pixels.shape[1]
