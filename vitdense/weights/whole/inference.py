"""The sizes that published detectors look at pictures in, as options of inference."""

from typing import Any

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint


def of_detr(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the processor beside the weights says; else a short side of 800, or less where the long one passes 1333."""
    return _sizes(checkpoint, {"shortest_edge": 800, "longest_edge": 1333})


def of_rtdetr(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the processor beside the weights says; else 640 by 640."""
    return _sizes(checkpoint, {"height": 640, "width": 640})


def of_segments(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the processor beside the weights says; where there is none, pictures keep their size."""
    return _sizes(checkpoint, {}) if checkpoint.preprocessor.get("size") else {}


def _sizes(checkpoint: Checkpoint, default: dict[str, int]) -> dict[str, Any]:
    facts = checkpoint.preprocessor
    if facts.get("do_resize") is False:
        return {}
    size = facts.get("size") or default
    if isinstance(size, int):  # files of old processors have the long side beside the short one
        size = {"shortest_edge": size, "longest_edge": facts.get("max_size")}
    if {"height", "width"} <= size.keys():
        return {"size": (size["height"], size["width"])}
    if "shortest_edge" in size:
        longest = size.get("longest_edge") or facts.get("max_size")
        return {"short_side": size["shortest_edge"]} | ({"long_max": longest} if longest else {})
    raise WeightsError(
        f"{checkpoint.source} resizes pictures to {size}; known here: shortest_edge, with longest_edge or without, and "
        "height with width"
    )
