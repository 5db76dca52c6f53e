"""Tar shards in webdataset's layout: what they hold, by offset, so that any sample is read without what lies before.

Members of one key (the path up to the first dot of its name) are one sample: https://github.com/webdataset/webdataset.
"""

import glob
import hashlib
import json
import os
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from vitdense.data.boxes.records import short
from vitdense.data.download import fetch
from vitdense.errors import DataError

PICTURES = ("jpg", "jpeg", "png", "webp")
TEXT, JSON = "txt", "json"
REMOTE = ("http://", "https://")

_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BLOCK = 512
"""Bytes of a tar's header, and of the zeros that end it."""


@dataclass(frozen=True)
class Shard:
    """N samples of one tar: keys (N,), and (offset, size) of their pictures (N, 2) and captions (N, 2) in the file;
    `filtered` counts samples that lack one of them, `damage` says where the file ends too early.
    """

    name: str
    path: Path
    keys: NDArray[np.str_]
    pictures: NDArray[np.int64]
    captions: NDArray[np.int64]
    in_json: NDArray[np.bool_]
    filtered: Counter[str]
    damage: str | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> tuple[bytes, bytes]:
        """The encoded picture and the caption's bytes of a sample."""
        try:
            with self.path.open("rb") as file:
                return _read(file, self.pictures[index]), _read(file, self.captions[index])
        except OSError as fault:
            raise DataError(f"{self.name}: {fault}") from None


@dataclass
class _Parts:
    """What has been seen of one sample."""

    picture: tuple[int, int] | None = None
    text: tuple[int, int] | None = None
    in_json: bool = False
    suffixes: list[str] = field(default_factory=list)


def expand(patterns: str | Sequence[str], root: Path) -> list[str]:
    """Paths and addresses of patterns with braces, {0000..0012} and {a,b}, and of globs of local files, each once.

    Raises DataError where a file is missing or a glob finds none.
    """
    found: list[str] = []
    missing: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for each in _unfolded(pattern):
            if each.startswith(REMOTE):
                found.append(each)
            elif any(letter in each for letter in "*?["):
                matches = sorted(glob.glob(str(root / each), recursive=True))
                found += matches
                missing += [] if matches else [f"{root / each} (a glob)"]
            elif (root / each).is_file():
                found.append(str(root / each))
            else:
                missing.append(str(root / each))
    if missing:
        more = f", ... {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(f"no such shards: {', '.join(missing[:3])}{more}")
    if not found:
        raise DataError("no shards: the list of patterns is empty")
    return list(dict.fromkeys(found))


def open_shard(place: str, cache: Path | None, caption_key: str) -> Shard:
    """The index of a shard, of `cache` where it has been made; a remote shard is fetched there first, whole.

    Raises DataError where there is no sample with a picture and a caption, and says what the file holds.
    """
    path = _fetched(place, cache) if place.startswith(REMOTE) else Path(place)
    if cache is None:
        return index_shard(place, path, caption_key)
    stat = path.stat()
    stamp = f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns} {caption_key}"
    kept = cache / f"{path.stem}-{_digest(stamp)}.index.npz"
    if kept.exists():
        try:
            return _load(place, path, kept)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            kept.unlink(missing_ok=True)  # made anew
    shard = index_shard(place, path, caption_key)
    _save(shard, kept)
    return shard


def index_shard(name: str, path: Path, caption_key: str) -> Shard:
    """Read all headers of a tar, and of samples without a text their JSON."""
    samples: dict[str, _Parts] = {}
    damage = None
    try:
        with path.open("rb") as file:
            damage = _walk(file, samples, caption_key)
    except OSError as fault:
        raise DataError(f"{name}: {'no such file' if isinstance(fault, FileNotFoundError) else fault}") from None
    filtered: Counter[str] = Counter()
    whole = {}
    for key, parts in samples.items():
        if parts.picture is None:
            filtered["samples without a picture"] += 1
        elif parts.text is None:
            filtered["samples without a caption"] += 1
        else:
            whole[key] = parts
    if not whole:
        raise DataError(_nothing(name, samples, caption_key, damage))
    return Shard(
        name,
        path,
        np.array(list(whole)),
        np.array([parts.picture for parts in whole.values()], np.int64),
        np.array([parts.text for parts in whole.values()], np.int64),
        np.array([parts.in_json for parts in whole.values()], np.bool_),
        filtered,
        damage,
    )


def _walk(file: Any, samples: dict[str, _Parts], caption_key: str) -> str | None:
    """Fill `samples` with the parts of a tar; says where it is damaged."""
    end = os.fstat(file.fileno()).st_size
    if end == 0:
        return "the file is empty"
    last = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                last = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if member.offset_data + member.size > end:
                    return f"the tar is cut off inside {member.name}, after {len(samples)} samples began"
                match = _MEMBER.fullmatch(member.name)
                if match is not None and member.isreg():
                    place = (member.offset_data, member.size)
                    _take(file, samples.setdefault(match[1], _Parts()), match[2].lower(), place, caption_key)
    except (tarfile.TarError, EOFError, ValueError) as fault:
        return f"no tar, or damaged after {len(samples)} samples: {fault}"
    if _read(file, (last, _BLOCK)) != bytes(_BLOCK):
        return f"the tar is cut off or damaged after {len(samples)} samples: no end mark follows"
    return None


def _take(file: Any, parts: _Parts, suffix: str, place: tuple[int, int], caption_key: str) -> None:
    """Keep a member where it is a picture or a caption; a text goes before a JSON."""
    parts.suffixes.append(suffix)
    if suffix in PICTURES and parts.picture is None:
        parts.picture = place
    elif suffix == TEXT and (parts.text is None or parts.in_json):
        parts.text, parts.in_json = place, False
    elif suffix == JSON and parts.text is None:
        here = file.tell()
        if _has_caption(_read(file, place), caption_key):
            parts.text, parts.in_json = place, True
        file.seek(here)


def _has_caption(content: bytes, caption_key: str) -> bool:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return True  # told when it is read
    return not isinstance(found, dict) or found.get(caption_key) is not None


def _nothing(name: str, samples: dict[str, _Parts], caption_key: str, damage: str | None) -> str:
    held = Counter(" + ".join(f".{suffix}" for suffix in sorted(parts.suffixes)) for parts in samples.values())
    told = ", ".join(f"{count} of {short(suffixes)}" for suffixes, count in held.most_common(4)) or "no samples"
    wanted = f"a picture ({', '.join(PICTURES)}) and a caption ({TEXT}, or {JSON} with {caption_key!r})"
    return f"{name}: none of its {len(samples)} samples has {wanted}; it holds {told}" + (
        f"; {damage}" if damage else ""
    )


def _read(file: Any, place: Sequence[int] | NDArray[np.int64]) -> bytes:
    file.seek(int(place[0]))
    found: bytes = file.read(int(place[1]))
    return found


def _unfolded(pattern: str) -> list[str]:
    """{0000..0012} counts with the digits of its first number; {a,b} chooses."""
    parts = _BRACES.split(pattern)
    choices = []
    for place, part in enumerate(parts):
        match = _RANGE.fullmatch(part)
        if place % 2 == 0:
            choices.append([part])
        elif match is None:
            choices.append(part.split(","))
        else:
            first, last = int(match[1]), int(match[2])
            if last < first:
                raise DataError(f"{pattern}: {{{part}}} counts down")
            choices.append([str(number).zfill(len(match[1])) for number in range(first, last + 1)])
    return ["".join(chosen) for chosen in product(*choices)]


def _fetched(url: str, cache: Path | None) -> Path:
    """The shard in the cache: one process fetches it, others that want it wait."""
    if cache is None:
        raise DataError(f"{url}: shards from a network need data.cache=FOLDER, where they are kept")
    stem, _, suffix = url.split("?")[0].rpartition("/")[2].rpartition(".")
    target = cache / f"{stem or 'shard'}-{_digest(url)}.{suffix}"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                fetch(url, target)
    return target


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _save(shard: Shard, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}.part")
    notes = json.dumps({"filtered": shard.filtered, "damage": shard.damage})
    with partial.open("wb") as file:
        np.savez(
            file, keys=shard.keys, pictures=shard.pictures, captions=shard.captions, in_json=shard.in_json, notes=notes
        )
    partial.rename(kept)


def _load(name: str, path: Path, kept: Path) -> Shard:
    with np.load(kept, allow_pickle=False) as found:
        notes = json.loads(str(found["notes"]))
        keys, pictures, captions, in_json = (found[part] for part in ("keys", "pictures", "captions", "in_json"))
    return Shard(name, path, keys, pictures, captions, in_json, Counter(notes["filtered"]), notes["damage"])
