"""COCO's average precision and recall of boxes and masks, on arrays, equal to pycocotools."""

from vitdense.metrics.coco.metric import Coco as Coco
from vitdense.metrics.coco.metric import CocoConfig as CocoConfig
