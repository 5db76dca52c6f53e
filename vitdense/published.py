"""Whole models as others publish them, run on pictures of sizes that their networks take."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitdense.build import AdaptedBackbone, copy_state, fill_backbone
from vitdense.contracts import ADAPTERS, BACKBONES, HEADS, Batch, Outputs
from vitdense.errors import UserError, WeightsError
from vitdense.inference import InferenceConfig
from vitdense.layers.embed import crop_rows_and_columns, pad_rows_and_columns
from vitdense.model import Model, blank_padding
from vitdense.options import make, read_values
from vitdense.pictures import make_palette
from vitdense.weights.whole.families import read_whole
from vitdense.weights.whole.parts import Part, Whole


class PaddedModel(Model):
    """A model whose pictures are padded until they divide by `multiple`, and whose outputs are cut to the picture.

    Networks of transformers that leave the rest of a picture away, or stretch one map over another there, are run on
    pictures where they do neither: padded with the mean pixel at the right and bottom.
    """

    multiple = 1

    def forward(self, batch: Batch) -> Outputs:
        """batch["images"]: (B, C, H, W) -> the head's outputs by pixel, ceil(H / stride) by ceil(W / stride)."""
        # What it found, or one vector, needs no cutting, and its network takes pictures of any size.
        if self.head.detects or self.head.segments or self.head.reads != "maps":
            return super().forward(batch)
        images = self.normalise(batch["images"])
        if "extents" in batch:
            images = blank_padding(images, batch["extents"])
        padded = pad_rows_and_columns(images, self.multiple, channels_last=False)
        lean = batch.get("lean", False) and padded.shape == images.shape
        outputs: Outputs = self.head(self.backbone(padded), {**batch, "images": padded, "lean": lean})
        if lean:
            return outputs
        return {name: _cut(maps, images, padded) for name, maps in outputs.items()}


def _cut(maps: Tensor, images: Tensor, padded: Tensor) -> Tensor:
    """maps: (B, K, h, w) of padded pictures -> what lies on the pictures; what is no map as it is."""
    if maps.ndim != 4:
        return maps
    stride = padded.shape[-2] // maps.shape[-2]
    height, width = ((side + stride - 1) // stride for side in images.shape[-2:])
    return crop_rows_and_columns(maps, height, width, channels_last=False)


def build_published(source: str | Path, overrides: Sequence[str] = ()) -> PaddedModel:
    """A published model with its weights, in eval mode; WeightsError names tensors that are missing or left over."""
    given = _given(overrides)
    task = given.pop("task", None)
    whole = read_whole(source, given.pop("architecture", None))
    return build_whole(whole, _inference(given, whole.inference), task=task)


def build_whole(whole: Whole, inference: InferenceConfig | None = None, *, task: str | None = None) -> PaddedModel:
    """A model of parts that were read, in eval mode; WeightsError names tensors that are missing or left over. `task`
    is what heads that answer with masks are to predict."""
    config = BACKBONES.create(whole.backbone, whole.options)
    backbone = fill_backbone(config, whole.read_backbone(config))
    if whole.adapter is not None:
        adapted = AdaptedBackbone(backbone, ADAPTERS.create(whole.adapter.name, whole.adapter.options))
        _fill_part(adapted.adapter, whole.adapter, whole.source)
        backbone = adapted
    chosen = HEADS.create_or_tell(whole.head.name, {**whole.head.options, **({} if task is None else {"task": task})})
    if whole.strides is None:
        head = chosen.build_for(backbone)
    else:
        levels = zip(backbone.levels, whole.strides, strict=True)
        head = chosen.build(tuple(replace(level, stride=stride) for level, stride in levels))
    _fill_part(head, whole.head, whole.source)
    palette = make_palette(len(whole.classes))
    model = PaddedModel(backbone, head, classes=whole.classes, palette=palette, inference=inference)
    model.multiple, model.preprocess = whole.multiple, whole.preprocess
    model.eval()
    return model


def _fill_part(module: torch.nn.Module, part: Part, source: str) -> None:
    """A part's tensors; counters of batches, which old files lack and evaluation doesn't read, stay at 0."""
    counters = {key: value for key, value in module.state_dict().items() if key.endswith("num_batches_tracked")}
    faults = copy_state({**counters, **part.state}, module)
    if faults:
        raise WeightsError(f"{source} doesn't fit {part.name}: {faults}")


def _given(overrides: Sequence[str]) -> dict[str, Any]:
    """What can be set of a published model: "inference.mode=sliding" and the like, "architecture=ViT-H-14", and
    "task=semantic"."""
    given = read_values(overrides, "override")
    strange = sorted(given.keys() - {"inference", "architecture", "task"})
    if strange:
        raise UserError(
            f"a published model has no recipe: {', '.join(strange)} can't be set, only inference.*, of open_clip's "
            "files architecture, and of heads that answer with masks task"
        )
    return given


def _inference(given: Mapping[str, Any], published: Mapping[str, Any]) -> InferenceConfig:
    """As the user set it; where a size is among that, none of the publisher's stays."""
    options: dict[str, Any] = given.get("inference", {})
    if not options.keys() & {"size", "short_side", "long_max"}:
        options = {**published, **options}
    return make(InferenceConfig, options, "inference.")
