"""Processes and devices: Fabric for a recipe, and what all processes must agree on."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from vitdense.errors import UserError
from vitdense.recipe import EngineConfig

M = TypeVar("M", bound=nn.Module)


def launch(engine: EngineConfig, *, every_gradient: bool = True) -> Fabric:
    """Fabric for this recipe; under torchrun it takes the processes that torchrun started.

    every_gradient: whether each step gives every parameter one, so that processes needn't look for those without.
    """
    local, world = int(os.environ.get("LOCAL_WORLD_SIZE", 0)), int(os.environ.get("WORLD_SIZE", 1))
    on_gpu = engine.accelerator in ("auto", "cuda") and torch.cuda.is_available()
    fast_bf16 = on_gpu or (engine.accelerator != "mps" and torch.cpu._is_avx512_bf16_supported())
    precision = engine.precision if engine.precision != "auto" else ("bf16-mixed" if fast_bf16 else "32-true")
    strategy = "ddp" if world > 1 else engine.strategy
    fabric = Fabric(
        accelerator=engine.accelerator if engine.accelerator != "auto" else ("cuda" if on_gpu else "cpu"),
        devices=local or (1 if engine.devices == "auto" else engine.devices),
        num_nodes=world // local if local else 1,
        strategy="ddp_find_unused_parameters_true" if strategy == "ddp" and not every_gradient else strategy,
        precision=precision,
    )
    fabric.launch()
    return fabric


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Numbers too small for full precision (below 1e-38 in float32) count as 0.

    A CPU takes many times as long for each of them; as a model learns, fading activations and gradients fill with them,
    and a depth recipe was seen to slow down from 9 to 1 pictures a second.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def any_process(fabric: Fabric, asked: bool) -> bool:
    """Whether any process was asked; all get the same answer."""
    if fabric.world_size == 1:
        return asked
    return bool(sum_over_processes(fabric, torch.tensor(float(asked), device=fabric.device)) > 0)


def sum_over_processes(fabric: Fabric, counts: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    total: Any = fabric.all_reduce(counts.to(fabric.device), reduce_op="sum")
    assert isinstance(total, Tensor)
    return total


def gather_from_processes(fabric: Fabric, rows: Tensor) -> Tensor:
    """rows: (n, ...), of which each process has as many as it likes -> those of all, in the order of the processes."""
    gather: Any = fabric.all_gather
    numbers = gather(torch.tensor([len(rows)], device=fabric.device)).flatten().tolist()
    if max(numbers) == 0:
        return rows
    padded = rows.new_zeros((max(numbers), *rows.shape[1:]), device=fabric.device)
    padded[: len(rows)] = rows
    parts = gather(padded).view(-1, *padded.shape)
    return torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)])


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for every (seed, step, process)."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def peak_bytes() -> int:
    """Most memory held so far: the GPU's where there is one, else this process's."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def share_batchnorm(fabric: Fabric, model: M) -> M:
    """Batch norms that see the batches of all processes."""
    if fabric.device.type != "cuda":
        raise UserError("engine.sync_batchnorm works between GPUs only; set it to false for CPU processes")
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    converted: M = convert(model)
    return converted
