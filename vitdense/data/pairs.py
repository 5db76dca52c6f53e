"""Pictures and the masks that belong to them, matched by path and name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitdense.data.images import SUFFIXES


@dataclass(frozen=True)
class Pair:
    """A picture and the mask that belongs to it; `id` is the picture's path in its folder, without its suffix."""

    id: str
    image: Path
    mask: Path


def size_fault(pair: Pair, image: Sequence[int], mask: Sequence[int]) -> str:
    """The message for a mask that doesn't fit its picture; sizes are (H, W)."""
    return f"{pair.mask}: the mask is {mask[1]} x {mask[0]}, but {pair.image} is {image[1]} x {image[0]} pixels"


def find_pairs(images: Path, masks: Path) -> tuple[list[Pair], list[str]]:
    """Pairs by equal path and name, sorted, and what is wrong with the rest; a missing mask shows in both."""
    pictures, drawn = _by_id(images), _by_id(masks)
    faults = [
        f"{folder}: {len(paths)} files are named {name}: {', '.join(path.name for path in paths)}"
        for folder, files in ((images, pictures), (masks, drawn))
        for name, paths in files.items()
        if len(paths) > 1
    ]
    faults += [f"{paths[0]}: no mask {masks / name}.png" for name, paths in pictures.items() if name not in drawn]
    faults += [f"{paths[0]}: no picture {images / name}.*" for name, paths in drawn.items() if name not in pictures]
    pairs = [
        Pair(name, paths[0], drawn[name][0] if name in drawn else masks / f"{name}.png")
        for name, paths in pictures.items()
    ]
    return pairs, faults


def _by_id(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return files
