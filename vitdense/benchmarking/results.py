"""What a row gave: numerics, times, peaks, and ratios where the numerics allow them."""

import math
from dataclasses import asdict, dataclass, field
from typing import Literal

from vitdense.benchmarking.clocks import Times
from vitdense.benchmarking.numerics import Check
from vitdense.benchmarking.peak import Peak
from vitdense.benchmarking.rows import OURS, Goal, Row

COMPILED = " compiled"


@dataclass(frozen=True)
class Cost:
    """What one step of a contender takes; a peak that could not be measured is None."""

    times: Times
    peak: Peak | None = None
    host_syncs: int | None = None


@dataclass(frozen=True)
class Ratio:
    """Ours in its fastest form over the fastest and the leanest peer; lower is better, None where nothing was seen."""

    ours: str
    time: float
    fastest: str
    peak: float | None
    leanest: str | None


@dataclass
class Result:
    """`checks` by peer, `costs` by contender, and why others are absent; a cost exists only where all checks agree."""

    row: Row
    goal: Goal | None
    checks: dict[str, Check] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> Literal["measured", "numerics differ", "not measured"]:
        """Never "measured" without a peer whose numerics agree."""
        if any(not check.agrees for check in self.checks.values()):
            return "numerics differ"
        return "measured" if self._peers else "not measured"

    @property
    def problem(self) -> str | None:
        """What stands in place of a ratio."""
        if self.status == "numerics differ":
            worst = [f"{name}: {check}" for name, check in self.checks.items() if not check.agrees]
            return f"numerics differ: {'; '.join(worst)}"
        if self.status == "not measured":
            reasons = dict.fromkeys(self.absent.values()) or ["no peer was asked for"]
            return f"not measured: {'; '.join(reasons)}"
        return None

    @property
    def ratio(self) -> Ratio | None:
        """None unless the row was measured."""
        if self.status != "measured":
            return None
        ours = min((name for name in self.costs if is_ours(name)), key=self._median)
        fastest = min(self._peers, key=self._median)
        peaks = {name: cost.peak.above for name, cost in self.costs.items() if cost.peak is not None}
        leanest = min((name for name in self._peers if name in peaks), key=peaks.__getitem__, default=None)
        return Ratio(
            ours=ours,
            time=self._median(ours) / self._median(fastest),
            fastest=fastest,
            peak=peaks[ours] / peaks[leanest] if leanest is not None and peaks[leanest] and ours in peaks else None,
            leanest=leanest,
        )

    def to_json(self) -> dict[str, object]:
        """Everything that was seen, samples too."""
        return {
            "row": self.row.name,
            "summary": self.row.summary,
            "notes": list(self.row.notes),
            "status": self.status,
            "problem": self.problem,
            "goal": self.goal and asdict(self.goal),
            "ratio": self.ratio and asdict(self.ratio),
            "checks": {name: _check_to_json(check) for name, check in self.checks.items()},
            "contenders": {name: _cost_to_json(cost) for name, cost in self.costs.items()},
            "not_measured": self.absent,
        }

    @property
    def _peers(self) -> list[str]:
        return [name for name in self.costs if not is_ours(name)]

    def _median(self, name: str) -> float:
        return self.costs[name].times.median


def is_ours(contender: str) -> bool:
    """Whether a contender is ours, compiled or not."""
    return contender.removesuffix(COMPILED) == OURS


def _check_to_json(check: Check) -> dict[str, object]:
    # JSON has no infinity, which is how far apart tensors of different shapes are.
    finite = check.distance if math.isfinite(check.distance) else None
    return {"tensor": check.tensor, "distance": finite, "bound": check.bound, "agrees": check.agrees}


def _cost_to_json(cost: Cost) -> dict[str, object]:
    low, high = cost.times.quartiles
    return {
        "median_seconds": cost.times.median,
        "quartile_seconds": [low, high],
        "samples_seconds": list(cost.times.samples),
        "peak_bytes": cost.peak and cost.peak.above,
        "held_bytes": cost.peak and cost.peak.held,
        "host_syncs": cost.host_syncs,
    }
