"""Frames by their number: the right ones, upright, of any rate and codec, and an error for what is damaged."""

import wave
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitdense.data.clips.decoding import Video
from vitdense.errors import DataError

Make = Callable[..., Path]
NumberOf = Callable[[Any], int]
GROUPS = {"g": "8", "bf": "2", "qp": "0"}


def numbers(path: Path, wanted: list[int], number_of: NumberOf) -> list[tuple[int, int]]:
    with Video(path) as video:
        video.times()
        return [(number, number_of(frame)) for number, frame in video.frames(wanted)]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("x.mp4", "libx264", GROUPS),
        ("x.mkv", "libx264", GROUPS),
        ("x.avi", "mpeg4", {"g": "8", "qscale": "1"}),
        ("bframes.avi", "mpeg4", {"g": "8", "bf": "2", "qscale": "1"}),
        ("x.webm", "libvpx-vp9", {"g": "8", "lossless": "1"}),
        ("x.mpg", "mpeg1video", {"g": "8", "bf": "2", "qscale": "1"}),
        ("x.ts", "libx264", GROUPS),
        ("open.mp4", "libx265", {"x265-params": "keyint=8:open-gop=1:bframes=3:log-level=none:lossless=1"}),
    ],
)
def test_frames_are_the_ones_that_were_asked_for(
    tmp_path: Path, make_video: Make, number_of: NumberOf, name: str, codec: str, options: dict[str, str]
) -> None:
    path = make_video(tmp_path / name, 40, codec=codec, options=options)
    for wanted in ([0], [39], [3, 9, 10, 31], [17, 18], list(range(40))):
        assert numbers(path, wanted, number_of) == [(number, number) for number in wanted]


def test_a_frame_that_is_asked_for_twice_comes_once(tmp_path: Path, make_video: Make, number_of: NumberOf) -> None:
    assert numbers(make_video(tmp_path / "x.mp4", 10), [7, 2, 7], number_of) == [(2, 2), (7, 7)]


def test_times_are_those_of_a_varying_rate(tmp_path: Path, make_video: Make, number_of: NumberOf) -> None:
    times = [0, 40, 80, 500, 1000, 1010, 1020, 2000]
    path = make_video(tmp_path / "vfr.mkv", 8, times=times, options=GROUPS)
    with Video(path) as video:
        np.testing.assert_allclose(video.times(), np.array(times) / 1000, atol=1e-3)
        assert [number_of(frame) for _, frame in video.frames([3, 6])] == [3, 6]


def test_one_frame_is_a_video(tmp_path: Path, make_video: Make, number_of: NumberOf) -> None:
    path = make_video(tmp_path / "one.mp4", 1)
    assert numbers(path, [0], number_of) == [(0, 0)]
    with Video(path) as video:
        assert len(video.times()) == 1


@pytest.mark.parametrize(("turn", "corner"), [(0, (0, 0)), (90, (0, -1)), (180, (-1, -1)), (270, (-1, 0))])
def test_a_phones_rotation_is_applied(tmp_path: Path, make_video: Make, turn: int, corner: tuple[int, int]) -> None:
    """The matrix of a track says where the picture's axes go (ISO/IEC 14496-12, 8.3.2)."""
    path = make_video(tmp_path / "turned.mp4", 3)
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    cos, sin = round(np.cos(np.radians(turn))), round(np.sin(np.radians(turn)))
    matrix = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    content[place : place + 36] = b"".join((value & 0xFFFFFFFF).to_bytes(4, "big") for value in matrix)
    path.write_bytes(content)
    with Video(path) as video:
        video.times()
        ((_, frame),) = video.frames([1])
    assert frame.shape == ((48, 64, 3) if turn % 180 == 0 else (64, 48, 3))
    assert frame[corner].min() > 200
    assert sum(int(frame[place].min() > 200) for place in ((0, 0), (0, -1), (-1, 0), (-1, -1))) == 1


@pytest.mark.parametrize("pixel_format", ["yuv444p", "gray", "yuv422p10le"])
def test_any_pixel_format_becomes_rgb(tmp_path: Path, make_video: Make, number_of: NumberOf, pixel_format: str) -> None:
    path = make_video(tmp_path / "x.mkv", 6, codec="ffv1", pixel_format=pixel_format)
    assert numbers(path, [4], number_of) == [(4, 4)]


def test_a_video_with_alpha_is_read_without_it(tmp_path: Path, make_video: Make) -> None:
    path = make_video(tmp_path / "x.mkv", 3, codec="ffv1", pixel_format="bgra")
    with Video(path) as video:
        video.times()
        assert [frame.shape for _, frame in video.frames([1])] == [(48, 64, 3)]


def read_all(path: Path) -> None:
    with Video(path) as video:
        list(video.frames(range(len(video.times()))))


def test_what_can_not_be_read_is_named(tmp_path: Path, make_video: Make) -> None:
    with pytest.raises(DataError, match=r"none\.mp4: no such file"):
        read_all(tmp_path / "none.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.mp4: the file is empty"):
        read_all(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("no video\n" * 50)
    with pytest.raises(DataError, match=r"text\.mp4: damaged video, or none"):
        read_all(tmp_path / "text.mp4")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "NONE"))
        sound.writeframes(b"\0" * 8000)
    with pytest.raises(DataError, match=r"sound\.wav: holds no video stream"):
        read_all(tmp_path / "sound.wav")
    whole = make_video(tmp_path / "whole.mp4", 30).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"half\.mp4: damaged video"):
        read_all(tmp_path / "half.mp4")


def test_a_header_without_frames_is_no_video(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "nothing.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()
    with pytest.raises(DataError, match=r"nothing\.mkv: "):
        read_all(path)


def test_bytes_that_flip_never_end_the_process_and_always_name_the_file(tmp_path: Path, make_video: Make) -> None:
    whole = make_video(tmp_path / "whole.mp4", 30, options=GROUPS).read_bytes()
    generator = np.random.default_rng(0)
    told = 0
    for index in range(40):
        content = bytearray(whole)
        for place in generator.integers(len(content), size=20):
            content[place] ^= int(generator.integers(1, 256))
        path = tmp_path / f"flipped{index}.mp4"
        path.write_bytes(content)
        with suppress(DataError):
            read_all(path)
            continue
        with pytest.raises(DataError, match=path.name):
            read_all(path)
        told += 1
    assert told > 5


def test_memory_stays_flat_over_many_clips(tmp_path: Path, make_video: Make) -> None:
    path = make_video(tmp_path / "x.mp4", 30, size=(240, 320), options=GROUPS)

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 2**20

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    for round_ in range(120):
        with Video(path) as video:
            video.times()
            list(video.frames([2, 12, 22]))
        if round_ == 39:
            before = resident()
    assert resident() - before < 8


@pytest.mark.parametrize("name", ["av1_video.mkv", "bikes.mp4", "h265_video.mp4", "k400_arm_wrestling.mp4",
    "mmaction_test.mp4", "nasa_13013.mp4", "v_ApplyEyeMakeup_g01_c01.avi", "v_BaseballPitch_g01_c01.avi"])  # fmt: skip
def test_real_files_give_the_frames_that_counting_gives(shared_data: Path, name: str) -> None:
    """Those of a whole decoding, number by number."""
    pytest.importorskip("av")
    path = shared_data / "video_misc" / name
    with Video(path) as video:
        count = len(video.times())
        wanted = sorted({0, 1, count // 3, count // 2, count - 2, count - 1})
        found = dict(video.frames(wanted))
        for number, frame in enumerate(video.every()):
            if number in found:
                np.testing.assert_array_equal(found.pop(number), frame)
    assert number + 1 == count
    assert not found
