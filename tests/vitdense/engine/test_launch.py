"""What a run sets for its process, and takes back."""

import torch

from vitdense.engine.launch import denormals_flushed


def test_numbers_too_small_for_full_precision_count_as_zero_during_a_run_alone() -> None:
    tiny = torch.full((3,), 1e-39)
    with denormals_flushed():
        assert (tiny * 0.5).tolist() == [0.0, 0.0, 0.0]
    assert (tiny * 0.5 > 0).all()
