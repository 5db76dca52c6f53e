"""Heads: feature maps in, predictions and losses out; importing this package makes every head known by name."""

from typing import Any

from pydantic import ValidationError

from heads import (  # noqa: F401  (each file registers names)
    deformable_detr,
    depth_anything,
    detr,
    dpt,
    fcn,
    linear,
    rtdetr,
    segformer,
    smp,
    upernet,
)
from vitdense.contracts import HEADS, Head, Level
from vitdense.errors import UserError

__all__ = ["create_head"]


def create_head(name: str, levels: tuple[Level, ...], *, num_classes: int | None = None, **options: Any) -> Head:
    """A head by name for maps of these levels; UserError names an unknown option or levels that can't be used."""
    try:
        config = HEADS.create(name, {"num_classes": num_classes, **options})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, given {e['input']!r}" for e in error.errors())
        raise UserError(f"head {name}: {faults}") from error
    return config.build(tuple(levels))
