"""Fetching a data set: a download that resumes, is checked before use, and is unpacked without leaving its folder."""

import hashlib
import shutil
import ssl
import stat
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import cast

from vitdense.errors import DataError

Progress = Callable[[int, int | None], None]

CHUNK = 1 << 18
TRIES = 5
SPARE = 64 << 20
"""Bytes that must stay free on the disk."""


def fetch(
    url: str, target: Path, *, sha256: str | None = None, progress: Progress | None = None, pause: float = 1.0
) -> Path:
    """Download to `target` by way of `target`.part, going on from what an earlier call left there.

    A broken connection is tried again, after `pause`, 2 x `pause` ... seconds, until five tries in a row bring nothing.
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url}: only http:// and https:// addresses can be downloaded")
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = _bytes_in(part)
        try:
            _receive(url, part, progress)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise DataError(f"{url}: the server answers {error.code} {error.reason}") from None
            reason = f"{error.code} {error.reason}"
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason = str(error)
        except OSError as error:
            raise DataError(f"{part}: {error}") from None
        failures = 1 if _bytes_in(part) > before else failures + 1
        if failures >= TRIES:
            raise DataError(f"{url}: {reason}; {_bytes_in(part)} bytes are kept in {part}, run again to go on")
        time.sleep(pause * failures)
    if sha256 is not None:
        _check(part, sha256)
    part.rename(target)
    return target


def unpack(archive: Path, root: Path, folder: str) -> Path:
    """Extract `folder` of a zip into `root`, by way of a temporary name: a folder that is there is whole."""
    target, partial = root / folder, root / f"{folder}.part"
    if target.exists():
        raise DataError(f"{target} is there already; remove it to unpack {archive.name} again")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            for member in members:
                _refuse_unsafe(archive, member)
            _need_space(root, sum(member.file_size for member in members))
            opened.extractall(partial)  # checks every member's CRC
    except (zipfile.BadZipFile, EOFError, NotImplementedError, zipfile.LargeZipFile) as fault:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(f"{archive}: damaged archive ({fault}); remove it and run again") from None
    inside = partial / folder
    if not inside.is_dir():
        shutil.rmtree(partial)
        raise DataError(f"{archive}: has no folder {folder}")
    inside.rename(target)
    shutil.rmtree(partial)
    return target


def _receive(url: str, part: Path, progress: Progress | None) -> None:
    """One connection: append what is missing to `part`; raises ConnectionError where less comes than was announced."""
    have = _bytes_in(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        # `urlopen` is typed as returning Any; for http addresses it is an HTTPResponse.
        response = cast(HTTPResponse, urllib.request.urlopen(request, timeout=60))
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if _total_of(error.headers.get("Content-Range")) == have:
            return
        part.unlink()  # longer than the file on the server: another version of it
        raise ConnectionError("the file on the server has changed") from None
    with response:
        resumed = response.status == 206
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        if total is not None:
            _need_space(part.parent, total - have)
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress is not None:
                    progress(have, total)
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _bytes_in(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _total_of(content_range: str | None) -> int | None:
    """`bytes */123` -> 123."""
    total = (content_range or "").rpartition("/")[2]
    return int(total) if total.isdigit() else None


def _need_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + SPARE > free:
        raise DataError(f"{folder}: {needed / 2**30:.2f} GiB are needed, {free / 2**30:.2f} GiB are free")


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        path.unlink()
        raise DataError(
            f"{path.name}: SHA-256 is {found}, but {sha256} was expected; the download was removed, run again"
        )


def _refuse_unsafe(archive: Path, member: zipfile.ZipInfo) -> None:
    """zipfile mends most such names silently; an archive that has one is not what it should be."""
    name = member.filename.replace("\\", "/")
    outside = name.startswith("/") or ".." in name.split("/") or ":" in name.split("/")[0]
    if outside or stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(f"{archive}: refused, because its entry {member.filename!r} leads out of the folder")
