"""Ratios: ours in its fastest form, over the fastest and over the leanest peer, wherever they come from."""

import json
import math

from vitdense.benchmarking import Conditions, Job, Row
from vitdense.benchmarking.clocks import Times
from vitdense.benchmarking.numerics import Check
from vitdense.benchmarking.peak import Peak
from vitdense.benchmarking.results import Cost, Result


def no_job(conditions: Conditions) -> Job:
    raise AssertionError("nothing is built here")


def cost(seconds: float, peak: int | None) -> Cost:
    return Cost(Times((seconds,)), None if peak is None else Peak(held=0, above=peak))


def result(costs: dict[str, Cost], checks: dict[str, Check] | None = None) -> Result:
    return Result(Row("toy", "", no_job, ()), None, checks or {}, costs)


def test_more_time_than_the_fastest_peer_is_a_ratio_above_one() -> None:
    ratio = result({"ours": cost(3, 10), "a": cost(2, 40), "b": cost(4, 20)}).ratio
    assert ratio is not None
    assert (ratio.time, ratio.fastest) == (1.5, "a")
    assert (ratio.peak, ratio.leanest) == (0.5, "b")


def test_ours_counts_in_one_form_and_peers_in_any() -> None:
    costs = {"ours": cost(4, 10), "ours compiled": cost(2, 30), "a": cost(8, 60), "a compiled": cost(5, 90)}
    ratio = result(costs).ratio
    assert ratio is not None
    assert (ratio.ours, ratio.fastest, ratio.leanest) == ("ours compiled", "a compiled", "a")
    assert (ratio.time, ratio.peak) == (0.4, 0.5)


def test_no_peak_of_ours_or_of_any_peer_is_no_peak_ratio() -> None:
    for ours, theirs in ((None, 10), (10, None), (10, 0)):
        ratio = result({"ours": cost(1, ours), "a": cost(2, theirs)}).ratio
        assert ratio is not None
        assert (ratio.time, ratio.peak) == (0.5, None)


def test_ours_alone_is_no_measurement() -> None:
    alone = result({"ours": cost(1, 1)})
    assert (alone.status, alone.ratio) == ("not measured", None)


def test_numerics_that_differ_outrank_times() -> None:
    differing = result({"ours": cost(1, 1), "a": cost(2, 1)}, {"a": Check("map 0", math.nan, 1e-5)})
    assert (differing.status, differing.ratio) == ("numerics differ", None)


def test_json_has_samples_and_no_infinity() -> None:
    found = result({"ours": cost(1, 8), "a": cost(2, 16)}, {"a": Check("map 0", 1e-7, 1e-5)}).to_json()
    assert found["ratio"] == {"ours": "ours", "time": 0.5, "fastest": "a", "peak": 0.5, "leanest": "a"}
    shaped = result({}, {"a": Check("map 0", math.inf, 1e-5)}).to_json()
    assert "Infinity" not in json.dumps(shaped)
    assert shaped["checks"] == {"a": {"tensor": "map 0", "distance": None, "bound": 1e-5, "agrees": False}}
