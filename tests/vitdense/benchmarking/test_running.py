"""A row is measured whole or not at all: numerics first, then time and memory, and what is missing is said."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vitdense.benchmarking import Plan, make_plan, measure
from vitdense.benchmarking.peak import Peak
from vitdense.benchmarking.results import Result
from vitdense.errors import UserError

MIB = 2**20


def plan_for(*rows: str, rounds: int = 7, peers: list[str] | None = None) -> Plan:
    return make_plan(rows, device="cpu", rounds=rounds, peers=peers)


@pytest.fixture(scope="module")
def easy() -> Result:
    """Ours does half the work of `double`; `greedy` takes 64 MiB more; `missing` is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        return measure("toy_rows:EASY", plan_for("toy_rows:EASY"), lambda text: None)


def test_half_the_work_is_a_ratio_below_one(easy: Result) -> None:
    assert easy.status == "measured"
    assert easy.ratio is not None
    assert (easy.ratio.ours, easy.ratio.fastest) == ("ours", "double")
    assert 0.3 < easy.ratio.time < 0.75
    assert len(easy.costs["ours"].times.samples) == 7


def test_64_mebibytes_more_show_in_the_peak(easy: Result) -> None:
    ours, greedy = easy.costs["ours"].peak, easy.costs["greedy"].peak
    assert ours is not None
    assert greedy is not None
    assert greedy.above - ours.above == pytest.approx(64 * MIB, abs=4 * MIB)
    assert easy.ratio is not None
    assert easy.ratio.leanest == "double"


def test_a_peer_that_takes_nothing_is_the_leanest_and_nothing_is_divided_by_it(easy: Result) -> None:
    free = replace(easy.costs["double"], peak=Peak(held=MIB, above=0))
    ratio = replace(easy, costs={**easy.costs, "double": free}).ratio
    assert ratio is not None
    assert (ratio.leanest, ratio.peak) == ("double", None)


def test_a_library_that_is_missing_is_not_measured_and_takes_no_part(easy: Result) -> None:
    assert easy.absent == {"missing": "no_such_library is not installed"}
    assert "missing" not in {**easy.costs, **easy.checks}


def test_a_row_whose_peers_are_all_missing_is_not_measured() -> None:
    plan = plan_for("toy_rows:EASY", peers=["missing"])
    result = measure("toy_rows:EASY", plan, lambda text: None)
    assert (result.status, result.ratio, result.costs) == ("not measured", None, {})
    assert result.problem == "not measured: no_such_library is not installed"


def test_a_row_without_our_part_is_not_measured() -> None:
    result = measure("toy_rows:HOMELESS", plan_for("toy_rows:HOMELESS"), lambda text: None)
    assert result.problem == "not measured: there is no backbone 'toy' yet"
    assert result.ratio is None


def test_numerics_that_differ_leave_no_time_and_no_ratio() -> None:
    result = measure("toy_rows:WRONG", plan_for("toy_rows:WRONG"), lambda text: None)
    assert (result.status, result.ratio, result.costs) == ("numerics differ", None, {})
    assert result.problem == "numerics differ: wrong: number by 5.0e-02 (allowed 1.0e-05)"


def test_our_compiled_form_must_agree_with_ours() -> None:
    plan = replace(plan_for("toy_rows:COMPILED"), forms=(False, True))
    result = measure("toy_rows:COMPILED", plan, lambda text: None)
    assert (result.status, result.ratio) == ("numerics differ", None)
    assert "ours compiled: number by 5.0e-02" in (result.problem or "")


def test_a_peers_compiled_form_that_differs_takes_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdense.benchmarking.running._peak", lambda *_: None)
    plan = replace(plan_for("toy_rows:PEER_COMPILED"), forms=(False, True))
    result = measure("toy_rows:PEER_COMPILED", plan, lambda text: None)
    assert list(result.costs) == ["ours", "ours compiled", "double"]
    assert "numerics differ from its own" in result.absent["double compiled"]
    assert result.ratio is not None
    assert (result.ratio.fastest, result.ratio.peak) == ("double", None)


def test_a_memory_process_that_fails_leaves_the_peak_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    plan = plan_for("toy_rows:EASY", rounds=1, peers=["double"])
    result = measure("toy_rows:EASY", plan, lambda text: None)
    assert result.ratio is not None
    assert result.ratio.peak is None
    assert result.absent["peak of ours"] == "its process failed: no message"


def test_every_piece_of_work_is_told_of_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdense.benchmarking.running._peak", lambda *_: None)
    plan = replace(plan_for("toy_rows:EASY", rounds=2, peers=["double"]), forms=(False, True))
    told: list[str] = []
    measure("toy_rows:EASY", plan, told.append)
    assert len(told) == plan.count_pieces()
    assert told[0] == "easy: checking double"
    assert told[-1] == "easy: memory of double compiled"


def test_threads_are_set_for_the_row_and_given_back() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    plan = make_plan(["toy_rows:EASY"], device="cpu", peers=["missing"], threads=before + 1)
    measure("toy_rows:EASY", plan, lambda text: seen.append(torch.get_num_threads()))
    assert (set(seen), torch.get_num_threads()) == ({before + 1}, before)


def test_one_thread_is_timed_by_processor_time_and_several_on_the_wall() -> None:
    assert plan_for("toy_rows:EASY").clock == "cpu"
    assert plan_for("toy_rows:EASY").conditions.threads == 1
    assert make_plan(["toy_rows:EASY"], device="cpu", threads=2).clock == "wall"
    assert make_plan(["toy_rows:EASY"], device="cpu", threads=2, clock="cpu").clock == "cpu"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds must be 1 or more, given 0"),
        ({"batch": -1}, "batch must be 1 or more, given -1"),
        ({"threads": 0}, "threads must be 1 or more, given 0"),
        ({"peers": ["doubel"]}, "no peer named 'doubel' in easy; did you mean 'double'?"),
        ({"clock": "events"}, "clock 'events' is for the other device"),
    ],
)
def test_what_a_plan_refuses(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        make_plan(["toy_rows:EASY"], **{"device": "cpu", **options})  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="there is no CUDA device here"):
        make_plan(["toy_rows:EASY"], device="cuda")


@pytest.mark.gpu
def test_a_gpu_measures_both_forms_with_syncs_and_peaks() -> None:
    plan = make_plan(["vit_b16_train"], device="cuda", rounds=2, peers=["timm"], tiny=True)
    result = measure("vit_b16_train", plan, lambda text: None)
    assert result.status == "measured", result.problem
    assert set(result.costs) == {"ours", "ours compiled", "timm", "timm compiled"}
    for cost in result.costs.values():
        assert cost.times.median > 0
        assert cost.peak is not None
        assert cost.peak.above > 0
        assert cost.host_syncs is not None
