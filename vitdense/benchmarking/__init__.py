"""Ours and the peers side by side: the same weights, numerics first, then time and memory as ratios."""

from vitdense.benchmarking.catalogue import ROWS, find_row
from vitdense.benchmarking.report import Report, list_rows
from vitdense.benchmarking.rows import AbsentError, Conditions, Goal, Job, Outcome, Pair, Peer, Row
from vitdense.benchmarking.running import ROUNDS, Plan, make_plan, measure

__all__ = [
    "ROUNDS",
    "ROWS",
    "AbsentError",
    "Conditions",
    "Goal",
    "Job",
    "Outcome",
    "Pair",
    "Peer",
    "Plan",
    "Report",
    "Row",
    "find_row",
    "list_rows",
    "make_plan",
    "measure",
]
