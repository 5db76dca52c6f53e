"""Pictures and the masks or depth maps that belong to them, matched by path and name, or listed in a file."""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from vitdense.data.images import SUFFIXES
from vitdense.errors import DataError


@dataclass(frozen=True)
class Pair:
    """A picture and the mask (or depth map) that belongs to it; `id` is the picture's path, without its suffix."""

    id: str
    image: Path
    mask: Path

    @property
    def pictures(self) -> tuple[Path, ...]:
        """All pictures that the mask belongs to."""
        return (self.image,)


def size_fault(pair: Pair, image: Sequence[int], mask: Sequence[int], what: str = "mask") -> str:
    """The message for a mask that doesn't fit its picture; sizes are (H, W)."""
    return f"{pair.mask}: the {what} is {mask[1]} x {mask[0]}, but {pair.image} is {image[1]} x {image[0]} pixels"


def find_pairs(
    images: Path,
    masks: Path,
    *,
    image_suffix: str = "",
    mask_suffix: str = "",
    without: str = "",
    what: str = "mask",
    suffixes: Set[str] = SUFFIXES,
) -> tuple[list[Pair], list[str]]:
    """Pairs by equal path and name, sorted, and what is wrong with the rest; a missing mask shows in both.

    A suffix, such as `_leftImg8bit.png`, picks the files and is no part of the name; without one all pictures count.
    Masks that end in `without` are none. `suffixes` are those of files that count.
    """
    pictures = _by_id(images, image_suffix, suffixes=suffixes)
    drawn = _by_id(masks, mask_suffix, without, suffixes=suffixes)
    faults = [
        f"{folder}: {len(paths)} files are named {name}: {', '.join(path.name for path in paths)}"
        for folder, files in ((images, pictures), (masks, drawn))
        for name, paths in files.items()
        if len(paths) > 1
    ]
    ending = mask_suffix or ".png"
    faults += [f"{paths[0]}: no {what} {masks / name}{ending}" for name, paths in pictures.items() if name not in drawn]
    wanted = image_suffix or ".*"
    faults += [
        f"{paths[0]}: no picture {images / name}{wanted}" for name, paths in drawn.items() if name not in pictures
    ]
    pairs = [
        Pair(name, paths[0], drawn[name][0] if name in drawn else masks / f"{name}{ending}")
        for name, paths in pictures.items()
    ]
    return pairs, faults


def read_list(path: Path, layout: str) -> list[list[str]]:
    """The words of each line of a split list that isn't empty."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        reason = "no such file" if isinstance(fault, FileNotFoundError) else str(fault)
        raise DataError(f"{path}: {reason}; {layout}") from None
    return [line.split() for line in lines if line.strip()]


def missing_files(pairs: Iterable[Pair], what: str = "mask") -> list[str]:
    """A fault for each file that a list names and that isn't there."""
    faults = []
    for pair in pairs:
        if not pair.image.exists():
            faults.append(f"{pair.image}: no such picture")
        if not pair.mask.exists():
            faults.append(f"{pair.image}: no {what} {pair.mask}")
    return faults


def _by_id(folder: Path, suffix: str, without: str = "", *, suffixes: Set[str] = SUFFIXES) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob(f"*{suffix}")):
        left_out = path.name.startswith(".") or (without and path.name.endswith(without))
        if path.suffix.lower() in suffixes and not left_out:
            name = path.relative_to(folder).as_posix()
            name = name.removesuffix(suffix) if suffix else path.relative_to(folder).with_suffix("").as_posix()
            files.setdefault(name, []).append(path)
    return files
