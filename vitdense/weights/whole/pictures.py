"""How publishers of contrastive models bring pictures to the size that their networks were trained at."""

from collections.abc import Mapping
from math import isqrt
from typing import Any, Literal, get_args

from vitdense.preprocessing import Preprocess
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole.parts import expect

Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic"]
# Pillow's numbers of filters, by which transformers' files name them.
_FILTERS: tuple[Interpolation, ...] = get_args(Interpolation)


def of_clip(checkpoint: Checkpoint, image_size: int) -> Preprocess | None:
    """What the processor beside the weights says; else a short side of `image_size` and its middle."""
    default = {"do_center_crop": True, "size": {"shortest_edge": image_size}, "crop_size": image_size}
    return _of_processor(checkpoint, default)


def of_siglip(checkpoint: Checkpoint, image_size: int) -> Preprocess | None:
    """What the processor beside the weights says; else stretched to `image_size`."""
    return _of_processor(checkpoint, {"size": {"height": image_size, "width": image_size}})


def of_siglip2(checkpoint: Checkpoint, patch: int, side: int) -> Preprocess:
    """What the processor beside the weights says; else at most side x side whole patches."""
    facts = _usual(checkpoint, {"patch_size": patch})
    count = int(facts.get("max_num_patches", side * side))
    # Only the product counts: a square where the number is one, else a row.
    across = isqrt(count) if isqrt(count) ** 2 == count else count
    size = (count // across * patch, across * patch)
    return Preprocess(size, "patches", _filter(facts, 2), patch=patch, like="transformers")


def of_open_clip(facts: Mapping[str, Any], size: tuple[int, int]) -> Preprocess:
    """What open_clip's `preprocess_cfg` says; else the short side and the middle."""
    named = facts.get("interpolation", "bicubic")
    return Preprocess(
        size,
        facts.get("resize_mode") or "shortest",
        named if named == "bilinear" else "bicubic",  # "random" is for training
        fill=int(facts.get("fill_color") or 0),
    )


def _of_processor(checkpoint: Checkpoint, default: dict[str, Any]) -> Preprocess | None:
    """None where pictures come out in no size of their own, or in two steps that nobody publishes."""
    facts = {**default, **_usual(checkpoint, {})}
    size = facts["size"]
    size = {"shortest_edge": size} if isinstance(size, int) else size
    filter_ = _filter(facts, 3)
    if facts.get("do_resize") is False:
        return None
    cut = _pair(facts["crop_size"]) if facts.get("do_center_crop") else None
    if {"height", "width"} <= size.keys():
        stretched = (int(size["height"]), int(size["width"]))
        return Preprocess(stretched, "squash", filter_, like="transformers") if cut in (None, stretched) else None
    if "shortest_edge" not in size or cut is None:
        return None
    return Preprocess(cut, "shortest", filter_, short_side=int(size["shortest_edge"]), like="transformers")


def _usual(checkpoint: Checkpoint, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """The processor's facts; WeightsError where its pixels aren't scaled to [0, 1] and normalised."""
    expect(checkpoint.source, checkpoint.preprocessor, {"do_rescale": True, "do_normalize": True, **wanted})
    return checkpoint.preprocessor


def _filter(facts: Mapping[str, Any], default: int) -> Interpolation:
    number = facts.get("resample")
    return _FILTERS[default if number is None else int(number)]


def _pair(size: int | Mapping[str, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size["height"]), int(size["width"]))
