"""The local log-mel spectrogram that receptive fields are computed from, the same for every encoder."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

FRAME_SECONDS = 0.025
HOP_SECONDS = 0.01
BANDS = 32
LAGS = 31  # frames: 310 ms
LOWEST_HZ = 50.0
FLOOR = 1e-8  # of the power of a band, 80 dB below a full-scale sine or so


@functools.cache
def filters(sample_rate: int) -> tuple[Tensor, np.ndarray]:
    """Mel filters [frequencies, BANDS] of a sample rate, and the centre frequency of each band, Hz."""
    frame = _frame(sample_rate)
    bins = frame // 2 + 1
    bank = mel_filter_bank(
        bins, BANDS, LOWEST_HZ, sample_rate / 2, sample_rate, norm="slaney", mel_scale="htk"
    )
    frequencies = np.linspace(0, sample_rate / 2, bins)
    weights = np.maximum(bank, 1e-12)
    centres = (weights * frequencies[:, None]).sum(axis=0) / weights.sum(axis=0)
    return torch.from_numpy(bank).float(), centres


def _frame(sample_rate: int) -> int:
    """Samples of a Fourier transform: twice the frame, so that low bands hold a frequency."""
    return 2 * round(FRAME_SECONDS * sample_rate)


def log_mel(waves: Tensor, sample_rate: int) -> Tensor:
    """Log-mel spectrogram of waves [clips, samples], in bel: float32 [clips, frames, BANDS]. Frame i is centred at i hops."""
    size, hop = _frame(sample_rate), round(HOP_SECONDS * sample_rate)
    window = torch.hann_window(size // 2)
    spectrum = torch.stft(
        waves, size, hop, size // 2, window, return_complex=True, pad_mode="constant"
    )
    power = spectrum.abs().square().transpose(1, 2)
    bank, _ = filters(sample_rate)
    return torch.log10(power @ bank + FLOOR)


def local(spectrogram: Tensor, centres_s: Tensor) -> Tensor:
    """The spectrogram around some points in time, [clips, points, LAGS * BANDS].

    Args:
        spectrogram: from `log_mel`. Before its beginning and behind its end the first and the last frame are repeated.
        centres_s: points in time [points], s.
    """
    middle = torch.round(centres_s / HOP_SECONDS).long()
    offsets = torch.arange(LAGS) - LAGS // 2
    frames = (middle[:, None] + offsets).clamp(0, spectrogram.shape[1] - 1)
    return spectrogram[:, frames].flatten(2)
