"""Photometric distortion in one pass: what each part does, how often, and that a seed decides."""

import cv2
import numpy as np

from vitdense.data.colours import Distortion, distortion

IMAGE = np.random.default_rng(0).integers(60, 190, (20, 30, 3)).astype(np.uint8)


def test_a_seed_decides_and_another_one_differs() -> None:
    distort = Distortion()
    assert np.array_equal(distort(IMAGE, 5), Distortion()(IMAGE, 5))
    results = {distort(IMAGE, seed).tobytes() for seed in range(40)}
    assert len(results) > 30


def test_each_part_happens_half_of_the_time() -> None:
    matrices = [distortion(np.random.default_rng(seed)) for seed in range(800)]
    unchanged = sum(matrix is None for matrix in matrices)
    assert 25 < unchanged < 80  # one in sixteen
    brightened = sum(matrix is not None and matrix[0, 3] != 0 for matrix in matrices)
    assert 340 < brightened < 460


def test_grey_stays_grey_but_for_brightness_and_contrast() -> None:
    grey = np.full((4, 4, 3), 128, np.uint8)
    for seed in range(60):
        found = Distortion()(grey, seed)
        assert int(found.max()) - int(found.min()) <= 1
        matrix = distortion(np.random.default_rng(seed))
        if matrix is not None:
            assert 64 - 48 - 1 <= found[0, 0, 0] <= 255


def test_hue_and_saturation_keep_the_luma() -> None:
    seeds = [
        seed for seed in range(400) if (matrix := distortion(np.random.default_rng(seed))) is not None and _pure(matrix)
    ]
    assert seeds
    for seed in seeds:
        found = Distortion()(IMAGE, seed)
        inside = ((found > 0) & (found < 255)).all(2)
        luma = [image.astype(float) @ [0.299, 0.587, 0.114] for image in (IMAGE, found)]
        assert np.abs(luma[0] - luma[1])[inside].max() < 1.5


def _pure(matrix: np.ndarray) -> bool:
    """No brightness and no contrast: white stays white."""
    return bool(np.allclose(matrix @ [255, 255, 255, 1], 255, atol=0.01))


def test_strengths_reach_from_half_to_one_and_a_half() -> None:
    gains = [
        matrix.sum(1)[0] - matrix[0, 3]
        for seed in range(600)
        if (matrix := distortion(np.random.default_rng(seed))) is not None
    ]
    assert 0.49 < min(gains) < 0.55
    assert 1.45 < max(gains) < 1.51
    assert cv2.transform(IMAGE, np.eye(3, 4, dtype=np.float32)).tolist() == IMAGE.tolist()
