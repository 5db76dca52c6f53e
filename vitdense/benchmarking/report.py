"""What a reader sees: a table for each row, the list of rows, and all of it as one JSON object."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vitdense.benchmarking.catalogue import ROWS
from vitdense.benchmarking.machine import Load, describe_machine, versions
from vitdense.benchmarking.results import Cost, Result, is_ours
from vitdense.benchmarking.rows import Goal
from vitdense.benchmarking.running import ROUNDS, Plan
from vitdense.cli import to_json
from vitdense.errors import UserError

MIB = 2**20


class Report:
    """Gathers results, and writes them to `file` after each row; the machine's load is noted before and after."""

    def __init__(self, plan: Plan, file: str | None = None) -> None:
        self.plan = plan
        self.file = None if file is None else _writable(file)
        self.results: list[Result] = []
        self.begun = datetime.now(UTC)
        self.loads = [Load.now()]

    def add(self, result: Result) -> None:
        """One more row."""
        self.results.append(result)
        self.loads.append(Load.now())
        if self.file is not None:
            self.file.write_text(to_json(self.to_json()) + "\n", encoding="utf-8")

    @property
    def agrees(self) -> bool:
        """Whether no row's numerics differ."""
        return all(result.status != "numerics differ" for result in self.results)

    def to_json(self) -> dict[str, object]:
        """Date, machine, versions, conditions and rows."""
        plan = self.plan
        settings = {"clock": plan.clock, "rounds": plan.rounds, "peers": plan.peers}
        return {
            "date": self.begun.isoformat(timespec="seconds"),
            "machine": describe_machine(),
            "loads": [asdict(load) for load in self.loads],
            "versions": versions(),
            "conditions": {**asdict(plan.conditions), **settings},
            "rows": [result.to_json() for result in self.results],
        }

    def show(self, console: Console) -> None:
        """How it was measured, and a table for each row."""
        console.print(Text(self._conditions()))
        for result in self.results:
            console.print()
            console.print(Text(f"{result.row.name}: {result.row.summary}", style="bold"))
            if result.costs:
                console.print(_table(result))
            for line in _below(result):
                console.print(Text(line))

    def _conditions(self) -> str:
        machine, used = describe_machine(), self.plan.conditions
        where = machine["gpu"] if used.device == "cuda" else f"{machine['processor']}, {used.threads} thread(s)"
        loads = [f"{load.average[0]:.1f}" for load in self.loads]
        text = (
            f"{where}; {used.precision}; clock: {self.plan.clock}, {self.plan.rounds} rounds, interleaved; load average"
            f" {' '.join(loads)}. Time is the median (quartiles) of a step, peak what a step takes above what is held"
            " between steps, ratios are ours over theirs: lower is better."
        )
        rough = f" Fewer than {ROUNDS} rounds are a rough look, no figure to publish."
        return text + rough * (self.plan.rounds < ROUNDS)


def _writable(file: str) -> Path:
    """Refuses, before hours of work, what can't be written or is likely no file."""
    path = Path(file)
    if file in ROWS:
        raise UserError(f"--json would write a file named {file!r}, which is a row: name the rows before --json")
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--json {file}: there is no folder {path.parent} to write a file to")
    return path


def list_rows() -> Table:
    """All rows with their goals."""
    table = Table(box=box.SIMPLE, caption="goals: ours over the best peer, time / peak")
    for heading in ("row", "what", "peers"):
        table.add_column(heading, no_wrap=heading == "row")
    for heading in ("goal, CPU", "goal, GPU"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in ROWS.values():
        peers = ", ".join(peer.name for peer in row.peers)
        table.add_row(row.name, row.summary, peers, *(_goal(row.goals.get(device)) for device in ("cpu", "cuda")))
    return table


def _goal(goal: Goal | None) -> str:
    return "-" if goal is None else f"{goal.time:.2f} / {goal.peak:.2f}"


def _table(result: Result) -> Table:
    on_gpu = any(cost.host_syncs is not None for cost in result.costs.values())
    table = Table(box=box.SIMPLE)
    table.add_column("", no_wrap=True)
    for heading in ("ms", "quartiles", "peak MiB", "time ratio", "peak ratio", "numerics", *["host syncs"] * on_gpu):
        table.add_column(heading, justify="right")
    for name, cost in result.costs.items():
        low, high = cost.times.quartiles
        times = f"{cost.times.median * 1e3:.2f}", f"{low * 1e3:.2f}-{high * 1e3:.2f}"
        peak = "not measured" if cost.peak is None else f"{cost.peak.above / MIB:.1f}"
        syncs = [str(cost.host_syncs)] if on_gpu else []
        table.add_row(name, *times, peak, *_against(result, name, cost), _numerics(result, name), *syncs)
    return table


def _against(result: Result, name: str, cost: Cost) -> Sequence[str]:
    """Ours in its fastest form over this one."""
    if result.ratio is None or is_ours(name):
        return "", ""
    ours = result.costs[result.ratio.ours]
    time = f"{ours.times.median / cost.times.median:.2f}"
    if ours.peak is None or cost.peak is None or cost.peak.above == 0:
        return time, "-"
    return time, f"{ours.peak.above / cost.peak.above:.2f}"


def _numerics(result: Result, name: str) -> str:
    check = result.checks.get(name)
    return "" if check is None else f"{check.distance:.0e}"


def _below(result: Result) -> list[str]:
    """The row's verdict, why what is absent is absent, and the row's notes."""
    lines = [result.problem] if result.problem else []
    ratio, goal = result.ratio, result.goal
    if ratio is not None:
        aims = ("", "") if goal is None else (f" (goal {goal.time:.2f})", f" (goal {goal.peak:.2f})")
        lines.append(f"time: {ratio.ours} / {ratio.fastest}, the fastest = {ratio.time:.2f}{aims[0]}")
        if ratio.peak is None:
            lines.append("peak: not measured")
        else:
            lines.append(f"peak: {ratio.ours} / {ratio.leanest}, the leanest = {ratio.peak:.2f}{aims[1]}")
    if result.status != "not measured":
        lines += [f"not measured: {name}: {reason}" for name, reason in result.absent.items()]
    return lines + [f"note: {note}" for note in result.row.notes]
