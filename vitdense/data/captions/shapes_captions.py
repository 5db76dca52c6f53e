"""`shapes_captions`: the embedded pictures with sentences on the nearest two shapes."""

import numpy as np
from pydantic import Field

from vitdense.contracts import DATA, Sample, Split
from vitdense.data.phrases import rephrase
from vitdense.data.scenes import Backdrop, both, render
from vitdense.data.shapes import STREAMS, ShapeSamples, ShapesConfig, pixels


@DATA.register("shapes_captions")
class ShapesCaptionsConfig(ShapesConfig):
    """Validation: two to five shapes and the full sentence. In training `alone` of the pictures show one shape, and
    where `rephrase` the sentence may leave out words, or the second shape. Hills of many colours make a shape's own
    harder to learn than a plain `backdrop`.
    """

    alone: float = Field(default=0.25, ge=0.0, le=1.0)
    rephrase: bool = True
    backdrop: Backdrop = "hills"

    def build(self, split: Split) -> "ShapeCaptionSamples":
        """The samples of a split; nothing is stored, each is drawn when it is asked for."""
        return ShapeCaptionSamples(self, split)


class ShapeCaptionSamples(ShapeSamples):
    """One caption a picture."""

    classes = ()
    palette = ()

    def __init__(self, config: ShapesCaptionsConfig, split: Split) -> None:
        super().__init__(config, split)
        self.alone, self.rephrase, self.plain = config.alone, config.rephrase, config.backdrop == "plain"

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        size, plain = both(self.config.size), self.plain
        if self.split == "val":
            number, scene = key[1], render(self.config.seed, key[1], size, stream=STREAMS["val"], plain=plain)
            return Sample(id=f"val-{number}", image=pixels(scene), captions=[scene.caption])
        number = key[0] * len(self) + key[1]
        generator = np.random.default_rng([self.config.seed, len(STREAMS), number])
        most = 1 if generator.random() < self.alone else 5
        scene = render(self.config.seed, number, size, stream=STREAMS["train"], most=most, plain=plain)
        caption = rephrase(scene.words, generator) if self.rephrase else scene.caption
        return Sample(id=f"train-{number}", image=pixels(scene), captions=[caption])
