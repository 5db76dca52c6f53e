"""`coco_stuff`: the 171 classes of COCO-Stuff 164k (Caesar et al. 2018, https://arxiv.org/abs/1612.03716)."""

from pathlib import Path
from typing import Literal

from vitdense.contracts import DATA, Split
from vitdense.data.segmentation import Labels, PairedSamples, SegmentationDataConfig, colours, make_samples
from vitdense.errors import DataError

CLASSES = tuple(
    """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier,
toothbrush, banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other,
ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble,
floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit, furniture-other, grass, gravel,
ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement,
pillow, plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table, tent, textile-other,
towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood,
water-other, waterdrops, window-blind, window-other, wood
""".replace("\n", " ")
    .strip()
    .split(", ")
)

# COCO numbered 182 categories and never drew eleven of them; the maps hold the number less one.
_NEVER_DRAWN = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
RAW_VALUES = tuple(value for value in range(182) if value not in _NEVER_DRAWN)

# Colours of our own: those that mmsegmentation draws repeat.
_PALETTE, _UNLABELLED = colours(len(CLASSES)), frozenset({255})
TRAIN_IDS = Labels(CLASSES, _PALETTE, ignored=_UNLABELLED)
RAW = Labels(CLASSES, _PALETTE, ignored=_UNLABELLED, values=RAW_VALUES)

LAYOUT = """expected
  ROOT/images/{train2017,val2017}/x.jpg
  ROOT/annotations/{train2017,val2017}/x_labelTrainIds.png   as mmsegmentation makes them, or with data.labels=raw
  ROOT/stuffthingmaps/{train2017,val2017}/x.png              stuffthingmaps_trainval2017.zip (also in annotations/)"""


@DATA.register("coco_stuff")
class CocoStuffConfig(SegmentationDataConfig):
    """`labels`: masks of 0..170 made by mmsegmentation (`train_ids`), or those published, of 0..181 (`raw`)."""

    labels: Literal["train_ids", "raw"] = "train_ids"

    def build(self, split: Split) -> PairedSamples:
        """The samples of a split; raises DataError that shows the layout where folders are missing."""
        if self.root is None:
            raise DataError(f"data 'coco_stuff' needs data.root=ROOT; {LAYOUT}")
        root, part = Path(self.root), f"{split}2017"
        images, masks = root / "images" / part, root / "annotations" / part
        if self.labels == "raw" and (root / "stuffthingmaps" / part).is_dir():
            masks = root / "stuffthingmaps" / part
        for folder in (images, masks):
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder; {LAYOUT}")
        made = "_labelTrainIds.png"
        if self.labels == "train_ids":
            return make_samples(images, masks, TRAIN_IDS, self, split, image_suffix=".jpg", mask_suffix=made)
        return make_samples(images, masks, RAW, self, split, image_suffix=".jpg", mask_suffix=".png", without=made)
