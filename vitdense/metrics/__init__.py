"""Metrics: counts that add up over batches and processes; each file registers its names."""

from vitdense.metrics import accuracy, coco, depth, overlap, retrieval, segmentation, segments, several, tasks  # noqa: F401
