"""Predictions as files: masks, depth, things, segments and classes, each with what a person looks at."""

from vitdense.contracts import ContrastiveHead, Head
from vitdense.writing.classes import ClassWriter
from vitdense.writing.depth import DepthWriter
from vitdense.writing.masks import MaskWriter
from vitdense.writing.segments import SegmentWriter
from vitdense.writing.things import ThingWriter
from vitdense.writing.writer import Shot, Writer

__all__ = ["Shot", "Writer", "writer_of"]


def writer_of(head: Head) -> type[Writer] | None:
    """What writes a head's predictions; None for one that says nothing of a picture alone."""
    if isinstance(head, ContrastiveHead):
        return None
    if head.detects:
        return ThingWriter
    if head.segments:
        return SegmentWriter
    if head.classifies:
        return ClassWriter
    return DepthWriter if head.dense == "depth" else MaskWriter
