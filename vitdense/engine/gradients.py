"""The gradients of one step: of its micro-batches one after the other, or of all of them as one."""

from collections.abc import Iterator
from itertools import chain

import torch
from lightning.fabric import Fabric
from torch import nn

from vitdense.contracts import Batch, Head
from vitdense.engine.averages import Averages
from vitdense.engine.caching import learn_jointly


def learn_step(
    fabric: Fabric,
    model: nn.Module,
    head: Head,
    batches: Iterator[Batch],
    parts: int,
    window: Averages,
    *,
    compiled: bool,
) -> list[list[str]]:
    """Gradients of the mean loss of `parts` micro-batches, or of the one loss of a head that compares all pictures of a
    step; losses go into the window. The ids of each micro-batch."""
    if head.joint and parts > 1:
        return _as_one(fabric, model, head, [next(batches) for _ in range(parts)], window, compiled=compiled)
    ids = []
    for number in range(parts):
        batch = next(batches)
        ids.append(batch["ids"])
        with fabric.no_backward_sync(model, enabled=number + 1 < parts):  # type: ignore[arg-type]
            losses = head.losses(model({**batch, "lean": True}), batch)
            loss = torch.stack([*losses.values()]).sum()
            fabric.backward(loss / parts)
        window.add({"loss": loss, **losses}, batch["ids"], len(batch.get("skipped", [])))
    return ids


def _as_one(
    fabric: Fabric, model: nn.Module, head: Head, batches: list[Batch], window: Averages, *, compiled: bool
) -> list[list[str]]:
    losses = learn_jointly(fabric, model, head, batches, graphs=compiled)
    ids = [batch["ids"] for batch in batches]
    skipped = sum(len(batch.get("skipped", [])) for batch in batches)
    window.add({"loss": torch.stack([*losses.values()]).sum(), **losses}, [*chain(*ids)], skipped)
    return ids
