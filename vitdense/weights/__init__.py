"""Published checkpoints in and out: detect the family, convert its keys, load strictly, report."""

from vitdense.weights.contents import Weights
from vitdense.weights.loading import load_weights
from vitdense.weights.reading import read_weights

__all__ = ["Weights", "load_weights", "read_weights"]
