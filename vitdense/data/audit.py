"""What is in a data set and what is wrong with it: sizes, class shares and faults, found before a run and not in it."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vitdense.contracts import IGNORE, Sample, Samples
from vitdense.data.images import read_image, read_size
from vitdense.data.pairs import Pair, size_fault
from vitdense.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

Report = Callable[[str], None]
Size = tuple[int, int]

MAX_TOLD = 10
"""So many faults of one kind are told one by one, the others counted."""

THREADS = 8
MEASURED: tuple[str, ...] = ("measured",)
"""What an audit of depth counts in place of classes."""

DRAWN = 200
"""How many samples of a data set without files are drawn for its statistics."""


@runtime_checkable
class InFiles(Protocol):
    """What an audit asks of samples that lie in files: `what` (mask, depth) says what belongs to a picture, `counted`
    names the values of `read_labels`.
    """

    counted: tuple[str, ...]
    what: str
    pairs: tuple[Pair, ...]
    faults: tuple[str, ...]

    def __len__(self) -> int: ...

    def read_labels(self, index: int) -> NDArray[np.int16]:
        """Indices (H, W) of `counted`, and IGNORE, of a pair; raises DataError."""


class Findings(Protocol):
    """What an audit gives, of whatever labels."""

    faults: list[str]

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain types."""

    def table(self, split: str) -> "Table":
        """The counts, for a reader."""


@runtime_checkable
class Surveyed(Protocol):
    """Samples that have more to tell than pixels by class."""

    def survey(self, report: Report | None = None) -> Findings:
        """A split audited completely."""


@dataclass
class Audit:
    """Counts over one split: `sizes` by (H, W); `pixels` and `pictures` (K + 1,), the first entry for IGNORE."""

    classes: tuple[str, ...]
    total: int
    read: int = 0
    sizes: Counter[Size] = field(default_factory=Counter)
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    pictures: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pixels = np.zeros(len(self.classes) + 1, np.int64)
        self.pictures = np.zeros(len(self.classes) + 1, np.int64)

    def count(self, mask: NDArray[Any]) -> None:
        """Add one mask (H, W) of classes and IGNORE."""
        counts = np.bincount(mask.ravel() - IGNORE, minlength=len(self.pixels))
        self.pixels += counts
        self.pictures += counts > 0
        self.read += 1

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain types; shares of classes are of the labelled pixels."""
        labelled = max(1, int(self.pixels[1:].sum()))
        return {
            "pictures": self.total,
            "masks_read": self.read,
            "sizes": {f"{height}x{width}": count for (height, width), count in self.sizes.most_common()},
            "ignored": int(self.pixels[0]) / max(1, int(self.pixels.sum())),
            "classes": {
                name: {"share": int(pixels) / labelled, "pictures": int(pictures)}
                for name, pixels, pictures in zip(self.classes, self.pixels[1:], self.pictures[1:], strict=True)
            },
            "faults": self.faults,
        }

    def table(self, split: str) -> "Table":
        """Pictures and sizes in the title, and a row for each class."""
        # Imported here: the engine audits too, and prints no table.
        from rich.table import Table

        facts = self.to_json()
        title = f"{split}: {self.total} pictures, {told_sizes(self.sizes)}, {facts['ignored']:.1%} ignored"
        table = Table(title=title, min_width=60)
        table.add_column("class")
        table.add_column("of labelled pixels", justify="right")
        table.add_column(f"in pictures (of {self.read})", justify="right")
        for name, row in facts["classes"].items():
            table.add_row(name, f"{row['share']:.2%}", str(row["pictures"]), style=None if row["pictures"] else "dim")
        return table


@dataclass(frozen=True)
class _Finding:
    """What reading one pair gave: a fault and its kind, or sizes, and the mask where it was read."""

    kind: str | None = None
    fault: str = ""
    size: Size | None = None
    mask: NDArray[np.int16] | None = None


def survey(samples: Samples, report: Report | None = None) -> Findings:
    """A split audited completely; of a data set without files, the first samples are drawn and counted."""
    if isinstance(samples, Surveyed):
        return samples.survey(report)
    if isinstance(samples, InFiles):
        return audit_pairs(samples, limit=None, report=report)
    audit = Audit(samples.classes or MEASURED, len(samples), faults=samples.audit(report=report))
    for index in range(min(DRAWN, len(samples))):
        mask = _drawn(samples[0, index])
        audit.sizes[mask.shape[0], mask.shape[1]] += 1
        audit.count(mask)
    return audit


def _drawn(sample: Sample) -> NDArray[np.integer]:
    """The mask of a sample; of depth 0 where it was measured; of neither nothing that could be counted."""
    if "mask" in sample:
        return sample["mask"].numpy()
    if "depth" in sample:
        return where_measured(sample["depth"].numpy())
    return np.full(sample["image"].shape[1:], IGNORE, np.int16)


def where_measured(depth: NDArray[np.floating]) -> NDArray[np.int16]:
    """depth: (H, W) metres -> 0, the index of "measured" in MEASURED, and IGNORE where there is none."""
    return np.where(depth > 0, 0, IGNORE).astype(np.int16)


def audit_pairs(samples: InFiles, *, limit: int | None, report: Report | None = None) -> Audit:
    """Pairing and headers of every pair; `limit` pairs, evenly spread (all where None), are read in full."""
    total = len(samples)
    count = total if limit is None else min(limit, total)
    deep = {i * total // count for i in range(count)}
    audit = Audit(samples.counted, total)
    faults = [("files without a partner", fault) for fault in samples.faults]
    with ThreadPoolExecutor(THREADS) as pool:
        findings = pool.map(lambda index: _inspect(samples, index, index in deep), range(total))
        for done, finding in enumerate(findings, start=1):
            if finding.kind is not None:
                faults.append((finding.kind, finding.fault))
            if finding.size is not None:
                audit.sizes[finding.size] += 1
            if finding.mask is not None:
                audit.count(finding.mask)
            if report is not None and (done % 100 == 0 or done == total):
                report(f"{done} of {total} pictures")
    audit.faults = shorten(faults)
    return audit


def _inspect(samples: InFiles, index: int, deep: bool) -> _Finding:
    pair = samples.pairs[index]
    if not all(path.exists() for path in (pair.mask, *pair.pictures)):  # told with the pairing
        return _Finding()
    try:
        size, drawn = read_size(pair.image), read_size(pair.mask)
        if size != drawn:
            return _Finding(f"{samples.what}s of another size", size_fault(pair, size, drawn, samples.what), size)
        for other in pair.pictures[1:]:
            if (found := read_size(other)) != size:
                fault = size_fault(Pair(pair.id, pair.image, other), size, found, "second picture")
                return _Finding("pictures of another size", fault, size)
        if deep:
            for picture in pair.pictures:
                read_image(picture)
    except DataError as fault:
        return _Finding("unreadable files", str(fault))
    if not deep:
        return _Finding(size=size)
    try:
        return _Finding(size=size, mask=samples.read_labels(index))
    except DataError as fault:
        return _Finding(f"bad {samples.what}s", str(fault), size)


def shorten(faults: Iterable[tuple[str, str]]) -> list[str]:
    """Faults by kind, the first ten of each, then how many more."""
    kinds: dict[str, list[str]] = {}
    for kind, fault in faults:
        kinds.setdefault(kind, []).append(fault)
    lines: list[str] = []
    for kind, told in kinds.items():
        lines += told[:MAX_TOLD]
        if len(told) > MAX_TOLD:
            lines.append(f"... and {len(told) - MAX_TOLD} more {kind}")
    return lines


def told_sizes(sizes: Counter[Size]) -> str:
    """The three most frequent sizes with their counts, and how many others there are."""
    told = ", ".join(f"{height}x{width} ({count})" for (height, width), count in sizes.most_common(3))
    return told + (f", {len(sizes) - 3} other sizes" if len(sizes) > 3 else "")


def tables(audits: Sequence[tuple[str, Findings]]) -> list["Table"]:
    """One for each (split, audit)."""
    return [audit.table(split) for split, audit in audits]
