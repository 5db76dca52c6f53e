"""Objects followed through a video by frozen features: the first mask's labels, carried from frame to frame."""

from vitdense.propagation.config import PropagationConfig as PropagationConfig
from vitdense.propagation.labels import propagate_labels as propagate_labels
from vitdense.propagation.sequence import propagate as propagate
