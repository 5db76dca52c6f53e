"""Which frames make a clip: by hand for each way, whole for videos that are too short, true to time where asked."""

import numpy as np
import pytest

from vitdense.data.clips.sampling import SamplingConfig, resample


def config(**options: object) -> SamplingConfig:
    return SamplingConfig.model_validate(options)


def test_uniform_takes_the_middle_of_each_part() -> None:
    (frames,) = config(frames=4, sampling="uniform").validation_frames(40)
    assert frames.tolist() == [5, 15, 25, 35]
    views = config(frames=4, sampling="uniform", views=2).validation_frames(40)
    assert [view.tolist() for view in views] == [[2, 12, 22, 32], [7, 17, 27, 37]]


def test_uniform_in_training_takes_one_of_each_part_and_any_of_it() -> None:
    seen: list[set[int]] = [set() for _ in range(4)]
    for seed in range(200):
        frames = config(frames=4, sampling="uniform").training_frames(40, np.random.default_rng(seed))
        for part, frame in zip(seen, frames.tolist(), strict=True):
            part.add(frame)
    assert [sorted(part) for part in seen] == [list(range(start, start + 10)) for start in (0, 10, 20, 30)]


def test_dense_takes_every_nth_frame_of_any_place() -> None:
    dense = config(frames=4, frame_stride=3)
    starts = set()
    for seed in range(300):
        frames = dense.training_frames(20, np.random.default_rng(seed))
        assert np.diff(frames).tolist() == [3, 3, 3]
        starts.add(int(frames[0]))
    assert starts == set(range(11))
    assert dense.validation_frames(20)[0].tolist() == [5, 8, 11, 14]
    views = config(frames=4, frame_stride=3, views=3).validation_frames(20)
    assert [int(view[0]) for view in views] == [0, 5, 10]


def test_random_takes_any_frames_in_order() -> None:
    frames = config(frames=6, sampling="random").training_frames(50, np.random.default_rng(0)).tolist()
    assert frames == sorted(set(frames))
    assert len(frames) == 6


@pytest.mark.parametrize("sampling", ["uniform", "dense", "random"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_video_that_is_too_short_gives_a_whole_clip(sampling: str, count: int) -> None:
    given = config(frames=8, sampling=sampling, frame_stride=2, views=2)
    for frames in [given.training_frames(count, np.random.default_rng(0)), *given.validation_frames(count)]:
        assert len(frames) == 8
        assert 0 <= frames.min() <= frames.max() < count
        assert (np.diff(frames) >= 0).all()
        assert len(set(frames.tolist())) > 1 or count == 1 or sampling == "random"


def test_frames_of_a_clock_are_those_on_the_screen() -> None:
    times = np.array([0.0, 0.04, 0.08, 0.5, 1.0])
    assert resample(times, 10).tolist() == [0, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4]
    steady = np.arange(50) / 25
    assert resample(steady, 25).tolist() == list(range(50))
    assert resample(steady, 12.5).tolist() == list(range(0, 50, 2))
    assert resample(np.array([0.0]), 30).tolist() == [0]
