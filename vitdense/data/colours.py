"""Photometric distortion in one pass over the pixels, for pipelines that have no time for more."""

import cv2
import numpy as np
from numpy.typing import NDArray

from vitdense.data.transforms import Pixels

_LUMA = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


class Distortion:
    """Brightness (+-32), contrast and saturation (x 0.5..1.5), hue (+-36 degrees), each half of the time.

    The strengths are those of `Photometric`; all four are one matrix, so that a pixel is read, multiplied and rounded
    once. Saturation keeps the luma, and hue turns the chroma of YIQ, where HSV would keep the largest channel.
    """

    def __call__(self, image: Pixels, seed: int) -> Pixels:
        """image: (H, W, 3) -> (H, W, 3)."""
        matrix = distortion(np.random.default_rng(seed))
        return image if matrix is None else np.asarray(cv2.transform(image, matrix), np.uint8)


def distortion(generator: np.random.Generator) -> NDArray[np.float32] | None:
    """A matrix (3, 4) of RGB and 1, None where nothing changes."""
    happens = generator.random(4) < 0.5
    brightness, contrast, saturation, hue = generator.uniform((-32, 0.5, 0.5, -36), (32, 1.5, 1.5, 36)).tolist()
    if not happens.any():
        return None
    colour = np.eye(3)
    if happens[2]:
        colour = saturation * colour + (1 - saturation) * np.tile(_LUMA, (3, 1))
    if happens[3]:
        cosine, sine = np.cos(np.deg2rad(hue)), np.sin(np.deg2rad(hue))
        turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
        colour = _FROM_YIQ @ turn @ _TO_YIQ @ colour
    gain = contrast if happens[1] else 1.0
    shift = np.full((3, 1), gain * brightness if happens[0] else 0.0)
    return np.concatenate([gain * colour, shift], axis=1).astype(np.float32)
