"""Heads: feature maps in, predictions and losses out; importing this package makes every head known by name."""

from typing import Any

from heads import depth_anything, dpt, fcn, linear, segformer, smp, upernet  # noqa: F401  (each file registers names)
from vitdense.contracts import HEADS, Head, Level

__all__ = ["create_head"]


def create_head(name: str, levels: tuple[Level, ...], *, num_classes: int | None = None, **options: Any) -> Head:
    """A head by name for maps of these levels; UserError names an unknown option or levels that can't be used."""
    return HEADS.create_or_tell(name, {"num_classes": num_classes, **options}).build(tuple(levels))
