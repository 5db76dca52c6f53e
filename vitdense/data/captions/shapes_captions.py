"""`shapes_captions`: the embedded pictures with sentences on the nearest two shapes."""

import numpy as np
from pydantic import Field

from vitdense.contracts import DATA, Sample, Split
from vitdense.data.phrases import rephrase
from vitdense.data.scenes import both, render
from vitdense.data.shapes import STREAMS, ShapeSamples, ShapesConfig, pixels


@DATA.register("shapes_captions")
class ShapesCaptionsConfig(ShapesConfig):
    """Validation: two to five shapes and the full sentence. In training `alone` of the pictures show one shape, and
    where `rephrase` the sentence may leave out words, or the second shape.
    """

    alone: float = Field(default=0.25, ge=0.0, le=1.0)
    rephrase: bool = True

    def build(self, split: Split) -> "ShapeCaptionSamples":
        """The samples of a split; nothing is stored, each is drawn when it is asked for."""
        return ShapeCaptionSamples(self, split)


class ShapeCaptionSamples(ShapeSamples):
    """One caption a picture."""

    classes = ()
    palette = ()

    def __init__(self, config: ShapesCaptionsConfig, split: Split) -> None:
        super().__init__(config, split)
        self.alone, self.rephrase = config.alone, config.rephrase

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        if self.split == "val":
            number, scene = self.draw(key)
            return Sample(id=f"val-{number}", image=pixels(scene), captions=[scene.caption])
        number = key[0] * len(self) + key[1]
        generator = np.random.default_rng([self.config.seed, len(STREAMS), number])
        most = 1 if generator.random() < self.alone else 5
        scene = render(self.config.seed, number, both(self.config.size), stream=STREAMS["train"], most=most)
        caption = rephrase(scene.words, generator) if self.rephrase else scene.caption
        return Sample(id=f"train-{number}", image=pixels(scene), captions=[caption])
