"""Where tokens lie on a clip: which of them heard only padding, and their cells on its map of frequency and time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def in_time(counts: Sequence[int], starts: Sequence[float]) -> list[Tensor]:
    """The grid of tokens that follow each other in time: frequency 0, time running on across calls.

    Args:
        counts: tokens of each call.
        starts: where on the clip it begins, in cells; it gets the nearest cell behind the call before, for pieces of no
            whole number of tokens must not make time drift.
    """
    grid, end = [], 0
    for count, start in zip(counts, starts, strict=True):
        times = max(end, math.ceil(start - 0.5)) + torch.arange(count)
        end = int(times[0]) + count if count else end
        grid.append(torch.stack([torch.zeros_like(times), times], dim=1))
    return grid


class TimeTokens:
    """Padding masks and token grid of a model whose tokens follow each other in time.

    Args:
        tokens_of: samples of a wave -> tokens of each call; asked once for a length.
        samples_per_token: how many samples of the wave each token stands for.
        window: samples of a chunk.
    """

    def __init__(self, tokens_of: Callable[[int], list[int]], samples_per_token: float, window: float) -> None:
        self.tokens_of, self.step, self.window = functools.cache(tokens_of), float(samples_per_token), round(window)

    def tokens(self, samples: int) -> list[int]:
        """Tokens of each call, for a wave of this length.

        Raises:
            ValueError: they cannot be `samples_per_token` apart.
        """
        found = self.tokens_of(samples)
        # Convolutions without padding make up to three fewer tokens than fit; a front end that pads to its whole window
        # makes tokens behind a short wave.
        fit = [math.ceil(min(self.window, samples - start) / self.step) for start in range(0, samples, self.window)]
        whole = math.ceil(self.window / self.step)
        pairs = list(zip(fit, found, strict=False))
        if len(found) != len(fit) or not all(0 <= n - made <= 3 or 0 <= whole - made <= 3 for n, made in pairs):
            raise ValueError(
                f"{samples} samples gave {found} tokens, samples_per_token={self.step:g} would give about "
                f"{samples / self.step:.0f}. Class tokens? Pass padding_masks and token_grid instead."
            )
        return found

    def padding_masks(self, valid_samples: Tensor, samples: int) -> list[Tensor]:
        """A token is padding when its samples begin behind the last valid one."""
        masks = []
        for call, tokens in enumerate(self.tokens(samples)):
            first = torch.arange(tokens, device=valid_samples.device) * self.step + call * self.window
            masks.append(first[None, :] >= valid_samples[:, None])
        return masks

    def grid(self, samples: int) -> list[Tensor]:
        """Frequency 0, time running on across calls."""
        tokens = self.tokens(samples)
        return in_time(tokens, [call * self.window / self.step for call in range(len(tokens))])
