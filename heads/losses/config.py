"""What a recipe says about losses: `losses: {cross_entropy: 1.0, dice: {weight: 0.5, smooth: 1.0}}`."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PositiveFloat
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
    return LOSSES.create_or_tell(name, options if isinstance(options, Mapping) else {"weight": options})
