"""Ridge regression from streamed sums, cross-fitted over folds.

Only sums over tokens are kept: X'X [features, features] and X'Y [features, neurons] per fold. The sums of all folds but one
give the weights, and the sums of the fold that was left out give their correlation with the responses there. No second pass
over the data is needed, and the memory does not depend on the number of clips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.linalg import eigh

STRENGTHS = (
    1e-4,
    1e-3,
    1e-2,
    1e-1,
    1.0,
)  # of the penalty, relative to the mean variance of a feature


class Sums:
    """Sums over the tokens of one fold.

    Attributes:
        tokens: their number.
        x, y: sums of features [features] and responses [neurons].
        xx, xy, yy: sums of products, [features, features], [features, neurons], and of squares [neurons].
    """

    def __init__(self, features: int, neurons: int) -> None:
        self.tokens = 0
        self.x = np.zeros(features)
        self.y = np.zeros(neurons)
        self.xx = np.zeros((features, features))
        self.xy = np.zeros((features, neurons), dtype=np.float32)  # the large one
        self.yy = np.zeros(neurons)

    def add(self, x: np.ndarray, y: np.ndarray, origin: np.ndarray) -> None:
        """Add tokens.

        Args:
            x: features, float32 [tokens, features].
            y: responses, float32 [tokens, neurons].
            origin: subtracted from the responses [neurons], so that products stay small.
        """
        y = y - origin
        self.tokens += len(x)
        self.x += x.sum(axis=0)
        self.y += y.sum(axis=0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += np.square(y).sum(axis=0)

    @classmethod
    def total(cls, parts: Sequence[Sums]) -> Sums:
        """The sums over several folds."""
        total = cls(len(parts[0].x), len(parts[0].y))
        for part in parts:
            total.tokens += part.tokens
            for name in ("x", "y", "xx", "xy", "yy"):
                getattr(total, name)[...] += getattr(part, name)
        return total

    def covariances(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Covariances of features [features, features], of features and responses [features, neurons] and variances [neurons]."""
        x, y = self.x / self.tokens, self.y / self.tokens
        xy = self.xy / np.float32(self.tokens)
        xy -= np.outer(x, y).astype(np.float32)
        return self.xx / self.tokens - np.outer(x, x), xy, self.yy / self.tokens - y**2


def weights(sums: Sums, strengths: Sequence[float]) -> Iterator[np.ndarray]:
    """Ridge weights [features, neurons] for each strength of the penalty, one after the other."""
    xx, xy, _ = sums.covariances()
    values, vectors = eigh(xx)
    projected = vectors.T.astype(np.float32) @ xy
    penalties = np.array(strengths) * np.trace(xx) / len(xx)
    for penalty in penalties:
        shrunk = (vectors / (np.maximum(values, 0) + penalty)).astype(np.float32)
        yield shrunk @ projected


def held_out_correlation(solution: np.ndarray, sums: Sums) -> np.ndarray:
    """Correlation of prediction and response over the tokens of a fold [neurons]; 0 where one of them does not vary."""
    xx, xy, yy = sums.covariances()
    covariance = (solution * xy).sum(axis=0, dtype=np.float64)
    predicted = (solution * (xx.astype(np.float32) @ solution)).sum(axis=0, dtype=np.float64)
    scale = np.sqrt(np.maximum(predicted, 0) * np.maximum(yy, 0))
    return np.divide(covariance, scale, out=np.zeros_like(covariance), where=scale > 1e-12)


def cross_fit(folds: Sequence[Sums]) -> tuple[np.ndarray, float]:
    """Held-out correlation of every neuron, and the strength of the penalty.

    Each fold is predicted by weights from the other folds. The strength is chosen among them as well: it is the one with the
    highest mean correlation in the fold that follows, with weights from the rest.

    Args:
        folds: at least three.

    Returns:
        The mean over folds of the correlation [neurons], and the median of the chosen strengths.
    """
    correlations, chosen = [], []
    for index, test in enumerate(folds):
        others = [*folds[index + 1 :], *folds[:index]]
        candidates = weights(Sums.total(others[1:]), STRENGTHS)
        scores = [held_out_correlation(candidate, others[0]).mean() for candidate in candidates]
        strength = STRENGTHS[int(np.argmax(scores))]
        (solution,) = weights(Sums.total(others), [strength])
        correlations.append(held_out_correlation(solution, test))
        chosen.append(strength)
    return np.mean(correlations, axis=0), float(np.median(chosen))
