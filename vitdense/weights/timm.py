"""Keys as timm names them, which are ours too, and the official Swin's, which timm shared before 0.9."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitdense.weights.contents import Checkpoint
from vitdense.weights.families import Family, shifted_downsample

_PATCHES = r"patch_embed\.proj\.weight"
_SWIN = r"layers[._]0\.blocks\.0\.attn\.qkv\.weight"
_SWIN_LEFT_OUT = r"head\.|.*\.relative_position_index$|.*\.attn_mask$"
_FEATURES_ONLY = (r"^layers_(\d+)\.", r"layers.\1.")


def _pixel_statistics(checkpoint: Checkpoint, _: Mapping[str, Tensor]) -> dict[str, Any]:
    published = checkpoint.config.get("pretrained_cfg", {})
    return {name: tuple(published[name]) for name in ("mean", "std") if name in published}


def _nothing(_: Checkpoint, __: Mapping[str, Tensor]) -> dict[str, Any]:
    return {}


FAMILIES = (
    Family("vitdense", "swin", (_SWIN, _PATCHES, r"norms\.\d+\.weight"), (), r"(?!)", _nothing),
    Family(
        "official",
        "swin",
        (_SWIN, _PATCHES, r"layers[._]0\.downsample\.reduction\.weight"),
        (_FEATURES_ONLY, (r"^layers\.(\d+)\.downsample\.", shifted_downsample)),
        _SWIN_LEFT_OUT,
        _pixel_statistics,
    ),
    Family("timm", "swin", (_SWIN, _PATCHES), (_FEATURES_ONLY,), _SWIN_LEFT_OUT, _pixel_statistics),
    Family(
        "timm",
        "vit",
        (r"blocks\.0\.attn\.qkv\.weight", _PATCHES),
        (),
        r"(?:head|fc_norm|pre_logits|decoder\w*)\.|mask_token$|decoder_pos_embed$",
        _pixel_statistics,
    ),
)
