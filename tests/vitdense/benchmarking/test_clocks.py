"""Contenders take turns, forwards and backwards, and times are medians with quartiles."""

import time

import pytest
import torch

from vitdense.benchmarking.clocks import (
    CLOCKS,
    Step,
    Times,
    count_host_syncs,
    cpu_seconds,
    event_seconds,
    interleave,
    wall_seconds,
)


def test_turns_go_there_and_back() -> None:
    turns: list[str] = []

    def step(name: str) -> Step:
        return lambda: turns.append(name)

    steps = {name: step(name) for name in "abc"}
    times = interleave(steps, rounds=3, clock=wall_seconds, advance=lambda text: None)
    assert "".join(turns) == "abccbaabc"
    assert {name: len(each.samples) for name, each in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_median_and_quartiles_take_no_notice_of_one_outlier() -> None:
    times = Times((1.0, 2.0, 3.0, 4.0, 100.0))
    assert (times.median, times.quartiles) == (3.0, (2.0, 4.0))
    assert Times((7.0,)).quartiles == (7.0, 7.0)


def test_waiting_costs_wall_time_and_no_processor_time() -> None:
    def wait() -> None:
        time.sleep(0.05)

    assert wall_seconds(wait) >= 0.05
    assert cpu_seconds(wait) < 0.03
    assert CLOCKS["cpu"] is cpu_seconds


@pytest.mark.gpu
def test_events_time_one_step_of_a_burst() -> None:
    matrix = torch.randn(4096, 4096, device="cuda")

    def step() -> None:
        torch.mm(matrix, matrix)

    event_seconds(step)
    assert 1e-4 < event_seconds(step) < 1e-1


@pytest.mark.gpu
def test_host_syncs_are_counted() -> None:
    number = torch.ones(1, device="cuda")
    assert count_host_syncs(lambda: None) == 0

    def ask_three_times() -> None:
        for _ in range(3):
            number.item()

    assert count_host_syncs(ask_three_times) == 3
