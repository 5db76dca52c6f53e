"""`shapes_kinds` and `shapes_colours`: the embedded pictures with one shape, by its kind or its colour."""

from collections.abc import Callable
from typing import Literal

from vitdense.contracts import DATA, Sample, Split
from vitdense.data.classes.audit import ClassAudit
from vitdense.data.scenes import CLASSES, Backdrop, both, render
from vitdense.data.shapes import ShapeSamples, ShapesConfig, pixels
from vitdense.data.textures import COLOURS

STREAMS: dict[Split, int] = {"train": 3, "val": 4}
"""Not those of `shapes`: a picture of these is none that a model of captions has learnt from."""
DRAWN = 200


@DATA.register("shapes_kinds", by="kind")
@DATA.register("shapes_colours", by="colour")
class ShapesClassesConfig(ShapesConfig):
    """`by` says what of the shape is its class."""

    by: Literal["kind", "colour"] = "kind"
    backdrop: Backdrop = "hills"

    def build(self, split: Split) -> "ShapeClassSamples":
        """The samples of a split; nothing is stored, each is drawn when it is asked for."""
        return ShapeClassSamples(self, split)


class ShapeClassSamples(ShapeSamples):
    """One shape before its hills, which have colours of their own."""

    palette = ()

    def __init__(self, config: ShapesClassesConfig, split: Split) -> None:
        super().__init__(config, split)
        self.by, self.plain = config.by, config.backdrop == "plain"
        self.classes = CLASSES[1:] if config.by == "kind" else tuple(COLOURS)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        number = key[0] * len(self) + key[1] if self.split == "train" else key[1]
        size = both(self.config.size)
        scene = render(self.config.seed, number, size, stream=STREAMS[self.split], most=1, plain=self.plain)
        word = scene.words[0].kind if self.by == "kind" else scene.words[0].colour
        return Sample(id=f"{self.split}-{number}", image=pixels(scene), label=self.classes.index(word))

    def survey(self, report: Callable[[str], None] | None = None) -> ClassAudit:
        """Counts of the first ones."""
        audit = ClassAudit(self.classes, len(self))
        for index in range(min(DRAWN, len(self))):
            sample = self[0, index]
            audit.count(sample["label"], (sample["image"].shape[1], sample["image"].shape[2]))
        return audit
