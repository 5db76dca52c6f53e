"""Which data sets can be fetched, from where, and how the fetched folder is proved usable."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vitdense.contracts import DATA
from vitdense.data.download import Progress, fetch, unpack
from vitdense.errors import UserError


@dataclass(frozen=True)
class Source:
    """Where an archive is, and the folder in it; `licence` is what a person agrees to by using it."""

    url: str
    folder: str
    licence: str


SOURCES = {
    "ade20k": Source(
        url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        folder="ADEChallengeData2016",
        licence="non-commercial research and education only (groups.csail.mit.edu/vision/datasets/ADE20K/terms)",
    )
}


def prepare(
    name: str,
    root: Path,
    *,
    url: str | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Download and unpack a data set into `root`, and build both splits from it; returns its folder.

    No checksum is published for ADE20K; without `sha256` the archive's own CRCs are what is checked.
    """
    if name not in SOURCES:
        raise UserError(f"no download for {name!r}; known: {', '.join(sorted(SOURCES))}")
    source = SOURCES[name]
    folder = root / source.folder
    say(f"licence: {source.licence}")
    if not folder.exists():
        address = url or source.url
        archive = root / f"{source.folder}.zip"
        if not archive.exists():
            say(f"downloading {address}")
            fetch(address, archive, sha256=sha256, progress=progress)
        say(f"unpacking {archive}")
        unpack(archive, root, source.folder)
        archive.unlink()
    config = DATA.create(name, {"root": str(folder)})
    counts = ", ".join(f"{len(config.build(split))} {split}" for split in ("train", "val"))
    say(f"ready: {counts} pictures; use data.root={folder}")
    return folder
