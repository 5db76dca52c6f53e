"""Whether two contenders compute the same: without that, no ratio of their times means anything."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitdense.benchmarking.rows import Conditions, Outcome, Peer

EXACT = 1e-5
"""The largest difference allowed in float32, in units of the reference's largest value."""
ROUNDING = 2.0**-8
"""One unit of bf16 beside 1. In bf16 ours may stray from float32 by this, or twice as far as the peer itself does,
both as root mean squares: the largest of many roundings is a matter of luck."""


@dataclass(frozen=True)
class Check:
    """The tensor that differs most, in units of what is allowed for it."""

    tensor: str
    distance: float
    bound: float

    @property
    def agrees(self) -> bool:
        """Never true of a NaN."""
        return self.distance <= self.bound

    @property
    def strain(self) -> float:
        """The distance in units of what is allowed."""
        return math.inf if math.isnan(self.distance) else self.distance / self.bound

    def __str__(self) -> str:
        return f"{self.tensor} by {self.distance:.1e} (allowed {self.bound:.1e})"


def distance(given: Tensor, reference: Tensor) -> float:
    """The largest difference over the reference's largest value; infinite for other shapes, NaN where there is one."""
    if given.shape != reference.shape:
        return math.inf
    apart = (given.double() - reference.double()).abs().max()
    scale = reference.double().abs().max()
    return float(apart / scale) if scale > 0 else math.inf if apart > 0 else 0.0


def spread(given: Tensor, reference: Tensor) -> float:
    """The difference over the reference, both as root mean squares; infinite for other shapes."""
    if given.shape != reference.shape:
        return math.inf
    apart = (given.double() - reference.double()).norm()
    scale = reference.double().norm()
    return float(apart / scale) if scale > 0 else math.inf if apart > 0 else 0.0


def compare(ours: Outcome, theirs: Outcome, exact: Outcome | None = None, *, bound: float = EXACT) -> Check:
    """The worst of all tensors, for each of which `bound` is allowed; with `exact`, a float32 outcome, both may stray
    from it, and ours from theirs' way.
    """
    checks = []
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs:
            checks.append(Check(f"{name} of {'theirs' if name in theirs else 'ours'} alone", math.inf, bound))
        elif exact is None:
            checks.append(Check(name, distance(ours[name], theirs[name]), bound))
        else:
            allowed = max(2 * spread(theirs[name], exact[name]), ROUNDING)
            checks.append(Check(name, spread(ours[name], exact[name]), allowed))
    assert checks, "nothing to compare"
    return max(checks, key=lambda check: check.strain)


def check_peer(peer: Peer, conditions: Conditions) -> Check:
    """Ours with the peer's weights against the peer: in float32, and then in the precision that is timed."""
    eager = replace(conditions, compiled=False)
    with exact_floats(conditions):
        pair = peer.pair(replace(eager, precision="fp32"))
        exact = pair.theirs.outcome()
        check = compare(pair.ours.outcome(), exact, bound=peer.bound or EXACT)
        if not check.agrees or conditions.precision == "fp32":
            return check
        pair = peer.pair(eager)
        return compare(pair.ours.outcome(), pair.theirs.outcome(), exact)


@contextmanager
def exact_floats(conditions: Conditions) -> Iterator[None]:
    """No TF32, which cuDNN's convolutions use unless told not to and which keeps 10 bits."""
    if conditions.device == "cpu":
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
