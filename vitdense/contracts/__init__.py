"""What the rooms promise each other: levels, batches, and the face of every backbone, adapter, head and data set."""

from vitdense.contracts.batches import (
    IGNORE,
    Batch,
    Detections,
    Embeddings,
    Outputs,
    Predictions,
    Sample,
    Segments,
    Split,
    Target,
    require,
)
from vitdense.contracts.data import DataConfig, Metric, MetricConfig, Samples
from vitdense.contracts.features import (
    Adapter,
    AdapterConfig,
    Backbone,
    BackboneConfig,
    Guests,
    Interaction,
    Level,
    LoadReport,
    Tokens,
)
from vitdense.contracts.heads import ContrastiveHead, Head, HeadConfig, Tokenizer
from vitdense.registry import Registry

__all__ = [
    "ADAPTERS",
    "BACKBONES",
    "DATA",
    "HEADS",
    "IGNORE",
    "METRICS",
    "Adapter",
    "AdapterConfig",
    "Backbone",
    "BackboneConfig",
    "Batch",
    "ContrastiveHead",
    "DataConfig",
    "Detections",
    "Embeddings",
    "Guests",
    "Head",
    "HeadConfig",
    "Interaction",
    "Level",
    "LoadReport",
    "Metric",
    "MetricConfig",
    "Outputs",
    "Predictions",
    "Sample",
    "Samples",
    "Segments",
    "Split",
    "Target",
    "Tokenizer",
    "Tokens",
    "require",
]

BACKBONES: Registry[BackboneConfig] = Registry("backbone", ("vitdense.backbones",))
ADAPTERS: Registry[AdapterConfig] = Registry("adapter", ("vitdense.adapters",))
HEADS: Registry[HeadConfig] = Registry("head")
DATA: Registry[DataConfig] = Registry("data set", ("vitdense.data",))
METRICS: Registry[MetricConfig] = Registry("metric", ("vitdense.metrics",))
