"""Heads: feature maps in, predictions and losses out; importing this package makes every head known by name."""

from collections.abc import Sequence
from typing import Any

from heads import change as change
from heads import classify as classify
from heads import clip as clip
from heads import coca as coca
from heads import deformable_detr as deformable_detr
from heads import depth_anything as depth_anything
from heads import detr as detr
from heads import dpt as dpt
from heads import eomt as eomt
from heads import fcn as fcn
from heads import linear as linear
from heads import linear_3d as linear_3d
from heads import mask_transformer as mask_transformer
from heads import per_frame as per_frame
from heads import rtdetr as rtdetr
from heads import segformer as segformer
from heads import smp as smp
from heads import tasks as tasks
from heads import upernet as upernet
from heads import upernet_3d as upernet_3d
from vitdense.contracts import HEADS, Backbone, Head, Level

__all__ = ["create_head"]


def create_head(
    name: str, features: Sequence[Level] | Backbone, *, num_classes: int | None = None, **options: Any
) -> Head:
    """A head by name, for maps of these levels or for a backbone, which heads that read no maps need.

    UserError names an unknown option, or levels or a backbone that can't be used.
    """
    config = HEADS.create_or_tell(name, {"num_classes": num_classes, **options})
    return config.build_for(features) if isinstance(features, Backbone) else config.build(tuple(features))
