"""What can be chosen when masks are propagated, with the defaults of DINO's evaluation on DAVIS."""

from collections.abc import Sequence
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from vitdense.errors import UserError
from vitdense.options import make, read_values
from vitdense.registry import Config


class PropagationConfig(Config):
    """Labels come from the first frame and the `last_frames` before, for each cell from the `topk` most similar cells.

    Those are looked for at most `neighbourhood` rows and columns away (0: anywhere) and weighted by exp(cosine /
    `temperature`). Frames are resized to `short_side` with the long side rounded down to a `multiple`, as DINO's
    authors do; without a `short_side` they stay as they are. Features are the last layer's normed tokens, or the map
    of `level`, an index of the backbone's levels.
    """

    last_frames: NonNegativeInt = 7
    neighbourhood: NonNegativeInt = 12
    topk: PositiveInt = 5
    temperature: PositiveFloat = 0.1
    short_side: PositiveInt | None = 480
    multiple: PositiveInt = 64
    level: int | None = None


def read_options(given: Sequence[str]) -> tuple[PropagationConfig, dict[str, Any]]:
    """Options as "topk=7", and those of the backbone as "backbone.drop_path=0"; UserError names what can't be."""
    options = read_values(given, "--set")
    backbone = options.pop("backbone", {})
    if not isinstance(backbone, dict) or "weights" in backbone:
        raise UserError("--set takes options of the backbone as backbone.KEY=VALUE; its weights are --weights")
    return make(PropagationConfig, options, "--set "), backbone
