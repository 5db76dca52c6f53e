"""The parts of a picture that depth benchmarks score (Eigen et al. 2014, https://arxiv.org/abs/1406.2283; Garg et al.
2016, https://arxiv.org/abs/1603.04992), as the evaluations of BTS and AdaBins cut them."""

from typing import Literal

Crop = Literal["none", "eigen", "eigen_kitti", "garg"]

# Top, bottom, left and right as shares of height and width. `eigen` is NYU's 45:471, 41:601 of 480 x 640 pixels.
_SHARES: dict[Crop, tuple[float, float, float, float]] = {
    "none": (0, 1, 0, 1),
    "eigen": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
    "eigen_kitti": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
}


def crop_region(crop: Crop, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a picture of `size` (H, W) that are scored."""
    top, bottom, left, right = _SHARES[crop]
    height, width = size
    tiny = 1e-9  # 471 / 480 * 480 may fall short of 471
    rows = slice(int(top * height + tiny), int(bottom * height + tiny))
    return rows, slice(int(left * width + tiny), int(right * width + tiny))
