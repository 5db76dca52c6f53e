"""Published checkpoints in and out: detect the dialect, convert its keys, load strictly, report; and write back."""

from vitdense.weights.contents import Weights
from vitdense.weights.exporting import save_pretrained
from vitdense.weights.loading import configured, load_weights
from vitdense.weights.reading import read_weights

__all__ = ["Weights", "configured", "load_weights", "read_weights", "save_pretrained"]
