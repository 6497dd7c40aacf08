"""Size of the difference between the clips of a class and all other clips."""

from __future__ import annotations

import numpy as np


def in_and_out(x: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over the clips of each class and over all other clips, [classes, k] each.

    Args:
        x: [clips, k].
        members: whether a clip is of a class, float64 [classes, clips].
    """
    size = members.sum(axis=1, keepdims=True)
    inside = members @ x
    outside = x.sum(axis=0) - inside
    return inside / size, outside / np.maximum(len(x) - size, 1)


def d_prime(x: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Difference of the means in standard deviations between clips, [classes, k]; 0 where nothing varies.

    The standard deviation is the root of the mean of the variances inside and outside the class (d' of signal detection,
    Green and Swets 1966). Arguments as `in_and_out`.
    """
    inside, outside = in_and_out(x, members)
    square_inside, square_outside = in_and_out(x * x, members)
    variance_inside = np.maximum(square_inside - inside**2, 0)
    variance_outside = np.maximum(square_outside - outside**2, 0)
    spread = np.sqrt((variance_inside + variance_outside) / 2)
    return np.divide(inside - outside, spread, out=np.zeros_like(spread), where=spread > 1e-9)
