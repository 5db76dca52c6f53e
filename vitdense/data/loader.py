"""Batches for training and evaluation: torch's DataLoader over our samplers, with one policy for samples that fail."""

import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitdense.contracts import Batch, DataConfig, Sample, Samples, Tokenizer
from vitdense.data.samplers import EvalSampler, Key, StepSampler
from vitdense.errors import DataError, UserError

MAX_FAILURES = 100
"""So many samples in a row that can't be read stop a run even where on_bad_sample is "skip"."""


Canvas = Callable[[tuple[int, int]], tuple[int, int] | None]
"""From the largest (height, width) of a batch to the size that it is padded to, None for just that."""


@dataclass(frozen=True)
class Fault:
    """A user's error on its way out of a worker: torch would wrap a raised one in the worker's traceback."""

    kind: type[UserError]
    message: str


def train_loader(
    samples: Samples,
    config: DataConfig,
    *,
    seed: int,
    start_step: int,
    num_steps: int,
    accumulate: int = 1,
    rank: int = 0,
    world_size: int = 1,
    tokenize: Tokenizer | None = None,
) -> "Batches":
    """`accumulate` micro-batches for each of the `num_steps` steps from `start_step` on; `tokenize` is for captions."""
    sampler = StepSampler(
        len(samples),
        batch_size=config.batch_size,
        seed=seed,
        start_step=start_step,
        num_steps=num_steps,
        accumulate=accumulate,
        rank=rank,
        world_size=world_size,
        order=samples.order,
    )
    made = partial(collate, canvas=config.canvas, tokenize=tokenize)
    return Batches(Guarded(samples, config.on_bad_sample, replace=True), sampler, config.workers, made)


def eval_loader(
    samples: Samples,
    config: DataConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    limit: int | None = None,
    tokenize: Tokenizer | None = None,
) -> "Batches":
    """Every sample (or `limit` of them, evenly spread) once over all ranks; it can be iterated again and again."""
    sampler = EvalSampler(
        len(samples), batch_size=config.eval_batch_size, rank=rank, world_size=world_size, limit=limit
    )
    made = partial(collate, tokenize=tokenize)
    return Batches(Guarded(samples, config.on_bad_sample, replace=False), sampler, config.workers, made)


class Batches:
    """Iterates over batches; a fault found in a worker is raised here, in the main process, with its message alone."""

    def __init__(
        self,
        samples: "Guarded",
        sampler: StepSampler | EvalSampler,
        workers: int,
        together: Callable[[Sequence[Sample]], Batch],
    ) -> None:
        self.sampler = sampler
        self._running: Generator[Batch, None, None] | None = None
        self._may_be_empty = not samples.replace and not samples.stop
        self._loader: DataLoader[Batch | Fault] = DataLoader(
            samples,  # type: ignore[arg-type]  # torch types a loader by its samples, not by what collate gives
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=partial(_collate_or_fault, together=together),
            worker_init_fn=_start_worker,
            pin_memory=torch.cuda.is_available(),
            # Its own generator: DataLoader would draw from the global one, and a resumed run would differ.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        self._running = self._checked()
        return _without_empty(self._running) if self._may_be_empty else self._running

    def close(self) -> None:
        """Ends the workers of an iteration that was left midway: they hear no signals, and a process that ends by a
        fault would wait for them for ever."""
        if self._running is not None:
            self._running.close()

    def _checked(self) -> Generator[Batch, None, None]:
        for batch in self._loader:
            if isinstance(batch, Fault):
                raise batch.kind(batch.message)
            yield batch


def _without_empty(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Batches that hold a picture; what the empty ones skipped is told by a neighbour, so that no count is lost."""
    held: Batch | None = None
    skipped: list[str] = []
    for batch in batches:
        skipped += batch["skipped"]
        if not batch["ids"]:
            continue
        if held is not None:
            yield held
        batch["skipped"], skipped = skipped, []
        held = batch
    if held is not None:
        held["skipped"] += skipped
        yield held
    elif skipped:
        raise DataError(f"no sample can be read; the first: {skipped[0]}")


class Guarded(Dataset[Sample | Fault]):
    """Samples under a policy: "stop" hands a fault on; "skip" takes another sample in training (chosen by epoch and
    index alone), and leaves the picture out in evaluation, where another one would be counted twice."""

    def __init__(self, samples: Samples, on_bad_sample: str, *, replace: bool) -> None:
        self.samples, self.stop, self.replace = samples, on_bad_sample == "stop", replace

    def __getitem__(self, key: Key) -> Sample | Fault:
        try:
            return self.samples[key]
        except DataError as fault:
            if self.stop:
                return Fault(DataError, str(fault))
            skipped = [str(fault)]
        return self._another(key, skipped) if self.replace else Sample(skipped=skipped)

    def _another(self, key: Key, skipped: list[str]) -> Sample | Fault:
        generator = np.random.default_rng(key)
        while len(skipped) < MAX_FAILURES:
            try:
                sample = self.samples[key[0], int(generator.integers(len(self.samples)))]
            except DataError as fault:
                skipped.append(str(fault))
            else:
                sample["skipped"] = skipped
                return sample
        return Fault(DataError, f"{MAX_FAILURES} samples in a row can't be read; the last: {skipped[-1]}")


def collate(samples: Sequence[Sample], canvas: Canvas | None = None, tokenize: Tokenizer | None = None) -> Batch:
    """Samples -> images (B, C, H, W), masks or depth (B, H, W), targets, labels, captions and their tokens, sizes;
    those with only `skipped` are left out. Clips and volumes have one axis more, and of several views each is an image.

    Pictures of several sizes are padded at the right and bottom where they come with targets, and `extents` says how
    far each one reaches. Where `canvas` gives a size, batches of targets have it, and always have extents.
    """
    skipped = [reason for sample in samples for reason in sample.get("skipped", [])]
    samples = [sample for sample in samples if "image" in sample]
    images = [sample["image"] for sample in samples]
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    targets = [sample["target"] for sample in samples if "target" in sample]
    if not targets:
        _check_equal(images)
    batch = Batch(ids=[sample["id"] for sample in samples], sizes=sizes, skipped=skipped)
    if targets:
        batch["targets"] = targets
    fixed = canvas(_largest(sizes)) if canvas is not None and targets else None
    if fixed is not None or len(set(sizes)) > 1:
        batch["extents"] = torch.tensor(sizes)
        height, width = fixed or _largest(sizes)
        batch["images"] = _padded(images, (height, width))
    elif samples:
        _stack(images, batch)
    if samples and "mask" in samples[0]:
        batch["masks"] = torch.stack([sample["mask"] for sample in samples])
    if samples and "depth" in samples[0]:
        batch["depth"] = torch.stack([sample["depth"] for sample in samples])
    if samples and "label" in samples[0]:
        batch["labels"] = torch.tensor([sample["label"] for sample in samples])
    if samples and "captions" in samples[0]:
        batch["captions"] = [sample["captions"] for sample in samples]
        if tokenize is not None:
            batch["tokens"] = tokenize([caption for captions in batch["captions"] for caption in captions])
    return batch


def _stack(images: list[Tensor], batch: Batch) -> None:
    """Write the images, and how many views of each clip they are."""
    batch["images"] = torch.stack(images)
    if images[0].ndim == 5:
        batch["views"] = len(images[0])
        batch["images"] = batch["images"].flatten(0, 1)  # (B * V, C, T, H, W)


def _check_equal(images: Sequence[Tensor]) -> None:
    """Raise UserError unless all are of one size, clips of one length, and with as many channels."""
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) < 2:
        return
    kind = "pictures" if len(shapes[0]) == 3 else "clips or volumes"
    if len({shape[1:] for shape in shapes}) < 2:
        raise UserError(f"{kind} with different numbers of channels in one batch ({[shape[0] for shape in shapes]})")
    found = ", ".join("x".join(map(str, shape[1:])) for shape in shapes[:3])
    raise UserError(
        f"{kind} of different sizes in one batch ({found}); set data.eval_batch_size=1 for evaluation,"
        " and data.crop for training"
    )


def _padded(images: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """B pictures (C, h, w) -> (B, C, H, W), each at the top left: written once, into memory that is zero already."""
    padded = images[0].new_zeros((len(images), len(images[0]), *size))
    for place, image in zip(padded, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return padded


def _largest(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    height, width = (max(side) for side in zip(*sizes, strict=True))
    return height, width


def _collate_or_fault(samples: list[Sample | Fault], together: Callable[[Sequence[Sample]], Batch]) -> Batch | Fault:
    for sample in samples:
        if isinstance(sample, Fault):
            return sample
    try:
        return together([sample for sample in samples if not isinstance(sample, Fault)])
    except UserError as error:
        return Fault(type(error), str(error))


def _start_worker(worker: int) -> None:
    """One thread (OpenCV would start one for every core), and no ear for signals: the main process ends its workers,
    also when a terminal or a batch system signals the whole group.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
