"""The stream of samples: whole epochs, resumable from a step number, the same for every number of processes."""

from typing import Any

import pytest

from vitdense.data.samplers import EvalSampler, Key, StepSampler
from vitdense.errors import UserError


def stream(length: int, **options: Any) -> list[list[Key]]:
    return list(StepSampler(length, **{"batch_size": 4, "seed": 0, "num_steps": 10, **options}))


def flat(batches: list[list[Key]]) -> list[Key]:
    return [key for batch in batches for key in batch]


def test_epochs_follow_one_another_without_dropping_or_repeating() -> None:
    keys = flat(stream(7, num_steps=7))
    assert len(keys) == 28
    assert sorted(keys) == [(epoch, index) for epoch in range(4) for index in range(7)]
    assert [epoch for epoch, _ in keys] == sorted(epoch for epoch, _ in keys)


def test_epochs_have_different_orders() -> None:
    orders = [[index for epoch, index in flat(stream(20, num_steps=10)) if epoch == wanted] for wanted in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_an_epoch_is_read_in_the_order_that_the_data_gives() -> None:
    batches = stream(4, num_steps=3, order=lambda seed, epoch: [3, 1, 0, 2] if epoch == 1 else None)
    assert [index for _, index in batches[1]] == [3, 1, 0, 2]
    assert flat(batches[:1] + batches[2:]) == flat([stream(4, num_steps=3)[place] for place in (0, 2)])


def test_seeds_have_different_orders() -> None:
    assert stream(50) != stream(50, seed=1)


def test_a_batch_may_be_larger_than_the_data_set() -> None:
    keys = flat(stream(3, batch_size=8, num_steps=3))
    assert sorted(keys) == [(epoch, index) for epoch in range(8) for index in range(3)]


@pytest.mark.parametrize("step", [1, 4, 9])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resume_at_a_step_sees_the_same_batches(step: int, accumulate: int) -> None:
    whole = stream(7, accumulate=accumulate)
    assert whole[step * accumulate :] == stream(7, accumulate=accumulate, start_step=step, num_steps=10 - step)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_all_ranks_together_read_the_same_micro_batches_for_every_world_size(world_size: int) -> None:
    single = stream(11, batch_size=8, accumulate=2)
    ranks = [stream(11, batch_size=8, accumulate=2, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [flat(list(parts)) for parts in zip(*ranks, strict=True)] == single


def test_the_state_is_seed_epoch_and_consumed() -> None:
    sampler = StepSampler(10, batch_size=4, seed=3, num_steps=5)
    assert sampler.state(0) == {"seed": 3, "epoch": 0, "consumed": 0}
    assert sampler.state(4) == {"seed": 3, "epoch": 1, "consumed": 6}


def test_a_batch_size_that_does_not_divide_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match=r"batch_size = 4 can't be divided by .* = 1 x 3 = 3"):
        stream(7, world_size=3)


def test_an_empty_split_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="no samples"):
        stream(0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 20])
def test_evaluation_reads_each_sample_once_over_all_ranks(world_size: int) -> None:
    ranks = [EvalSampler(11, batch_size=2, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sorted(flat([batch for sampler in ranks for batch in sampler])) == [(0, index) for index in range(11)]
    assert all(len(list(sampler)) == len(sampler) for sampler in ranks)


def test_a_limit_spreads_evenly() -> None:
    assert flat(list(EvalSampler(100, batch_size=3, limit=4))) == [(0, 0), (0, 25), (0, 50), (0, 75)]
    assert len(flat(list(EvalSampler(3, batch_size=3, limit=10)))) == 3
