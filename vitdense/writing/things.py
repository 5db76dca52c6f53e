"""Things with boxes, and masks where there are some, as COCO's list of results."""

from pathlib import Path

from PIL import Image

from vitdense import pictures
from vitdense.coco_json import Result, to_results, write_results
from vitdense.contracts import Detections
from vitdense.model import Model
from vitdense.writing.writer import Pixels, Shot, Writer


class ThingWriter(Writer):
    """predictions.json lists the things of all pictures."""

    kind = "predictions.json"

    def __init__(self, model: Model, out: Path) -> None:
        super().__init__(model, out)
        self.results: list[Result] = []

    def write(self, shot: Shot, found: Detections) -> None:
        """A record for each thing."""
        self.results += to_results(found, shot.number)

    def draw(self, image: Pixels, found: Detections) -> Image.Image:
        """The picture with what is likely."""
        return pictures.draw_likely(image, found, self.model.classes, self.model.palette)

    def finish(self) -> None:
        """Write the list."""
        self.out.mkdir(parents=True, exist_ok=True)
        write_results(self.results, self.out / self.kind)
