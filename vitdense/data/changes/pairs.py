"""Two pictures of one place and the mask of what changed, matched by name in three folders, or listed in a file."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vitdense.data.images import SUFFIXES
from vitdense.data.pairs import Pair, find_pairs, missing_files, read_list
from vitdense.errors import DataError

SECOND = "second picture"


@dataclass(frozen=True)
class ChangePair(Pair):
    """`image` is the picture before, `after` that after, `mask` what changed."""

    after: Path

    @property
    def pictures(self) -> tuple[Path, ...]:
        """Before and after."""
        return self.image, self.after


@dataclass(frozen=True)
class Places:
    """The folders of pictures before and after, and of masks."""

    before: Path
    after: Path
    masks: Path

    def find(self) -> tuple[list[ChangePair], list[str]]:
        """Pairs by equal path and name, sorted, and what is wrong with the rest; what is missing shows in both."""
        masked, faults = find_pairs(self.before, self.masks)
        doubled, others = find_pairs(self.before, self.after, what=SECOND)
        later = {pair.id: pair.mask for pair in doubled}
        pairs = [ChangePair(pair.id, pair.image, pair.mask, later[pair.id]) for pair in masked]
        return pairs, list(dict.fromkeys([*faults, *others]))

    def named(self, name: str) -> ChangePair:
        """The pair of one name, with or without its suffix, .png where it has none; masks are PNGs."""
        known = Path(name).suffix.lower() in SUFFIXES
        id, picture = (Path(name).with_suffix("").as_posix(), name) if known else (name, f"{name}.png")
        mask = self.masks / picture
        return ChangePair(
            id, self.before / picture, mask if mask.exists() else self.masks / f"{id}.png", self.after / picture
        )


def listed(path: Path, root: Path, places: Places, layout: str) -> tuple[list[ChangePair], list[str]]:
    """Pairs of a list's lines, each a name or the paths before, after and mask below `root`; and what is missing."""
    pairs = []
    for words in read_list(path, layout):
        if len(words) == 1:
            pairs.append(places.named(words[0]))
        elif len(words) == 3:
            before, after, mask = (root / word for word in words)
            pairs.append(ChangePair(Path(words[0]).with_suffix("").as_posix(), before, mask, after))
        else:
            raise DataError(f"{path}: {' '.join(words)!r} is neither a name nor three paths; {layout}")
    return pairs, [*missing_files(pairs), *_missing_seconds(pairs)]


def _missing_seconds(pairs: Iterable[ChangePair]) -> list[str]:
    return [f"{pair.image}: no {SECOND} {pair.after}" for pair in pairs if not pair.after.exists()]
