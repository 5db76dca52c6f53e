"""Whole published models, of pictures, clips, pictures with texts: which family a folder or file is of."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from vitdense.errors import UserError, WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.dialect import without_wrappers
from vitdense.weights.opening import WHOLE, Source, open_checkpoint
from vitdense.weights.whole import (
    clip,
    deformable_detr,
    depth_anything,
    detr,
    dpt,
    eomt,
    mask2former,
    midas,
    mmseg,
    open_clip,
    open_clip_names,
    rtdetr,
    rtdetr_original,
    siglip,
    upernet,
    video,
)
from vitdense.weights.whole.parts import Whole

# Where open_clip's file lies beside another, that one may hold the picture tower alone.
FILES = tuple(sorted(WHOLE, key=lambda name: not name.startswith("open_clip")))


Reader = Callable[[Checkpoint], Whole]
# By config.json's model_type.
_KINDS: dict[str, Reader] = {
    "upernet": upernet.read,
    "dpt": dpt.read,
    "depth_anything": depth_anything.read,
    "detr": detr.read,
    "deformable_detr": deformable_detr.read,
    "rt_detr": rtdetr.read,
    "rt_detr_v2": rtdetr.read,
    "d_fine": rtdetr.read,
    "mask2former": mask2former.read,
    "eomt": eomt.read,
    "eomt_dinov3": eomt.read_dinov3,
    "clip": clip.read,
    "siglip": siglip.read,
    "siglip2": siglip.read_2,
    "timesformer": video.read,
    "vivit": video.read,
    "videomae": video.read,
}
# By the names of their tensors, where nothing else says what they are.
_SIGNED: tuple[tuple[Callable[[Mapping[str, Tensor]], bool], Reader], ...] = (
    (mmseg.is_of, mmseg.read),
    (midas.is_of, midas.read),
    (detr.is_of, detr.read_original),
    (deformable_detr.is_of, deformable_detr.read_original),
    (rtdetr_original.is_of, rtdetr_original.read_original),
    (eomt.is_of, eomt.read_original),
    (mask2former.is_of, mask2former.read_original),
)


def read_whole(source: Source, architecture: str | None = None) -> Whole:
    """A whole model from a folder that transformers' save_pretrained wrote, "hf/<repo>", a file of an author's, or
    open_clip's: a folder, a file, a name. `architecture` is open_clip's name of a file's model, where it has one."""
    if str(source).startswith(f"{open_clip_names.LIBRARY}/"):
        checkpoint = open_clip_names.open_named(str(source), architecture)
    else:
        checkpoint = open_checkpoint(source, files=FILES)
    checkpoint = replace(checkpoint, state=without_wrappers(checkpoint.state))
    if open_clip.is_of(checkpoint.state):
        return open_clip.read(checkpoint, architecture)
    if architecture is not None:
        raise UserError(f"{checkpoint.source} is no model of open_clip's: architecture can't be set")
    kind = checkpoint.config.get("model_type")
    if kind in _KINDS:
        return _KINDS[kind](checkpoint)
    for signed, read in _SIGNED:
        if kind is None and signed(checkpoint.state):
            return read(checkpoint)
    named = f"a {kind}" if kind is not None else f"of keys that begin with {sorted(checkpoint.state)[:4]}"
    raise WeightsError(
        f"{checkpoint.source} is {named}: whole models that are known here are transformers' {', '.join(_KINDS)}, "
        "mmseg's UperNet, the authors' DPT, DETR, Deformable DETR, RT-DETR, D-FINE, Mask2Former and EoMT, and "
        "open_clip's; weights of a backbone go to create_backbone(name, weights=...)"
    )
