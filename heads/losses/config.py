"""What a recipe says about losses: `losses: {cross_entropy: 1.0, dice: {weight: 0.5, smooth: 1.0}}`."""

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PositiveFloat, ValidationError
from torch import Tensor

from heads.losses.pixels import Pixels
from vitdense.errors import UserError
from vitdense.registry import Config, Registry


class LossConfig(Config):
    """Options of one loss; `weight` is what it counts in the sum, and `key` what it is logged under."""

    key: ClassVar[str]

    weight: PositiveFloat = 1.0

    def loss(self, pixels: Pixels) -> Tensor:
        """(), not weighted, in float32 or better: finite and connected to the logits whatever the masks hold."""
        raise NotImplementedError


LOSSES: Registry[LossConfig] = Registry("loss", plugins=False)


def read_losses(given: Any) -> dict[str, LossConfig]:
    """A mapping from names to weights, to options, or to a loss that is made already; all faults at once."""
    if not isinstance(given, Mapping) or not given:
        raise UserError("expected a mapping of losses, such as {cross_entropy: 1.0, dice: {weight: 0.5}}")
    read: dict[str, LossConfig] = {}
    faults: list[str] = []
    for name, options in given.items():
        try:
            read[name] = _read_loss(str(name), options)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("; ".join(faults))
    return read


def _read_loss(name: str, options: Any) -> LossConfig:
    kind, _ = LOSSES.find(name)
    if isinstance(options, kind):
        return options
    try:
        return LOSSES.create(name, options if isinstance(options, Mapping) else {"weight": options})
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        raise UserError("; ".join(_told(name, kind, problem) for problem in problems)) from error


def _told(name: str, kind: type[LossConfig], problem: Mapping[str, Any]) -> str:
    option = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(option, kind.model_fields, n=1)
        hint = f", did you mean {nearest[0]!r}?" if nearest else ""
        return f"{name}.{option}: unknown key{hint}; allowed: {', '.join(sorted(kind.model_fields))}"
    return f"{name}.{option}: {problem['msg'][0].lower()}{problem['msg'][1:]}, given {problem['input']!r}"
