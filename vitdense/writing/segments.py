"""Things and stuff in COCO's panoptic form: a map for each picture, and one JSON."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from vitdense import pictures
from vitdense.coco_panoptic_json import Record, panoptic_annotation, panoptic_categories, to_panoptic
from vitdense.contracts import Segments
from vitdense.model import Model
from vitdense.writing.writer import Pixels, Shot, Writer


class SegmentWriter(Writer):
    """panoptic/NAME.png holds the ids of segments, and panoptic.json says what each of them is."""

    kind = "panoptic.json"
    maps = "panoptic"

    def __init__(self, model: Model, out: Path) -> None:
        super().__init__(model, out)
        self.images: list[Record] = []
        self.annotations: list[Record] = []

    def write(self, shot: Shot, found: Segments) -> None:
        """The map, and a record for each segment."""
        colours, segments = to_panoptic(found, self.model.palette)
        Image.fromarray(colours).save(self.place(self.maps, shot.target, ".png"))
        name, (height, width) = shot.target.as_posix() + ".png", shot.image.shape[:2]
        self.images.append({"id": shot.number, "file_name": shot.file.name, "width": width, "height": height})
        self.annotations.append(panoptic_annotation(shot.number, name, segments))

    def draw(self, image: Pixels, found: Segments) -> Image.Image:
        """Picture and segments side by side, in the colours of their classes, above a legend."""
        model = self.model
        return pictures.panel(image, None, found.classes(), model.classes, model.palette, segments=found.ids)

    def painter(self) -> Callable[[Pixels, Segments], Pixels]:
        """Segments over each frame, without a legend."""
        palette = self.model.palette
        return lambda image, found: np.asarray(pictures.overlay(image, found.classes(), palette, segments=found.ids))

    def finish(self) -> None:
        """Write the JSON."""
        model = self.model
        categories = panoptic_categories(model.classes, model.palette, model.head.stuff, model.category_ids)
        content = {"images": self.images, "annotations": self.annotations, "categories": categories}
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / self.kind).write_text(json.dumps(content), encoding="utf-8")
