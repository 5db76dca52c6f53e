"""Whole published models, segmentation, depth and detection: which family a folder or file is of."""

from collections.abc import Callable
from dataclasses import replace

from vitdense.errors import WeightsError
from vitdense.weights import (
    whole_deformable_detr,
    whole_depth_anything,
    whole_detr,
    whole_dpt,
    whole_midas,
    whole_mmseg,
    whole_rtdetr,
    whole_rtdetr_original,
    whole_upernet,
)
from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import without_wrappers
from vitdense.weights.opening import Source, open_checkpoint
from vitdense.weights.parts import Whole


def read_whole(source: Source) -> Whole:
    """A whole model from a folder that transformers' save_pretrained wrote, "hf/<repo>", or a file of an author's."""
    checkpoint = open_checkpoint(source)
    checkpoint = replace(checkpoint, state=without_wrappers(checkpoint.state))
    kinds: dict[str, Callable[[Checkpoint], Whole]] = {
        "upernet": whole_upernet.read,
        "dpt": whole_dpt.read,
        "depth_anything": whole_depth_anything.read,
        "detr": whole_detr.read,
        "deformable_detr": whole_deformable_detr.read,
        "rt_detr": whole_rtdetr.read,
        "rt_detr_v2": whole_rtdetr.read,
        "d_fine": whole_rtdetr.read,
    }
    kind = checkpoint.config.get("model_type")
    if kind in kinds:
        return kinds[kind](checkpoint)
    for signed, read in (
        (whole_mmseg.is_of, whole_mmseg.read),
        (whole_midas.is_of, whole_midas.read),
        (whole_detr.is_of, whole_detr.read_original),
        (whole_deformable_detr.is_of, whole_deformable_detr.read_original),
        (whole_rtdetr_original.is_of, whole_rtdetr_original.read_original),
    ):
        if kind is None and signed(checkpoint.state):
            return read(checkpoint)
    named = f"a {kind}" if kind is not None else f"of keys that begin with {sorted(checkpoint.state)[:4]}"
    raise WeightsError(
        f"{checkpoint.source} is {named}: whole models that are known here are transformers' {', '.join(kinds)}, "
        "mmseg's UperNet, the authors' DPT, DETR, Deformable DETR, RT-DETR and D-FINE; "
        "weights of a backbone go to create_backbone(name, weights=...)"
    )
