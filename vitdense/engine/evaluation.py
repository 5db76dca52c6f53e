"""Metrics of a model on a split: exact under any batch size and any number of processes."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from vitdense import pictures
from vitdense.contracts import Batch, Metric, Samples
from vitdense.data.loader import eval_loader
from vitdense.engine.launch import sum_over_processes
from vitdense.inference import infer
from vitdense.model import Model
from vitdense.recipe import Recipe


def evaluate(
    fabric: Fabric,
    model: Model,
    samples: Samples,
    recipe: Recipe,
    *,
    limit: int | None = None,
    panels: list[Any] | None = None,
) -> tuple[dict[str, float], Metric]:
    """Metrics of a model on a split, exact over any number of processes; the first pictures go into `panels`."""
    metric = recipe.metric.build(samples)
    model.eval()
    batches: Iterable[Batch] = eval_loader(
        samples, recipe.data, rank=fabric.global_rank, world_size=fabric.world_size, limit=limit
    )
    with torch.no_grad(), fabric.autocast():
        for batch in batches:
            batch = to_device(batch, fabric.device)
            predictions = infer(model, batch, recipe.inference)
            metric.update(predictions, batch)
            if panels is not None and fabric.is_global_zero:
                room = recipe.engine.pictures - len(panels)
                for image, mask, result in list(zip(batch["images"], batch["masks"], predictions, strict=True))[:room]:
                    panels.append(
                        pictures.panel(image.permute(1, 2, 0), mask, result, samples.classes, samples.palette)
                    )
    if fabric.world_size > 1:
        metric.reduce(partial(sum_over_processes, fabric))
    return metric.compute(), metric


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with its tensors on a device."""
    moved = {key: value.to(device, non_blocking=True) for key, value in batch.items() if isinstance(value, Tensor)}
    return {**batch, **moved}  # type: ignore[typeddict-item]
