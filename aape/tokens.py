"""Where tokens lie on a clip: which of them heard only padding, and their cells on its map of frequency and time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


class TimeTokens:
    """Padding masks and token grid of a model whose tokens follow each other in time.

    Args:
        tokens_of: samples of a wave -> tokens of each call; asked once for a length.
        samples_per_token: how many samples of the wave each token stands for.
        window: samples of a chunk.
    """

    def __init__(self, tokens_of: Callable[[int], list[int]], samples_per_token: float, window: float) -> None:
        self.tokens_of, self.step, self.window = tokens_of, float(samples_per_token), round(window)
        self.known: dict[int, list[int]] = {}

    def tokens(self, samples: int) -> list[int]:
        """Tokens of each call, for a wave of this length.

        Raises:
            ValueError: they cannot be `samples_per_token` apart.
        """
        if samples not in self.known:
            found = self.tokens_of(samples)
            pieces = [min(self.window, samples - start) for start in range(0, samples, self.window)]
            # A front end that pads to its whole window makes tokens behind a short wave.
            likely = [{*self._likely(piece), *self._likely(self.window)} for piece in pieces]
            if len(found) != len(pieces) or any(n not in these for n, these in zip(found, likely, strict=True)):
                raise ValueError(
                    f"{samples} samples gave {found} tokens, samples_per_token={self.step:g} would give about "
                    f"{samples / self.step:.0f}. Class tokens? Pass padding_masks and token_grid instead."
                )
            self.known[samples] = found
        return self.known[samples]

    def _likely(self, samples: int) -> range:
        """How many tokens a wave may give: convolutions without padding make up to three fewer than fit."""
        return range(math.ceil(samples / self.step) - 3, math.ceil(samples / self.step) + 1)

    def padding_masks(self, valid_samples: Tensor, samples: int) -> list[Tensor]:
        """A token is padding when its samples begin behind the last valid one."""
        starts = [
            torch.arange(tokens, device=valid_samples.device) * self.step + call * self.window
            for call, tokens in enumerate(self.tokens(samples))
        ]
        return [first[None, :] >= valid_samples[:, None] for first in starts]

    def grid(self, samples: int) -> list[Tensor]:
        """Frequency 0, time counted on across calls."""
        counts = self.tokens(samples)
        times = torch.arange(sum(counts))
        return list(torch.stack([torch.zeros_like(times), times], dim=1).split(counts))
