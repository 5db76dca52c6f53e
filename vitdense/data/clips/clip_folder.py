"""`clip_folder`: videos with one class each, named by their folder or by a list."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vitdense.contracts import DATA, Sample, Samples, Split
from vitdense.data.audit import THREADS, Size, shorten
from vitdense.data.boxes.records import Fault, short
from vitdense.data.captions.files import Cut
from vitdense.data.classes.audit import ClassAudit
from vitdense.data.classes.class_folder import check_distinct
from vitdense.data.clips.decoding import SUFFIXES, Picture, Video
from vitdense.data.clips.lists import Entry, read_list
from vitdense.data.clips.sampling import Numbers, resample
from vitdense.data.clips.torchcodec import TorchcodecVideo
from vitdense.data.clips.views import ClipViewConfig, training_clip, validation_clips
from vitdense.errors import DataError

LAYOUT = """expected
  ROOT/train/CLASS/x.mp4, ROOT/val/CLASS/x.mp4 (or test)
  or ROOT/CLASS/x.mp4             all of it for both splits, or cut by data.val_share or data.val_every
  or ROOT/train.csv, ROOT/val.csv columns path and label, perhaps start_frame and end_frame, set by data.train, data.val
  or ROOT/train.txt               lines of a path and a class, with names in data.class_names=FILE"""


@DATA.register("clip_folder")
class ClipFolderConfig(ClipViewConfig, Cut):
    """`train` and `val` are folders of folders, or lists (csv, tsv, jsonl, json, txt), below `root`; classes are the
    lines of `class_names`, or the sorted names in `train`, or in `val` where there is no `train`.

    `decoder` is who decodes; the frames are the same.
    `shuffle_frames` lays the frames of each clip in a random order: what a model still knows, it knows without motion.
    """

    train: str | None = None
    val: str | None = None
    path_key: str | None = None
    label_key: str | None = None
    class_names: str | None = None
    decoder: Literal["pyav", "torchcodec"] = "pyav"
    shuffle_frames: bool = False

    def open(self, path: Path) -> Video:
        """A video file, to be read in a `with` block."""
        return TorchcodecVideo(path) if self.decoder == "torchcodec" else Video(path)

    def build(self, split: Split) -> "ClipSamples":
        """The samples of a split; raises DataError where it has none, or where classes can't be told apart."""
        if self.root is None:
            raise DataError(f"data 'clip_folder' needs data.root=ROOT; {LAYOUT}")
        place = self._place(split)
        entries, names, faults = self._read(place)
        known = self._classes(split, place, names)
        if self.cuts and self.val is None:
            entries = [each for each in entries if self.belongs(each.id, split)]
        strange = sorted({entry.label for entry in entries} - set(known))
        if strange:
            told = ", ".join(map(short, strange[:5]))
            raise DataError(f"{place}: classes that the training split, or data.class_names, does not have: {told}")
        if not entries:
            raise DataError(f"{place}: no videos in the split {split!r}; {LAYOUT}")
        return ClipSamples(self, split, known, entries, faults)

    def _place(self, split: Split) -> Path:
        """The folder or list of a split; ROOT itself where it has no folders of splits."""
        root, given = Path(str(self.root)), self.train if split == "train" else self.val
        if split == "val" and given is None and self.cuts:
            return self._place("train")
        place = root if given is None else root / given
        if not place.exists():
            raise DataError(f"{place}: no such folder or list; {LAYOUT}")
        if given is not None or not any((root / name).is_dir() for name in ("train", "val", "test")):
            return place
        names = ("train",) if split == "train" else ("val", "test")
        found = next((root / name for name in names if (root / name).is_dir()), None)
        if found is None:
            raise DataError(f"{root}: no folder of the split {split!r}; {LAYOUT}")
        return found

    def _classes(self, split: Split, place: Path, found: Sequence[str]) -> tuple[str, ...]:
        if self.class_names is not None:
            return _named_classes(Path(str(self.root)) / self.class_names)
        names = found
        if split == "val":
            try:
                decides = self._place("train")
            except DataError:
                decides = place
            if decides != place:
                names = self._read(decides)[1]
        if not names:
            raise DataError(f"{place}: no classes; {LAYOUT}")
        check_distinct(place, names)
        return tuple(sorted(names))

    def _read(self, place: Path) -> tuple[list[Entry], list[str], list[Fault]]:
        """Videos, the names of all classes, and faults."""
        if place.is_dir():
            return _folders(place)
        names = None if self.class_names is None else _named_classes(Path(str(self.root)) / self.class_names)
        return read_list(place, Path(str(self.root)), self.path_key, self.label_key, names)


class ClipSamples(Samples):
    """One split: training draws a clip by (seed, epoch, index), validation gives `views` x `crops` of each video."""

    palette: tuple[tuple[int, int, int], ...] = ()

    def __init__(
        self,
        config: ClipFolderConfig,
        split: Split,
        classes: tuple[str, ...],
        entries: Sequence[Entry],
        faults: Sequence[Fault],
    ) -> None:
        self.config, self.split, self.classes = config, split, classes
        self.labels = {name: label for label, name in enumerate(classes)}
        self.entries, self.faults = list(entries), list(faults)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        entry = self.entries[key[1]]
        generator = np.random.default_rng([self.config.seed, *(key if self.split == "train" else (0, key[1]))])
        with self.config.open(entry.path) as video:
            shown = _shown(video, entry, self.config.fps)
            if self.split == "train":
                numbers = [shown[self.config.training_frames(len(shown), generator)]]
            else:
                numbers = [shown[each] for each in self.config.validation_frames(len(shown))]
            if self.config.shuffle_frames:
                numbers = [generator.permutation(each) for each in numbers]
            image = self._image(video, numbers, generator)
        return Sample(id=entry.id, image=image, label=self.labels[entry.label])

    def _image(self, video: Video, numbers: list[Numbers], generator: np.random.Generator) -> torch.Tensor:
        """(3, T, H, W), or (V, 3, T, H, W) of several views."""
        if self.split == "train":
            return training_clip(_in_given_order(video, numbers[0]), self.config, generator)
        clips = [clip for each in numbers for clip in validation_clips(_in_given_order(video, each), self.config)]
        return clips[0] if len(clips) == 1 else torch.stack(clips)

    def audit(self, *, limit: int | None = None, report: Callable[[str], None] | None = None) -> list[str]:
        """Empty classes and bad rows, missing files, and of at most `limit` videos whether a frame can be decoded."""
        return self._audited(limit, report).faults

    def survey(self, report: Callable[[str], None] | None = None) -> ClassAudit:
        """The same with counts, of all videos."""
        return self._audited(None, report)

    def _audited(self, limit: int | None, report: Callable[[str], None] | None) -> ClassAudit:
        total = len(self)
        count = total if limit is None else min(limit, total)
        deep = {place * total // count for place in range(count)}
        audit, faults = ClassAudit(self.classes, total), list(self.faults)
        with ThreadPoolExecutor(THREADS) as pool:
            checked = pool.map(lambda index: self._inspect(index, index in deep), range(total))
            for index, found in enumerate(checked):
                if isinstance(found, Fault):
                    faults.append(found)
                elif found is not None:
                    audit.count(self.labels[self.entries[index].label], found)
                if report is not None and ((index + 1) % 100 == 0 or index + 1 == total):
                    report(f"{index + 1} of {total} videos")
        audit.faults = shorten(faults)
        return audit

    def _inspect(self, index: int, deep: bool) -> Fault | Size | None:
        """A fault, or the size of a frame where one is decoded."""
        entry = self.entries[index]
        if not entry.path.is_file():
            return Fault("missing videos", f"{entry.path}: no such file")
        if not deep:
            return None
        try:
            with self.config.open(entry.path) as video:
                shown = _shown(video, entry, self.config.fps)
                _, picture = next(video.frames([int(shown[len(shown) // 2])]))
        except DataError as fault:
            return Fault("unreadable videos", str(fault))
        return picture.shape[0], picture.shape[1]


def _shown(video: Video, entry: Entry, fps: float | None) -> NDArray[np.int64]:
    """Numbers of the frames that an entry is about, at `fps`."""
    times = video.times()
    if entry.start >= len(times):
        raise DataError(f"{entry.path}: starts at frame {entry.start} and has {len(times)}")
    times = times[entry.start : entry.end]
    numbers = np.arange(len(times)) if fps is None else resample(times - times[0], fps)
    return (numbers + entry.start).astype(np.int64)


def _in_given_order(video: Video, numbers: Numbers) -> Iterator[Picture]:
    """Frames in the order of their numbers as given, some perhaps several times."""
    listed = numbers.tolist()
    if listed == sorted(set(listed)):
        yield from (picture for _, picture in video.frames(listed))
        return
    pictures = dict(video.frames(listed))
    yield from (pictures[number] for number in listed)


def _folders(folder: Path) -> tuple[list[Entry], list[str], list[Fault]]:
    entries: list[Entry] = []
    faults: list[Fault] = []
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for path in classes:
        videos = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES)
        entries += [Entry(each.relative_to(folder).as_posix(), each, path.name) for each in videos]
        if not videos:
            faults.append(Fault("empty classes", f"{path}: no videos of this class"))
    return entries, [path.name for path in classes], faults


def _named_classes(path: Path) -> tuple[str, ...]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as fault:
        raise DataError(f"{path}: {fault.strerror}") from None
    check_distinct(path, names)
    return tuple(names)
