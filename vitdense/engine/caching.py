"""Exact gradients of a loss that compares all pictures of a step, from micro-batches (GradCache,
https://arxiv.org/abs/2101.06983): the memory of one micro-batch, the gradient of all."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from vitdense.contracts import Batch, Head, Outputs

Shares = dict[str, Tensor]
"""Of one micro-batch: the gradient by each output."""


def learn_jointly(
    fabric: Fabric, model: nn.Module, head: Head, batches: Sequence[Batch], *, graphs: bool = False
) -> dict[str, Tensor]:
    """The losses of all micro-batches taken as one; gradients are added to the parameters of `model`.

    Every micro-batch but the last passes twice, with the same random numbers: first for its outputs, then, once the
    loss has told their gradients, for those of the parameters. Batch norms see a micro-batch at a time, and remember
    each of them once. `graphs`: the first pass keeps its graph until it ends; compiled models draw other random
    numbers without one.
    """
    states, outputs = [], []
    for batch in batches[:-1]:
        states.append(_random_state(fabric.device))
        with fabric.no_backward_sync(model), torch.set_grad_enabled(graphs), _norms_forget(model):  # type: ignore[arg-type]
            outputs.append({name: each.detach() for name, each in model({**batch, "lean": True}).items()})
    with fabric.no_backward_sync(model):  # type: ignore[arg-type]
        last: Outputs = model({**batches[-1], "lean": True})
        losses, shares = _compare(head, [*outputs, last], join_batches(batches))
        fabric.backward(_product(last, shares[-1]))
    for number, (batch, state, share) in enumerate(zip(batches[:-1], states, shares[:-1], strict=True), start=2):
        _set_random_state(state, fabric.device)
        with fabric.no_backward_sync(model, enabled=number < len(batches)):  # type: ignore[arg-type]
            fabric.backward(_product(model({**batch, "lean": True}), share))
    return losses


def _compare(head: Head, outputs: Sequence[Outputs], batch: Batch) -> tuple[dict[str, Tensor], list[Shares]]:
    """Losses of all, and of each micro-batch the gradient by its outputs; what all share, as the scale, in parts."""
    leaves = {}
    for name, last in outputs[-1].items():
        joined = last.detach() if last.ndim == 0 else join_rows([each[name].detach() for each in outputs])
        leaves[name] = joined.requires_grad_(last.requires_grad)
    asked = [name for name, leaf in leaves.items() if leaf.requires_grad]
    losses = head.losses(leaves, batch)
    total = torch.stack([*losses.values()]).sum()
    found = torch.autograd.grad(total, [leaves[name] for name in asked], allow_unused=True)
    gradients = {name: each for name, each in zip(asked, found, strict=True) if each is not None}
    shares: list[Shares] = [{} for _ in outputs]
    for name, gradient in gradients.items():
        start = 0
        for share, each in zip(shares, outputs, strict=True):
            if gradient.ndim == 0:
                share[name] = gradient / len(outputs)
                continue
            size = each[name].shape
            share[name] = gradient[start : start + size[0]][(slice(None), *(slice(side) for side in size[1:]))]
            start += size[0]
    return {name: each.detach() for name, each in losses.items()}, shares


def _product(outputs: Outputs, share: Shares) -> Tensor:
    """What has `share` as its gradient by the outputs."""
    return torch.stack([(outputs[name] * gradient).sum() for name, gradient in share.items()]).sum()


def join_batches(batches: Sequence[Batch]) -> Batch:
    """One batch of several, but for the pictures themselves: what a loss needs of them went through the model."""
    return cast("Batch", _join([{name: each for name, each in b.items() if name != "images"} for b in batches]))


def _join(parts: Sequence[Any]) -> Any:
    """Lists end to end, tensors by rows, mappings by their keys; of what has no rows, the first."""
    first = parts[0]
    if isinstance(first, Mapping):
        return {name: _join([each[name] for each in parts]) for name in first}
    if isinstance(first, Tensor) and first.ndim:
        return join_rows(parts)
    return [each for part in parts for each in part] if isinstance(first, list) else first


def join_rows(parts: Sequence[Tensor]) -> Tensor:
    """(n, ...) each -> (N, ...); sides that differ, as those of trimmed tokens, are filled with 0 behind."""
    sides = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    filled = []
    for part in parts:
        missing = [(0, side - own) for side, own in zip(sides, part.shape[1:], strict=True)]
        filled.append(F.pad(part, [number for pair in reversed(missing) for number in pair]))
    return torch.cat(filled)


@contextmanager
def _norms_forget(model: nn.Module) -> Iterator[None]:
    """Batch norms learn nothing of a pass that will be gone again."""
    norms = [each for each in model.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]
    for norm in norms:
        norm.track_running_stats = not norm.training
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
