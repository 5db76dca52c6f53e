"""Time of a step, contenders interleaved so that a machine's drift falls on all alike; host syncs of a step."""

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

Clock = Literal["cpu", "wall", "events"]
Step = Callable[[], None]

BURST = 10
"""Steps between two CUDA events: one step may be shorter than what launching it costs."""


@dataclass(frozen=True)
class Times:
    """Seconds of one step, one sample for each round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third: half of all samples lie between."""
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high


def cpu_seconds(step: Step) -> float:
    """Seconds of processor time, of all threads together: what others do on the machine hardly shows."""
    begun = time.process_time()
    step()
    return time.process_time() - begun


def wall_seconds(step: Step) -> float:
    """Seconds on the wall."""
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def event_seconds(step: Step) -> float:
    """Seconds of a step between two CUDA events around a burst of them."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begun.record()
    for _ in range(BURST):
        step()
    ended.record()
    torch.cuda.synchronize()
    milliseconds: float = begun.elapsed_time(ended)
    return milliseconds / 1000 / BURST


CLOCKS: dict[Clock, Callable[[Step], float]] = {"cpu": cpu_seconds, "wall": wall_seconds, "events": event_seconds}


def interleave(
    steps: Mapping[str, Step], *, rounds: int, clock: Callable[[Step], float], advance: Callable[[str], None]
) -> dict[str, Times]:
    """A B C, C B A, A B C, ...: one sample of each contender a round. `advance` hears what is timed next."""
    samples: dict[str, list[float]] = {name: [] for name in steps}
    gc.collect()
    gc.freeze()  # what is here already need not be searched again before each step
    try:
        for turn in range(rounds):
            for name in list(steps)[:: 1 if turn % 2 == 0 else -1]:
                advance(f"timing {name}, round {turn + 1} of {rounds}")
                gc.collect()
                samples[name].append(clock(steps[name]))
    finally:
        gc.unfreeze()
    return {name: Times(tuple(each)) for name, each in samples.items()}


def count_host_syncs(step: Step) -> int:
    """How often one step makes the host wait for the GPU."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in caught)
