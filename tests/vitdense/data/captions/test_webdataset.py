"""Tar shards: read by offset, each sample once or drawn with replacement, damage and emptiness told with the shard."""

import http.server
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vitdense.contracts import DATA, Samples
from vitdense.data.captions.shards import expand, open_shard
from vitdense.data.captions.webdataset import DrawnSamples, ShardSamples, WebdatasetConfig
from vitdense.data.loader import train_loader
from vitdense.errors import DataError

from .conftest import build, jpeg, pairs, write_shard

Make = Callable[..., Path]
PATTERN = "shards/{0000..0002}.tar"


def shards(root: Path, train: object = PATTERN, **options: Any) -> ShardSamples:
    found = build("webdataset", root=str(root), train=train, **options)
    assert isinstance(found, ShardSamples)
    return found


def captions(samples: Samples, epoch: int = 0) -> list[str]:
    return [samples[epoch, index]["captions"][0] for index in range(len(samples))]


def test_patterns_unfold(tmp_path: Path) -> None:
    for name in ("a-08.tar", "a-09.tar", "a-10.tar", "b-09.tar"):
        (tmp_path / name).touch()

    def names(*patterns: str) -> list[str]:
        return [Path(place).name for place in expand(patterns, tmp_path)]

    assert names("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert names("{a,b}-09.tar") == ["a-09.tar", "b-09.tar"]
    assert names("a-*.tar", "a-09.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand("https://x.org/{0..1}.tar", tmp_path) == ["https://x.org/0.tar", "https://x.org/1.tar"]
    with pytest.raises(DataError, match=r"no such shards: .*a-11\.tar"):
        names("a-{10..11}.tar")
    with pytest.raises(DataError, match=r"c\*\.tar \(a glob\)"):
        names("c*.tar")


def test_every_sample_of_every_shard_comes_once(make_shards: Make) -> None:
    samples = shards(make_shards())
    assert captions(samples) == [f"caption {number}" for number in range(15)]
    assert samples[0, 7]["id"] == "0001.tar/000007"
    red = [int(samples[0, index]["image"][0].float().mean().round()) for index in range(15)]
    assert all(abs(value - 10 * number) <= 3 for number, value in enumerate(red))
    assert samples.audit() == []


@pytest.mark.parametrize("mix", [None, 2])
def test_an_epoch_of_the_loader_has_every_sample_once_and_resumes_bit_for_bit(
    make_shards: Make, mix: int | None
) -> None:
    config = DATA.create(
        "webdataset",
        {"root": str(make_shards()), "train": PATTERN, "size": 16, "batch_size": 5, "workers": 0, "mix": mix},
    )
    whole = list(train_loader(config.build("train"), config, seed=3, start_step=0, num_steps=6))
    for epoch in range(2):
        ids = [name for batch in whole[3 * epoch : 3 * epoch + 3] for name in batch["ids"]]
        assert len(set(ids)) == 15
    later = list(train_loader(config.build("train"), config, seed=3, start_step=2, num_steps=4))
    for first, second in zip(whole[2:], later, strict=True):
        assert first["ids"] == second["ids"]
        assert first["captions"] == second["captions"]
        assert torch.equal(first["images"], second["images"])


def test_an_order_mixes_so_many_shards_at_a_time(make_shards: Make) -> None:
    samples = shards(make_shards(count=4), "shards/*.tar", mix=2)
    order = list(samples.order(0, 0) or ())
    assert sorted(order) == list(range(20))
    halves = [{index // 5 for index in half} for half in (order[:10], order[10:])]
    assert [len(half) for half in halves] == [2, 2]
    assert not halves[0] & halves[1]
    assert order != list(samples.order(0, 1) or ())
    assert order == list(samples.order(0, 0) or ())


@pytest.mark.parametrize("mix", [None, 2])
def test_draws_with_replacement_depend_on_seed_epoch_and_index_alone(make_shards: Make, mix: int | None) -> None:
    options: dict[str, Any] = {"resampled": True, "train_size": 200, "mix": mix}
    samples, again = (build("webdataset", root=str(make_shards()), train=PATTERN, **options) for _ in range(2))
    assert isinstance(samples, DrawnSamples)
    assert len(samples) == 200
    drawn = captions(samples)
    assert again[0, 150]["captions"] == [drawn[150]]
    assert drawn == captions(samples)
    assert drawn != captions(samples, epoch=1)
    counts = Counter(drawn)
    assert max(counts.values()) > 1
    assert len(counts) == 15 if mix is None else len(counts) in (5, 10)


def test_resampled_needs_a_size() -> None:
    with pytest.raises(ValueError, match="resampled and train_size go together"):
        WebdatasetConfig(train="x.tar", resampled=True)


def test_captions_come_from_a_text_or_a_field_of_json(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "a.tar",
        {
            "x/0.jpg": jpeg(0),
            "x/0.json": json.dumps({"caption": "of json"}).encode(),
            "x/0.txt": b"of text\n",
            "x/1.json": json.dumps({"caption": ["one", "two"]}).encode(),
            "x/1.webp": jpeg(1, form="WEBP"),
            "x/2.JPEG": jpeg(2),
            "x/2.cls": b"3",
            "x/2.json": json.dumps({"caption": "of json"}).encode(),
        },
    )
    samples = build("webdataset", "val", root=str(tmp_path), val="a.tar")
    assert [samples[0, index]["captions"] for index in range(3)] == [["of text"], ["one", "two"], ["of json"]]


def test_samples_without_a_picture_or_a_caption_are_counted(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", pairs(0, 2) | {"7.jpg": jpeg(1), "8.txt": b"x", "9.jpg": jpeg(2), "9.json": b"{}"})
    samples = shards(tmp_path, "a.tar")
    assert len(samples) == 2
    facts = samples.survey().to_json()
    assert facts["filtered"] == {"samples without a caption": 2, "samples without a picture": 1}
    assert facts["faults"] == []


def test_a_shard_without_any_pair_says_what_it_holds(tmp_path: Path) -> None:
    write_shard(tmp_path / "good.tar", pairs(0, 2))
    write_shard(tmp_path / "bad.tar", {f"{n}.{suffix}": b"x" for n in range(3) for suffix in ("jpg", "cls")})
    told = r"bad\.tar: none of its 3 samples has a picture .*; it holds 3 of '\.cls \+ \.jpg'"
    with pytest.raises(DataError, match=told):
        shards(tmp_path, "*.tar")
    kept = shards(tmp_path, "*.tar", on_bad_sample="skip")
    assert len(kept) == 2
    assert "bad.tar: none of its 3 samples" in kept.audit()[0]
    with pytest.raises(DataError, match=told):
        shards(tmp_path, "bad.tar", on_bad_sample="skip")
    drawn = build("webdataset", root=str(tmp_path), train="bad.tar", resampled=True, train_size=5)
    with pytest.raises(DataError, match=told):
        drawn[0, 0]


def cut_short(path: Path, kept: int) -> None:
    """`kept` bytes from the start, or all but so many of those before the padding to 10,240 bytes."""
    content = path.read_bytes()
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512 + 1024
    path.write_bytes(content[: kept if kept > 0 else end + kept])


@pytest.mark.parametrize("lost", [1, 600, 1024, 1024 + 200, 1024 + 512, 1024 + 700, 5000])
def test_a_truncated_tar_is_named_and_its_whole_samples_are_kept(tmp_path: Path, lost: int) -> None:
    path = write_shard(tmp_path / "a.tar", pairs(0, 6))
    cut_short(path, -lost)
    samples = shards(tmp_path, "a.tar")
    faults = samples.audit()
    assert captions(samples) == [f"caption {number}" for number in range(len(samples))]
    if lost <= 512:  # half of the end mark is enough
        assert faults == []
        assert len(samples) == 6
    else:
        assert len(faults) == 1
        assert "a.tar: " in faults[0]
        assert "cut off" in faults[0] or "damaged" in faults[0]
        padding = 512 - len(b"caption 5")
        assert len(samples) == 6 if lost <= 1024 + padding else 0 < len(samples) < 6


@pytest.mark.parametrize("kept", [400, 700, 1500])
def test_a_tar_that_ends_before_its_first_sample_is_named(tmp_path: Path, kept: int) -> None:
    cut_short(write_shard(tmp_path / "a.tar", pairs(0, 6)), kept)
    with pytest.raises(DataError, match=r"a\.tar: none of its [01] samples .*(cut off|damaged)"):
        shards(tmp_path, "a.tar")


def test_damage_in_the_middle_is_found(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", pairs(0, 6))
    content = bytearray(path.read_bytes())
    place = content.index(b"000003.jpg")
    content[place : place + 512] = b"\xaa" * 512
    path.write_bytes(content)
    samples = shards(tmp_path, "a.tar")
    assert len(samples) == 3
    assert "a.tar: " in samples.audit()[0]


def test_other_files_are_no_tars(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"x" * 3000)
    (tmp_path / "b.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.tar: none of its 0 samples .*no tar"):
        shards(tmp_path, "a.tar")
    with pytest.raises(DataError, match=r"b\.tar: .*the file is empty"):
        shards(tmp_path, "b.tar")


@pytest.mark.parametrize(
    ("said", "told"), [(b" \n", "the caption is empty"), (b"caf\xe9", "the caption is not UTF-8: b'caf")]
)
def test_a_bad_caption_is_named_with_shard_and_key(tmp_path: Path, said: bytes, told: str) -> None:
    write_shard(tmp_path / "a.tar", pairs(0, 1) | {"k.jpg": jpeg(1), "k.txt": said, "l.jpg": b"x", "l.txt": b"y"})
    samples = shards(tmp_path, "a.tar")
    with pytest.raises(DataError, match=f"a.tar: k: {told}"):
        samples[0, 1]
    with pytest.raises(DataError, match=r"a\.tar: l: not a picture"):
        samples[0, 2]
    faults = samples.audit()
    assert len(faults) == 2
    assert told in faults[0]


def test_an_index_is_kept_in_the_cache_and_made_anew_when_the_shard_changes(make_shards: Make) -> None:
    root = make_shards(count=1)
    cache = root / "cache"
    place = str(root / "shards" / "0000.tar")
    first = open_shard(place, cache, "caption")
    kept = list(cache.glob("*.npz"))
    assert len(kept) == 1
    again = open_shard(place, cache, "caption")
    assert again.keys.tolist() == first.keys.tolist()
    assert again.read(2) == first.read(2)
    kept[0].write_bytes(b"half a file")
    assert len(open_shard(place, cache, "caption")) == 5
    write_shard(Path(place), pairs(0, 3))
    assert len(open_shard(place, cache, "caption")) == 3


@pytest.fixture
def served(make_shards: Make) -> Iterator[tuple[str, list[str], dict[str, int]]]:
    """The shards over HTTP: the address, what was asked for, and how often a path breaks off in the middle."""
    root = make_shards()
    asked: list[str] = []
    breaks: dict[str, int] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            path = root / self.path.lstrip("/")
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            broken = breaks.get(self.path, 0)
            breaks[self.path] = broken - 1
            self.wfile.write(content[:100] if broken > 0 else content)

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked, breaks
    server.shutdown()
    server.server_close()


def test_remote_shards_are_fetched_once_whole_and_again_after_a_break(
    served: tuple[str, list[str], dict[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked, breaks = served
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    breaks["/shards/0001.tar"] = 1
    options: dict[str, Any] = {"train": f"{url}/{PATTERN}", "cache": str(tmp_path / "cache")}
    samples = build("webdataset", **options)
    assert captions(samples) == [f"caption {number}" for number in range(15)]
    assert Counter(asked) == {"/shards/0000.tar": 1, "/shards/0001.tar": 2, "/shards/0002.tar": 1}
    assert not list((tmp_path / "cache").glob("*.part"))
    asked.clear()
    assert len(build("webdataset", **options)) == 15
    assert asked == []


def test_draws_fetch_on_demand(served: tuple[str, list[str], dict[str, int]], tmp_path: Path) -> None:
    url, asked, _ = served
    options: dict[str, Any] = {"cache": str(tmp_path / "cache"), "resampled": True, "train_size": 50}
    samples = build("webdataset", train=f"{url}/{PATTERN}", **options)
    assert asked == []
    assert len(captions(samples)) == 50
    assert len(asked) == 3
    gone = build("webdataset", train=f"{url}/gone.tar", **options)
    with pytest.raises(DataError, match=r"gone\.tar: the server answers 404"):
        gone[0, 0]
    with pytest.raises(DataError, match=r"need data\.cache=FOLDER"):
        build("webdataset", train=f"{url}/{PATTERN}")
