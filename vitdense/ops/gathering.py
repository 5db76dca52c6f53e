"""Rows of all processes of torch.distributed put together, and numbers agreed on; alone, they come back as they are."""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


def count_processes() -> int:
    """How many processes learn together; 1 where torch.distributed was not started."""
    if not distributed.is_available() or not distributed.is_initialized():
        return 1
    return distributed.get_world_size()


def count_rows(rows: Tensor) -> list[int]:
    """How many rows (n, ...) each process has."""
    if count_processes() == 1:
        return [len(rows)]
    own = torch.tensor([len(rows)], device=rows.device)
    return torch.cat(_exchange(own)).tolist()


def gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """rows: (n, ...), of which each process has as many as `counts` says -> those of all, in the order of the
    processes; no gradient comes back through them.
    """
    rows = rows.detach()
    if count_processes() == 1:
        return rows
    if len(set(counts)) == 1:
        return torch.cat(_exchange(rows.contiguous()))
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    return torch.cat([part[:count] for part, count in zip(_exchange(padded), counts, strict=True)])


def gather_around(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """As `gather_rows`, but with a gradient to the process's own rows, times the number of processes: the mean over
    processes, which DDP takes of gradients, is then that of a loss of all rows.
    """
    if len(counts) == 1:
        return rows
    own = rows.detach() + len(counts) * (rows - rows.detach())
    everyone, first = gather_rows(rows, counts), first_row(counts)
    return torch.cat([everyone[:first], own, everyone[first + len(rows) :]])


def sum_of_all(numbers: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if count_processes() > 1:
        distributed.all_reduce(numbers, distributed.ReduceOp.SUM)
    return numbers


def greatest_of_all(numbers: Tensor) -> Tensor:
    """The greatest of each place of a tensor over all processes."""
    if count_processes() == 1:
        return numbers
    greatest = numbers.clone()
    distributed.all_reduce(greatest, distributed.ReduceOp.MAX)
    return greatest


def first_row(counts: Sequence[int]) -> int:
    """Where this process's rows begin among those of all."""
    return sum(counts[: distributed.get_rank()]) if len(counts) > 1 else 0


def _exchange(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(count_processes())]
    distributed.all_gather(parts, tensor)
    return parts
