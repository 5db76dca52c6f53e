"""Peak memory of one step, in a process of its own: python -m vitdense.benchmarking.peak ROW CONTENDER CONDITIONS."""

import gc
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vitdense.benchmarking.catalogue import find_row
from vitdense.benchmarking.compiling import compiling
from vitdense.benchmarking.rows import AbsentError, Conditions, Job

WARM_UPS = 2
# Freed blocks of 128 KiB and more go back to the system at once, or what an earlier step freed would hide a peak.
RETURNING = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


@dataclass(frozen=True)
class Peak:
    """Bytes: held before a step (weights, inputs, gradients of the step before), and the most above that within it."""

    held: int
    above: int


def measure_peak(reference: str, contender: str, conditions: Conditions) -> Peak:
    """The peak of a contender of the row called `reference`, in a new process; AbsentError where that fails."""
    if conditions.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise AbsentError("peak memory of a process is read from Linux's /proc")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if conditions.device == "cpu":
        environment |= RETURNING
    command = [sys.executable, "-m", __name__, reference, contender, json.dumps(asdict(conditions))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise AbsentError(f"its process failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def peak_here(job: Job, conditions: Conditions) -> Peak:
    """The peak of a step of `job` in this process, after steps that fill what is kept between them."""
    for _ in range(WARM_UPS):
        job.step()
    gc.collect()
    if conditions.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        job.step()
        torch.cuda.synchronize()
        return Peak(held, torch.cuda.max_memory_allocated() - held)
    held = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is resident now
    job.step()
    return Peak(held, _resident("VmHWM") - held)


def _resident(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


def main(reference: str, contender: str, described: str) -> None:
    """Prints the peak as JSON."""
    conditions = Conditions(**json.loads(described))
    if conditions.threads is not None:
        torch.set_num_threads(conditions.threads)
    with compiling(wanted=conditions.compiled):
        job = find_row(reference).builder(contender)(conditions)
        print(json.dumps(asdict(peak_here(job, conditions))))


if __name__ == "__main__":
    main(*sys.argv[1:])
