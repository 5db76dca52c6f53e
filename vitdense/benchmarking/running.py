"""How a row is measured: numerics of every peer first, then all contenders interleaved, then memory one by one."""

import gc
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch

from vitdense.benchmarking.catalogue import check_peers, find_row
from vitdense.benchmarking.clocks import CLOCKS, Clock, Times, count_host_syncs, interleave
from vitdense.benchmarking.compiling import compiling, refusing_to_compile
from vitdense.benchmarking.numerics import Check, check_peer, compare, exact_floats
from vitdense.benchmarking.peak import Peak, measure_peak
from vitdense.benchmarking.results import COMPILED, Cost, Result, is_ours
from vitdense.benchmarking.rows import OURS, AbsentError, Conditions, Device, Job, Peer, Precision, Row
from vitdense.errors import UserError

Advance = Callable[[str], None]
ROUNDS = 7
WARM_UPS: dict[Device, int] = {"cpu": 1, "cuda": 20}


@dataclass(frozen=True)
class Plan:
    """Rows by name, under which conditions, against whom (`peers` None: all), and in which forms: compiled or not."""

    rows: tuple[str, ...]
    conditions: Conditions
    clock: Clock
    rounds: int = ROUNDS
    peers: tuple[str, ...] | None = None
    forms: tuple[bool, ...] = (False,)

    def peers_of(self, row: Row) -> list[Peer]:
        """Those that were asked for."""
        return [peer for peer in row.peers if self.peers is None or peer.name in self.peers]

    def count_pieces(self) -> int:
        """How often `measure` calls `advance`, if all goes well."""
        pieces = 0
        for name in self.rows:
            peers = len(self.peers_of(find_row(name)))
            pieces += peers + (peers + 1) * len(self.forms) * (self.rounds + 2)
        return pieces


def make_plan(
    rows: Sequence[str],
    *,
    device: Device | None = None,
    precision: Precision | None = None,
    batch: int | None = None,
    threads: int | None = None,
    clock: Clock | None = None,
    rounds: int = ROUNDS,
    peers: Sequence[str] | None = None,
    tiny: bool = False,
) -> Plan:
    """A plan with what was left out filled in; UserError names what is wrong, before anything is built.

    A GPU works in bf16, compiled and not, and is timed by events; a CPU in fp32 on one thread, by processor time.
    """
    for name, number in (("rounds", rounds), ("batch", batch), ("threads", threads)):
        if number is not None and number < 1:
            raise UserError(f"{name} must be 1 or more, given {number}")
    check_peers([find_row(name) for name in rows], peers or ())
    on_gpu = torch.cuda.is_available() if device is None else device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here: leave device out, or give cpu")
    if on_gpu != (clock == "events") and clock is not None:
        raise UserError(f"clock {clock!r} is for the other device: cpu or wall on a CPU, CUDA events on a GPU")
    if not on_gpu:
        threads = threads or 1
    conditions = Conditions(
        device="cuda" if on_gpu else "cpu",
        precision=precision or ("bf16" if on_gpu else "fp32"),
        batch=batch,
        threads=threads,
        tiny=tiny,
    )
    # Processor time adds up over threads, so that it would hide what they gain.
    default: Clock = "events" if on_gpu else "cpu" if threads == 1 else "wall"
    return Plan(
        rows=tuple(rows),
        conditions=conditions,
        clock=clock or default,
        rounds=rounds,
        peers=None if peers is None else tuple(peers),
        forms=(False, True) if on_gpu else (False,),
    )


def measure(name: str, plan: Plan, advance: Advance) -> Result:
    """One row; `advance` hears of each piece of work before it begins."""
    row = find_row(name)

    def tell(text: str) -> None:
        advance(f"{row.name}: {text}")

    with _threads(plan.conditions.threads):
        result = Result(row, row.goals.get(plan.conditions.device))
        for peer in plan.peers_of(row):
            tell(f"checking {peer.name}")
            try:
                result.checks[peer.name] = _check(peer, plan.conditions)
            except AbsentError as reason:
                result.absent[peer.name] = str(reason)
        if not result.checks or result.status == "numerics differ":
            return result
        with compiling(wanted=True in plan.forms):
            times, syncs = _times(row, plan, result, tell)
    for contender in times:
        tell(f"memory of {contender}")
        peak = _peak(name, contender, plan.conditions, result)
        result.costs[contender] = Cost(times[contender], peak, syncs.get(contender))
    return result


def _check(peer: Peer, conditions: Conditions) -> Check:
    if importlib.util.find_spec(peer.needs) is None:
        raise AbsentError(f"{peer.needs} is not installed")
    return check_peer(peer, conditions)


def _times(row: Row, plan: Plan, result: Result, tell: Advance) -> tuple[dict[str, Times], dict[str, int]]:
    """Times and host syncs by contender; none where a compiled form of ours computes something else."""
    jobs: dict[str, Job] = {}
    for contender in (OURS, *result.checks.copy()):
        for compiled in plan.forms:
            label = contender + COMPILED * compiled
            tell(f"warming up {label}")
            try:
                jobs[label] = _warm(row, contender, replace(plan.conditions, compiled=compiled), jobs.get(contender))
            except AbsentError as reason:
                result.absent[label] = str(reason)
            except _DiffersError as error:
                if is_ours(label):
                    result.checks[label] = error.check
                    return {}, {}
                result.absent[label] = f"numerics differ from its own, not compiled: {error.check}"
    if OURS not in jobs:
        return {}, {}
    steps = {label: job.step for label, job in jobs.items()}
    times = interleave(steps, rounds=plan.rounds, clock=CLOCKS[plan.clock], advance=tell)
    on_gpu = plan.conditions.device == "cuda"
    return times, {label: count_host_syncs(step) for label, step in steps.items()} if on_gpu else {}


class _DiffersError(Exception):
    """A compiled form that computes something else than the same, not compiled."""

    def __init__(self, check: Check) -> None:
        super().__init__(str(check))
        self.check = check


def _warm(row: Row, contender: str, conditions: Conditions, eager: Job | None) -> Job:
    job = row.builder(contender)(conditions)
    with refusing_to_compile() if conditions.compiled else nullcontext():
        for _ in range(WARM_UPS[conditions.device]):
            job.step()
    if conditions.compiled and eager is not None:
        with exact_floats(conditions):
            exact = row.builder(contender)(replace(conditions, compiled=False, precision="fp32")).outcome()
            given = job.outcome()
            known = {name: each for name, each in eager.outcome().items() if name in given}
            check = compare(given, known, exact if conditions.precision == "bf16" else None)
        if not check.agrees:
            raise _DiffersError(check)
    return job


def _peak(name: str, contender: str, conditions: Conditions, result: Result) -> Peak | None:
    compiled = contender.endswith(COMPILED)
    gc.collect()
    if conditions.device == "cuda":
        torch.cuda.empty_cache()
    try:
        return measure_peak(name, contender.removesuffix(COMPILED), replace(conditions, compiled=compiled))
    except AbsentError as reason:
        result.absent[f"peak of {contender}"] = str(reason)
        return None


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
