"""Data sets by name; importing this package registers them."""

from vitdense.data import ade20k as ade20k
from vitdense.data import boxes as boxes
from vitdense.data import captions as captions
from vitdense.data import changes as changes
from vitdense.data import cityscapes as cityscapes
from vitdense.data import classes as classes
from vitdense.data import clips as clips
from vitdense.data import coco_stuff as coco_stuff
from vitdense.data import folder as folder
from vitdense.data import rasters as rasters
from vitdense.data import rgbd as rgbd
from vitdense.data import shapes as shapes
from vitdense.data import shapes_panoptic as shapes_panoptic
from vitdense.data import shapes_tasks as shapes_tasks
from vitdense.data import voc as voc
from vitdense.data import volumes as volumes
