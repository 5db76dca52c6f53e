"""What a row of the benchmark is: one job, done by us and by each peer with the same weights, and what we aim at."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vitdense.errors import UserError

Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]
Outcome = dict[str, Tensor]
"""What one step gives, by name: maps, loss, gradients."""

OURS = "ours"
SEED = 0


class AbsentError(UserError):
    """Why something can't be measured: a library that isn't installed, a backbone that isn't there."""


@dataclass(frozen=True)
class Conditions:
    """What a job is built for; `batch` None is the row's own, `threads` None torch's, `tiny` a small case for tests."""

    device: Device = "cpu"
    precision: Precision = "fp32"
    batch: int | None = None
    threads: int | None = None
    compiled: bool = False
    tiny: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 where it is asked for; losses stay in float32."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")


class Job(ABC):
    """One contender, built, filled with weights and ready."""

    @abstractmethod
    def step(self) -> None:
        """The work that is timed."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """The same work once more, and all that it gives."""


@dataclass(frozen=True)
class Pair:
    """A peer's job and ours with the peer's weights, in the peer's conventions: their outcomes must agree."""

    ours: Job
    theirs: Job


@dataclass(frozen=True)
class Peer:
    """Another library that does the same. `needs` is the package to import; both raise AbsentError where they can't.

    bound: the largest difference allowed in float32, in units of the reference's largest value; None: the usual one.
    """

    name: str
    needs: str
    build: Callable[[Conditions], Job]
    pair: Callable[[Conditions], Pair]
    bound: float | None = None


@dataclass(frozen=True)
class Goal:
    """Ours over the fastest peer's time, and over the leanest peer's peak of memory."""

    time: float
    peak: float


@dataclass(frozen=True)
class Row:
    """One line of the benchmark; nothing is built before `ours` or a peer is asked to."""

    name: str
    summary: str
    ours: Callable[[Conditions], Job]
    peers: tuple[Peer, ...]
    goals: Mapping[Device, Goal] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def builder(self, contender: str) -> Callable[[Conditions], Job]:
        """What builds a contender: `ours`, or a peer by name."""
        return {OURS: self.ours, **{peer.name: peer.build for peer in self.peers}}[contender]
