"""Averages of the loss terms since the last record: kept on the device, read once, refused where they aren't finite."""

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from vitdense.errors import TrainingError


class Averages:
    """A window of steps; `start` is the last step that is not in it."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.began = time.perf_counter()
        self.batches = 0
        self.skipped = 0
        self.ids: list[str] = []
        self._sums: dict[str, Tensor] = {}

    def add(self, losses: Mapping[str, Tensor], ids: list[str], skipped: int) -> None:
        """Count one micro-batch, without waiting for the device."""
        for name, value in losses.items():
            total = self._sums.get(name)
            value = value.detach().float()
            self._sums[name] = value if total is None else total + value
        self.batches += 1
        self.skipped += skipped
        self.ids += ids

    def read(self, step: int) -> dict[str, float]:
        """The mean of every term over the window; TrainingError names the steps and pictures if one is not finite."""
        names = list(self._sums)
        means = (torch.stack([self._sums[name] for name in names]) / self.batches).tolist()
        values = dict(zip(names, means, strict=True))
        if not all(math.isfinite(value) for value in means):
            terms = ", ".join(f"{name} {value}" for name, value in values.items())
            raise TrainingError(
                f"the loss is not finite between steps {self.start + 1} and {step} ({terms});"
                f" pictures: {', '.join(self.ids[:32])}. No checkpoint holds these steps;"
                " try a lower optim.lr, engine.clip=1.0 or engine.precision=32-true"
            )
        return values

    def seconds(self) -> float:
        """How long the window took so far."""
        return time.perf_counter() - self.began
