"""The loop on Lightning Fabric; no other room imports lightning."""

from vitdense.engine.evaluation import evaluate
from vitdense.engine.launch import launch
from vitdense.engine.rehearsal import rehearse
from vitdense.engine.training import FitResult, fit

__all__ = ["FitResult", "evaluate", "fit", "launch", "rehearse"]
