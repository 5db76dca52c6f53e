"""Labels of whole slides from pooled features: a list of slides, their vectors, and what probes make of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitdense.data.boxes.records import Fault
from vitdense.data.captions.rows import choose_column, read_rows, text_fault
from vitdense.data.classes.class_folder import LABEL_KEYS
from vitdense.errors import DataError, UserError
from vitdense.metrics.accuracy import Accuracy
from vitdense.rasters.slides import Encoder, SlideConfig, embed_slide, pool
from vitdense.zero_shot.features import Features
from vitdense.zero_shot.probes import fit_linear_probe, nearest_logits

PATH_KEYS = ("file", "path", "slide", "file_name", "filename", "filepath")
TRAIN = "train"
FEATURES, TILES = "features.npz", "tiles"


@dataclass(frozen=True)
class Slide:
    """A raster, the name of its class, and its split, empty where the list has none."""

    path: Path
    label: str
    split: str


@dataclass(frozen=True)
class SlideFeatures:
    """vectors (N, C) of N slides with labels (N,), places in `names`, from so many tiles each."""

    slides: tuple[Slide, ...]
    names: tuple[str, ...]
    vectors: Tensor
    labels: Tensor
    tiles: tuple[int, ...]

    def of(self, split: str) -> Features:
        """Those of a split."""
        chosen = torch.tensor([slide.split == split for slide in self.slides])
        return Features(self.vectors[chosen], self.labels[chosen])

    def save(self, path: Path) -> None:
        """features (N, C), labels, classes, files, splits and tiles, as numpy reads them without pickle."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            features=self.vectors.numpy(),
            labels=self.labels.numpy(),
            classes=np.array(self.names),
            files=np.array([str(slide.path) for slide in self.slides]),
            splits=np.array([slide.split for slide in self.slides]),
            tiles=np.array(self.tiles),
        )


def read_slides(table: Path) -> list[Slide]:
    """The rows of a table with the columns file, label and perhaps split; files are beside it. DataError names a row
    that can't be used."""
    slides: list[Slide] = []
    columns: tuple[str, str] | None = None
    for row in read_rows(table):
        if isinstance(row, Fault):
            raise DataError(row.text)
        listed = list(row.values)
        columns = columns or (
            choose_column(table, None, PATH_KEYS, listed, "file"),
            choose_column(table, None, LABEL_KEYS, listed, "label"),
        )
        file, label = (str(row.values.get(column, "")).strip() for column in columns)
        for column, value in zip(columns, (file, label), strict=True):
            wrong = text_fault(value)
            if wrong is not None:
                raise DataError(f"{row.where}: {column} {wrong}")
        slides.append(Slide(table.parent / file, label, str(row.values.get("split", "")).strip().lower()))
    if not slides:
        raise DataError(f"{table}: no slides; expected a header file,label[,split] and a row for each")
    return slides


def embed_slides(
    encoder: Encoder,
    slides: Sequence[Slide],
    config: SlideConfig,
    out: Path,
    *,
    track: Callable[[Sequence[Slide]], Iterable[Slide]] = iter,
) -> SlideFeatures:
    """One vector for each slide; out/tiles/NAME.npz keeps those of its tiles, and out/features.npz all slides'."""
    keeps = [out / TILES / f"{slide.path.stem}.npz" for slide in slides]
    for place, keep in enumerate(keeps):
        if keep in keeps[:place]:
            raise DataError(f"{slides[place].path}: another slide is called {keep.stem} too")
    vectors, counts = [], []
    for slide, keep in zip(track(slides), keeps, strict=True):
        tiles = embed_slide(encoder, slide.path, config, keep)
        vectors.append(pool(tiles.vectors, config.pool))
        counts.append(len(tiles.vectors))
    names = tuple(sorted({slide.label for slide in slides}))
    labels = torch.tensor([names.index(slide.label) for slide in slides])
    found = SlideFeatures(tuple(slides), names, torch.stack(vectors), labels, tuple(counts))
    found.save(out / FEATURES)
    return found


def score_probes(features: SlideFeatures) -> dict[str, dict[str, float]]:
    """For each split but train, top1 and mean_per_class of k nearest neighbours and of a linear probe that learnt from
    train; none where the list has no splits. UserError where there is no train."""
    splits = sorted({slide.split for slide in features.slides} - {TRAIN})
    if splits == [""] or not splits:
        return {}
    train, count = features.of(TRAIN), len(features.names)
    if not len(train.labels):
        raise UserError(
            f"probes learn from the split train, the list has {', '.join(each or 'none' for each in splits)}"
        )
    linear = fit_linear_probe(train, count)
    found = {}
    for split in splits:
        asked = features.of(split)
        logits = {"knn": nearest_logits(train, asked.vectors, count), "linear": linear.logits(asked.vectors)}
        scores = {"slides": float(len(asked.labels))}
        for name, each in logits.items():
            metric = Accuracy(features.names)
            metric.update(list(each), {"labels": asked.labels})
            values = metric.compute()
            scores |= {f"{name}_{key}": values[key] for key in ("top1", "mean_per_class")}
        found[split] = scores
    return found
