"""The networks under published DETRs: timm's, Swin, whatever else transformers builds, and the authors' ResNets."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitdense.errors import WeightsError
from vitdense.weights.contents import Checkpoint
from vitdense.weights.whole.parts import Parts, count_of
from vitdense.weights.whole.upernet import other_parts, swin_parts

BACKBONE = "backbone."
"""What the names of its tensors begin with."""

# By whether blocks are bottlenecks, and how many each stage has.
_BLOCKS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
}


def backbone_parts(checkpoint: Checkpoint, parts: Parts) -> dict[str, Any]:
    """Name, options and tensors of what config.json names; WeightsError where it names none. transformers freezes the
    batch norms of all, and so they are here."""
    network = checkpoint.config.get("backbone_config") or {}
    kind = network.get("model_type")
    if kind is None:
        raise WeightsError(f"{checkpoint.source} says nothing of its backbone: config.json has no backbone_config")
    if kind == "swin":
        return swin_parts(checkpoint, parts)
    if kind != "timm_backbone":
        made = {**other_parts(checkpoint, parts), "multiple": 1}
        if _has_norms(made["weights"].state):
            made["options"]["frozen_norm"] = True
        return made
    body = parts.take(BACKBONE, strip=BACKBONE)
    stride = network.get("output_stride")
    config = {} if stride in (None, 32) else {"output_stride": stride}
    indices = tuple(network.get("out_indices") or (2, 3, 4))
    return _timm_parts(checkpoint, network["backbone"], body, out_indices=indices, config=config)


def torchvision_parts(checkpoint: Checkpoint, parts: Parts, out_indices: tuple[int, ...]) -> dict[str, Any]:
    """A ResNet of torchvision's, which the authors build on, recognised by its blocks: timm has the same."""
    body = parts.take(BACKBONE, strip=BACKBONE)
    depths = tuple(count_of(body, rf"layer{i}\.(\d+)\.") for i in (1, 2, 3, 4))
    name = _BLOCKS.get(("layer1.0.conv3.weight" in body, depths))
    if name is None:
        raise WeightsError(f"{checkpoint.source} has no ResNet that is known here: its stages have {depths} blocks")
    return _timm_parts(checkpoint, name, body, out_indices=out_indices)


def _timm_parts(checkpoint: Checkpoint, name: str, body: dict[str, Tensor], **options: Any) -> dict[str, Any]:
    """A network of timm; its pictures are normed as transformers' processors and the authors do it."""
    facts = checkpoint.preprocessor
    statistics = {
        "mean": facts.get("image_mean", (0.485, 0.456, 0.406)),
        "std": facts.get("image_std", (0.229, 0.224, 0.225)),
    }
    if _has_norms(body):
        # transformers freezes norms of any kind as these are: with an epsilon of 1e-5, and without an activation.
        if re.match(r"(wide_)?res(net|next)\d", name) is None:
            raise WeightsError(f"{checkpoint.source} has batch norms in timm's {name}; known here: its ResNets")
        options["frozen_norm"] = True
    # Frozen norms count no batches in files, and keep their counters here.
    norms = [key.removesuffix("running_var") for key in body if key.endswith("running_var")]
    body = {**{f"{norm}num_batches_tracked": torch.zeros((), dtype=torch.int64) for norm in norms}, **body}
    weights = replace(checkpoint, state=body, config={"pretrained_cfg": statistics}, preprocessor={})
    return {"backbone": f"timm/{name}", "options": options, "weights": weights}


def _has_norms(state: Mapping[str, Tensor]) -> bool:
    return any(key.endswith(".running_var") for key in state)
