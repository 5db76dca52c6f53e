"""Pictures with boxes and masks of things: records of files, their audit, and what is drawn anew in training."""

from vitdense.data.boxes import coco as coco
from vitdense.data.boxes import coco_panoptic as coco_panoptic
from vitdense.data.boxes import voc_boxes as voc_boxes
from vitdense.data.boxes import yolo as yolo
