"""Stand-ins that several tests build upon."""

from torch import Tensor

from vitdense.contracts import Backbone, Tokens


class MapsAlone(Backbone):
    """A backbone without layers, of whose three outputs only the maps are asked for; subclasses give `forward`."""

    mean, std = (0.0,) * 3, (1.0,) * 3
    num_layers = 1

    def tokens(self, images: Tensor) -> Tokens:
        raise NotImplementedError

    def embed(self, images: Tensor) -> Tensor:
        raise NotImplementedError

    def layer_of(self, parameter: str) -> int:
        return 0
