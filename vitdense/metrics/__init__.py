"""Metrics: counts that add up over batches and processes; each file registers its names."""

from vitdense.metrics import (  # noqa: F401
    accuracy,
    change,
    coco,
    depth,
    overlap,
    retrieval,
    segmentation,
    segments,
    several,
    tasks,
    volumes,
)
