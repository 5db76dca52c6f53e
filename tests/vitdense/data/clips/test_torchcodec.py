"""torchcodec's frames are PyAV's, bit for bit, whatever the codec; without it a message says what to do."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdense.contracts import DATA
from vitdense.data.clips.decoding import Video
from vitdense.data.clips.torchcodec import TorchcodecVideo
from vitdense.errors import DataError, UserError

Make = Callable[..., Path]
GROUPS = {"g": "8", "bf": "2", "qp": "0"}


@pytest.fixture(scope="module")
def loadable(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where torchcodec is absent, or has no FFmpeg."""
    decoders = pytest.importorskip("torchcodec.decoders")
    path = tmp_path_factory.mktemp("none") / "x.mp4"
    path.write_bytes(b"no video")
    try:
        decoders.VideoDecoder(str(path))
    except RuntimeError as fault:
        if "load libtorchcodec" in str(fault):
            pytest.skip("torchcodec finds no FFmpeg")


def frames(video: Video, wanted: list[int]) -> list[tuple[int, Any]]:
    with video:
        count = len(video.times())
        return [(number, frame.copy()) for number, frame in video.frames([each for each in wanted if each < count])]


@pytest.mark.usefixtures("loadable")
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("x.mp4", "libx264", GROUPS),
        ("x.mkv", "libx264", GROUPS),
        ("bframes.avi", "mpeg4", {"g": "8", "bf": "2", "qscale": "1"}),
        ("x.webm", "libvpx-vp9", {"g": "8", "lossless": "1"}),
        ("x.mpg", "mpeg1video", {"g": "8", "bf": "2", "qscale": "1"}),
    ],
)
def test_frames_are_pyavs(tmp_path: Path, make_video: Make, name: str, codec: str, options: dict[str, str]) -> None:
    path = make_video(tmp_path / name, 40, codec=codec, options=options)
    wanted = [0, 3, 9, 10, 31, 39]
    for ours, theirs in zip(frames(TorchcodecVideo(path), wanted), frames(Video(path), wanted), strict=True):
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.usefixtures("loadable")
def test_frames_of_real_files_are_pyavs(shared_data: Path) -> None:
    paths = [path for path in (shared_data / "video_misc").iterdir() if path.suffix in {".mp4", ".mkv", ".avi"}]
    assert paths
    for path in paths:
        for ours, theirs in zip(frames(TorchcodecVideo(path), [5, 70]), frames(Video(path), [5, 70]), strict=True):
            assert ours[0] == theirs[0]
            np.testing.assert_array_equal(ours[1], theirs[1], err_msg=path.name)


@pytest.mark.usefixtures("loadable")
def test_a_data_set_takes_either(tmp_path: Path, make_video: Make) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        make_video(tmp_path / name / "x.mp4", 20, codec="libx264", options=GROUPS)
    options = {"root": str(tmp_path), "frames": 4, "size": 32}
    ours = DATA.create("clip_folder", {**options, "decoder": "torchcodec"}).build("train")
    theirs = DATA.create("clip_folder", options).build("train")
    assert ours[1, 1]["image"].equal(theirs[1, 1]["image"])


@pytest.mark.usefixtures("loadable")
def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(b"no video at all")
    with pytest.raises(DataError, match=r"x\.mp4: damaged video"):
        frames(TorchcodecVideo(path), [0])


def test_without_it_a_message_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(UserError, match=r"data\.decoder is torchcodec, which can't be loaded .* or set pyav"):
        TorchcodecVideo(tmp_path / "x.mp4")
