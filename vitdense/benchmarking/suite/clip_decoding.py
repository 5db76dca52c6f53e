"""Rows of the video pipeline: a clip of a file, decoded and brought to size, beside PyAV in a loop and torchcodec."""

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vitdense.benchmarking.rows import SEED, AbsentError, Conditions, Goal, Job, Outcome, Pair, Peer, Row
from vitdense.contracts import DATA, Samples

SIZE = (256, 340)
EVERY = 4
FRAMES = 16


@dataclass(frozen=True)
class Work:
    """A file of `length` frames, of which a clip of 16, four apart, begins at frame `start`; a frame in `group` can be
    decoded by itself. Clips end at 224 x 224."""

    length: int
    start: int
    group: int

    def made(self, conditions: Conditions) -> tuple[Path, int]:
        """The file's folder, and the number of the clip's first frame."""
        if conditions.tiny:
            return _folder(70, 8), 4
        return _folder(self.length, self.group), self.start


@cache
def _folder(length: int, group: int) -> Path:
    """ROOT/class/x.mp4: soft blobs that drift, which compress about as footage does."""
    try:
        import av
    except ImportError:
        raise AbsentError("PyAV is not installed") from None
    folder = Path(tempfile.mkdtemp(prefix="vitdense-benchmark-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "class").mkdir()
    coarse = torch.from_numpy(np.random.default_rng(SEED).random((1, 3, 24, 32)).astype(np.float32))
    height, width = SIZE
    canvas = F.interpolate(coarse, size=(height + 2 * length, width + 2 * length), mode="bicubic").clamp(0, 1)[0]
    pixels = (canvas * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    with av.open(str(folder / "class" / "x.mp4"), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"g": str(group), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(length):
            frame = np.ascontiguousarray(pixels[2 * number : 2 * number + height, number : number + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return folder


class OurClip(Job):
    """A sample of validation, of a list that names the frames."""

    def __init__(self, work: Work, conditions: Conditions) -> None:
        folder, start = work.made(conditions)
        name = f"from-{start}.csv"
        end = start + EVERY * (FRAMES - 1) + 1
        (folder / name).write_text(f"path,label,start_frame,end_frame\nclass/x.mp4,class,{start},{end}\n")
        options = {"train": name, "val": name, "frames": FRAMES, "frame_stride": EVERY, "size": 224, "short_side": 256}
        self.count = conditions.batch or 1
        self.samples: Samples = DATA.create("clip_folder", {"root": str(folder), **options}).build("val")

    def step(self) -> None:
        """A clip, or a batch of them."""
        self.outcome()

    def outcome(self) -> Outcome:
        """Pixels (B, 3, T, H, W)."""
        return {"map": torch.stack([self.samples[0, 0]["image"].float() for _ in range(self.count)])}


class TheirClip(Job):
    """Frames decoded from the first on, those of the clip kept, resized and cut."""

    def __init__(self, work: Work, conditions: Conditions) -> None:
        folder, start = work.made(conditions)
        self.path = folder / "class" / "x.mp4"
        self.wanted = range(start, start + EVERY * FRAMES, EVERY)
        self.count = conditions.batch or 1

    def step(self) -> None:
        """A clip, or a batch of them."""
        self.outcome()

    def outcome(self) -> Outcome:
        """Pixels (B, 3, T, H, W)."""
        return {"map": torch.stack([self._clip() for _ in range(self.count)])}

    def _clip(self) -> Tensor:
        from torchvision.transforms.v2 import functional

        clip = torch.from_numpy(np.stack(self._frames())).permute(0, 3, 1, 2)  # (T, 3, H, W)
        resized: Tensor = functional.resize(clip, [256], antialias=True)
        cut: Tensor = functional.center_crop(resized, [224])
        return cut.transpose(0, 1).contiguous().float()

    def _frames(self) -> list[NDArray[np.uint8]]:
        import av

        kept = []
        with av.open(str(self.path)) as container:
            stream: Any = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(stream)):
                if number in self.wanted:
                    kept.append(frame.to_ndarray(format="rgb24"))
                if number == self.wanted[-1]:
                    break
        return kept


class TorchcodecClip(TheirClip):
    """The same with frames by their number, which torchcodec seeks."""

    def __init__(self, work: Work, conditions: Conditions) -> None:
        super().__init__(work, conditions)
        try:
            self._frames()
        except (ImportError, RuntimeError) as fault:
            raise AbsentError(f"torchcodec does not load: {str(fault).splitlines()[0]}") from None

    def _frames(self) -> list[NDArray[np.uint8]]:
        from torchcodec.decoders import VideoDecoder

        decoder = VideoDecoder(str(self.path), dimension_order="NHWC", num_ffmpeg_threads=1)
        return list(decoder.get_frames_at(list(self.wanted)).data.numpy())


def _peer(name: str, package: str, theirs: type[TheirClip], work: Work) -> Peer:
    return Peer(
        name,
        package,
        lambda conditions: theirs(work, conditions),
        lambda conditions: Pair(OurClip(work, conditions), theirs(work, conditions)),
    )


def _row(name: str, summary: str, work: Work, note: str) -> Row:
    peers = (_peer("PyAV loop", "av", TheirClip, work), _peer("torchcodec", "torchcodec", TorchcodecClip, work))
    notes = ("Both decode with one thread, as each of many workers does, and end in the same pixels.", note)
    return Row(name, summary, lambda conditions: OurClip(work, conditions), peers, {"cpu": Goal(1.0, 1.0)}, notes)


ROWS = (
    _row(
        "clip_decoding",
        "16 frames, 4 apart, from the middle of a video of 10 s, H.264 of 340 x 256, to 224 x 224",
        Work(length=250, start=93, group=250),
        "Decoding can start at the first frame alone: what ours does besides is to look at the packets' times.",
    ),
    _row(
        "clip_decoding_seek",
        "16 frames, 4 apart, from frame 700 of a video of 40 s, H.264 of 340 x 256, to 224 x 224",
        Work(length=1000, start=700, group=50),
        "Decoding can start at each 50th frame: ours begins at the last one before the clip, the loop at the first.",
    ),
)
