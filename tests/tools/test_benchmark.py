"""The benchmark command: tables or JSON with every field, exit codes, and one clear message for each mistake."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vitdense import cli
from vitdense.benchmarking import ROWS

Tool = Callable[..., int]
FLAGS = ("--device", "cpu", "--rounds", "2", "--peers", "greedy", "missing")
TOYS = Path(__file__).parents[1] / "vitdense" / "benchmarking"


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOYS)


def test_json_has_machine_versions_date_and_everything_measured(
    run_tool: Tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    assert run_tool("benchmark", "toy_rows:EASY", *FLAGS, "--json", file) == cli.DONE
    found = json.loads(file.read_text())
    assert set(found) == {"date", "machine", "loads", "versions", "conditions", "rows"}
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["torch"]
    assert found["date"].startswith("20")
    assert found["conditions"]["rounds"] == 2
    assert found["conditions"]["threads"] == 1
    (row,) = found["rows"]
    assert (row["row"], row["status"], row["goal"]) == ("easy", "measured", {"time": 0.6, "peak": 0.5})
    assert row["ratio"]["fastest"] == "greedy"
    assert row["not_measured"] == {"missing": "no_such_library is not installed"}
    assert row["checks"]["greedy"] == {"tensor": "number", "distance": 0.0, "bound": 1e-5, "agrees": True}
    assert len(row["contenders"]["greedy"]["samples_seconds"]) == 2
    assert row["contenders"]["greedy"]["peak_bytes"] > row["contenders"]["ours"]["peak_bytes"]
    shown = capsys.readouterr().out
    assert "not measured: missing: no_such_library is not installed" in shown
    assert "(goal 0.60)" in shown
    assert "note: a note" in shown
    assert "Fewer than 7 rounds are a rough look" in " ".join(shown.split())


def test_numerics_that_differ_are_exit_code_1_and_no_ratio(run_tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("benchmark", "toy_rows:WRONG", "--device", "cpu") == cli.FAILED
    shown = capsys.readouterr().out
    assert "numerics differ: wrong: number by 5.0e-02 (allowed 1.0e-05)" in shown
    assert "fastest" not in shown


def test_a_row_that_cant_be_measured_says_so_in_json(run_tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("benchmark", "toy_rows:HOMELESS", "--device", "cpu", "--json") == cli.DONE
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["status"], row["ratio"]) == ("not measured", None)
    assert row["problem"] == "not measured: there is no backbone 'toy' yet"


def test_the_list_shows_every_row_and_its_goals(run_tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("benchmark", "--list") == cli.DONE
    shown = capsys.readouterr().out
    assert all(name in shown for name in ROWS)
    (line,) = [line for line in shown.splitlines() if line.split()[:1] == ["swin_t_train"]]
    assert "0.80 / 0.55" in line
    assert "0.55 / 0.50" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["swin_t_forwrad"], "no benchmark row named 'swin_t_forwrad'; did you mean 'swin_t_forward'"),
        (["--peers", "timmm"], "no peer named 'timmm'"),
        (["--rounds", "0"], "rounds must be 1 or more"),
        (["--json", "swin_t_train"], "which is a row: name the rows before --json"),
        (["--json", "no/such/folder/x.json"], "there is no folder no/such/folder"),
    ],
)
def test_mistakes_are_exit_code_2_and_one_message(
    arguments: list[str], message: str, run_tool: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool("benchmark", *arguments, "--device", "cpu") == cli.MISTAKE
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1
    assert message in errors
