"""Whole published models, segmentation, depth and detection: which family a folder or file is of."""

from collections.abc import Callable
from dataclasses import replace

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import without_wrappers
from vitdense.weights.opening import Source, open_checkpoint
from vitdense.weights.whole import (
    deformable_detr,
    depth_anything,
    detr,
    dpt,
    midas,
    mmseg,
    rtdetr,
    rtdetr_original,
    upernet,
)
from vitdense.weights.whole.parts import Whole


def read_whole(source: Source) -> Whole:
    """A whole model from a folder that transformers' save_pretrained wrote, "hf/<repo>", or a file of an author's."""
    checkpoint = open_checkpoint(source)
    checkpoint = replace(checkpoint, state=without_wrappers(checkpoint.state))
    kinds: dict[str, Callable[[Checkpoint], Whole]] = {
        "upernet": upernet.read,
        "dpt": dpt.read,
        "depth_anything": depth_anything.read,
        "detr": detr.read,
        "deformable_detr": deformable_detr.read,
        "rt_detr": rtdetr.read,
        "rt_detr_v2": rtdetr.read,
        "d_fine": rtdetr.read,
    }
    kind = checkpoint.config.get("model_type")
    if kind in kinds:
        return kinds[kind](checkpoint)
    for signed, read in (
        (mmseg.is_of, mmseg.read),
        (midas.is_of, midas.read),
        (detr.is_of, detr.read_original),
        (deformable_detr.is_of, deformable_detr.read_original),
        (rtdetr_original.is_of, rtdetr_original.read_original),
    ):
        if kind is None and signed(checkpoint.state):
            return read(checkpoint)
    named = f"a {kind}" if kind is not None else f"of keys that begin with {sorted(checkpoint.state)[:4]}"
    raise WeightsError(
        f"{checkpoint.source} is {named}: whole models that are known here are transformers' {', '.join(kinds)}, "
        "mmseg's UperNet, the authors' DPT, DETR, Deformable DETR, RT-DETR and D-FINE; "
        "weights of a backbone go to create_backbone(name, weights=...)"
    )
