"""Downloads: resumed after an interruption, refused when wrong, unpacked nowhere but in their folder."""

import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitdense.data import download
from vitdense.data.download import fetch, unpack
from vitdense.data.prepare import prepare
from vitdense.errors import DataError, UserError

BODY = np.random.default_rng(0).bytes(100_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves `body`; of each of the first answers only as many bytes as `cuts` says; `ranges` turns resuming off."""

    body = BODY
    cuts: tuple[int, ...] = ()
    ranges = True
    status = 200
    asked: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked += (wanted or "",)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if start and start >= len(server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            self.end_headers()
            return
        rest = server.body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if server.cuts:
            rest, server.cuts = rest[: server.cuts[0]], server.cuts[1:]
        self.wfile.write(rest)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def get(server: Server, target: Path, **options: str) -> bytes:
    return fetch(server.url, target, pause=0.0, sha256=options.get("sha256")).read_bytes()


def test_a_file_arrives_whole_and_progress_is_told(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    path = fetch(server.url, tmp_path / "deep" / "data.zip", progress=lambda done, total: told.append((done, total)))
    assert path.read_bytes() == BODY
    assert told[-1] == (len(BODY), len(BODY))
    assert [file.name for file in path.parent.iterdir()] == ["data.zip"]


def test_a_broken_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.cuts = (30_000, 20_000)
    assert get(server, tmp_path / "data.zip") == BODY
    assert server.asked == ("", "bytes=30000-", "bytes=50000-")


def test_a_later_call_goes_on_with_what_is_there(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(BODY[:60_000])
    assert get(server, tmp_path / "data.zip") == BODY
    assert server.asked == ("bytes=60000-",)


def test_a_part_that_is_whole_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(BODY)
    assert get(server, tmp_path / "data.zip") == BODY


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(BODY + b"more")
    assert get(server, tmp_path / "data.zip") == BODY


def test_a_server_without_ranges_is_asked_from_the_start(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "data.zip.part").write_bytes(b"x" * 60_000)
    assert get(server, tmp_path / "data.zip") == BODY


def test_a_connection_that_brings_nothing_ends_with_what_was_kept(server: Server, tmp_path: Path) -> None:
    server.cuts = (1000, 0, 0, 0, 0, 0)
    with pytest.raises(DataError, match=r"ended after 1000 of 100000 bytes; 1000 bytes are kept in .*run again"):
        get(server, tmp_path / "data.zip")
    assert (tmp_path / "data.zip.part").read_bytes() == BODY[:1000]


def test_a_right_checksum_is_accepted(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path / "data.zip", sha256=hashlib.sha256(BODY).hexdigest().upper()) == BODY


def test_a_wrong_checksum_is_refused_and_the_download_removed(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"SHA-256 is .* but 00 was expected"):
        get(server, tmp_path / "data.zip", sha256="00")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_page_is_not_tried_again(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(DataError, match=r"127\.0\.0\.1.*answers 404"):
        get(server, tmp_path / "data.zip")
    assert len(server.asked) == 1


def test_a_server_in_trouble_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.status = 503
    with pytest.raises(DataError, match="503"):
        get(server, tmp_path / "data.zip")
    assert len(server.asked) == download.TRIES


def test_only_web_addresses_are_fetched(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only http"):
        fetch("file:///etc/passwd", tmp_path / "x")


def test_a_full_disk_is_told_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SPARE", 1 << 60)
    with pytest.raises(DataError, match="GiB are needed"):
        get(server, tmp_path / "data.zip")


def archive(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, body in entries.items():
            opened.writestr(name, body)
    return path


def test_an_archive_is_unpacked_into_its_folder(tmp_path: Path) -> None:
    folder = unpack(archive(tmp_path / "a.zip", {"data/x/y.txt": b"hello"}), tmp_path, "data")
    assert (folder / "x" / "y.txt").read_bytes() == b"hello"
    assert not (tmp_path / "data.part").exists()


@pytest.mark.parametrize("name", ["../evil", "data/../../evil", "/evil", "..\\evil", "C:/evil"])
def test_an_entry_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="leads out of the folder"):
        unpack(archive(tmp_path / "a.zip", {"data/x": b"", name: b"evil"}), tmp_path, "data")
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("data/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr(link, "/etc")
    with pytest.raises(DataError, match="leads out of the folder"):
        unpack(tmp_path / "a.zip", tmp_path, "data")


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_archive_leaves_nothing_behind(tmp_path: Path, damage: str) -> None:
    path = archive(tmp_path / "a.zip", {"data/x": BODY})
    body = bytearray(path.read_bytes())
    if damage == "cut":
        del body[len(body) // 2 :]
    else:
        body[5000] ^= 1
    path.write_bytes(body)
    with pytest.raises(DataError, match="damaged archive"):
        unpack(path, tmp_path, "data")
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]


def test_an_archive_without_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no folder data"):
        unpack(archive(tmp_path / "a.zip", {"other/x": b""}), tmp_path, "data")


def small_ade20k() -> bytes:
    """An archive with one picture in each split."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as opened:
        for part in ("training", "validation"):
            for folder, suffix, mode in (("images", "jpg", "RGB"), ("annotations", "png", "L")):
                picture = io.BytesIO()
                Image.new(mode, (8, 8)).save(picture, {"jpg": "JPEG", "png": "PNG"}[suffix])
                opened.writestr(f"ADEChallengeData2016/{folder}/{part}/a.{suffix}", picture.getvalue())
    return packed.getvalue()


def test_ade20k_is_prepared_from_its_archive_and_only_once(server: Server, tmp_path: Path) -> None:
    server.body = small_ade20k()
    said: list[str] = []
    folder = prepare("ade20k", tmp_path, url=server.url, say=said.append)
    assert folder == tmp_path / "ADEChallengeData2016"
    assert said[-1] == f"ready: 1 train, 1 val pictures; use data.root={folder}"
    assert [file.name for file in tmp_path.iterdir()] == ["ADEChallengeData2016"]
    prepare("ade20k", tmp_path, url=server.url, say=said.append)
    assert len(server.asked) == 1


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no download for 'coco'; known: ade20k"):
        prepare("coco", tmp_path)
