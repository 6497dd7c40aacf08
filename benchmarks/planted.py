"""Planted neurons: an encoder whose tuning is known, which `aape.tune` has to find. Used by tests/test_tuning.py and by
benchmarks/tuning.py.
"""

from __future__ import annotations

import zlib

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from aape.encoders.encoder import Encoder
from aape.encoders.module import from_module
from aape.tuning.tuning import Tuning

RATE, STEP = 16_000, 320  # Hz, samples per token
FREQUENCIES = [100, 150, 240, 333, 500, 777, 1200, 1900, 3000, 4444, 6000]  # Hz
MODULATIONS = [3, 5, 8, 13, 20, 32, 50, 90]  # Hz
THRESHOLDS = [-60, -45, -30]  # dB
RANDOM, SPARSE = 400, 100


class Planted(nn.Module):
    """One layer of neurons whose tuning is known, with a token every 20 ms.

    In order: band-pass neurons, modulation filters, a detector of upward and one of downward sweeps, level detectors, a
    detector of onsets, and neurons that respond at random, some of them rarely.
    """

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        octave = 2 ** (torch.arange(0, 29) / 4) * 55
        frequencies = torch.fft.rfftfreq(1024, 1 / RATE).clamp(min=1)
        distance = torch.log2(frequencies[:, None] / octave)
        self.bands = torch.exp(-(distance**2) / (2 * 0.15**2))  # [frequencies, bands]
        centre = torch.log2(frequencies[:, None] / torch.tensor(FREQUENCIES))
        self.tuned = torch.exp(-(centre**2) / (2 * 0.2**2))  # [frequencies, neurons]

    def forward(self, wave: Tensor) -> Tensor:
        _clips, samples = wave.shape
        tokens = samples // STEP
        spectrum = torch.stft(wave, 1024, STEP, window=torch.hann_window(1024), return_complex=True)
        power = spectrum.abs().square().transpose(1, 2)[:, :tokens]  # [clips, tokens, frequencies]
        share = (power @ self.tuned) / (power.sum(dim=2, keepdim=True) + 1e-9)
        band_pass = share - 0.2
        modulation = self.modulation(wave)[:, None].expand(-1, tokens, -1)
        bands = torch.log10(power @ self.bands + 1e-6)
        bands = (bands - bands.mean(dim=2, keepdim=True)).clamp(min=0)
        before, after = bands[:, :-1], bands[:, 1:]
        upward = (before[:, :, :-1] * after[:, :, 1:]).sum(dim=2) - (
            before[:, :, 1:] * after[:, :, :-1]
        ).sum(dim=2)
        upward = nn.functional.pad(upward, (1, 0))[:, :, None]
        rms = wave.unflatten(1, (tokens, STEP)).square().mean(dim=2, keepdim=True).sqrt()
        level = 20 * torch.log10(rms + 1e-6)
        detectors = level - torch.tensor(THRESHOLDS) - 3
        onset = nn.functional.pad(level[:, 1:] - level[:, :-1], (0, 0, 1, 0)) / 10 - 0.5
        parts = [
            band_pass,
            modulation,
            upward,
            -upward,
            detectors / 10,
            onset,
            self.random(wave, tokens),
        ]
        return self.act(torch.cat(parts, dim=2)).mean(dim=1)

    def modulation(self, wave: Tensor) -> Tensor:
        """Envelope power around each rate, relative to all of it [clips, rates]."""
        envelope = wave.abs().unflatten(1, (-1, 16)).mean(dim=2)  # at 1 kHz
        spectrum = (
            torch.fft.rfft(envelope - envelope.mean(dim=1, keepdim=True), n=4000).abs().square()
        )
        rates = torch.fft.rfftfreq(4000, 1e-3).clamp(min=0.1)
        filters = torch.exp(
            -(torch.log2(rates[:, None] / torch.tensor(MODULATIONS)) ** 2) / (2 * 0.4**2)
        )
        return (spectrum @ filters) / (spectrum.sum(dim=1, keepdim=True) + 1e-9) - 0.1

    def random(self, wave: Tensor, tokens: int) -> Tensor:
        """Activations that are a hash of the whole wave."""
        values = []
        for clip in wave.numpy():
            rng = np.random.default_rng(zlib.crc32(clip.tobytes()))
            usual = rng.normal(rng.normal(0, 0.5, RANDOM), 1, (tokens, RANDOM))
            rare = rng.normal(0, 1, (tokens, SPARSE)) - 2 + 3 * (rng.random(SPARSE) < 0.02)
            values.append(np.concatenate([usual, rare], axis=1))
        return torch.from_numpy(np.stack(values)).float()


def planted() -> Encoder:
    module = Planted()
    return from_module(
        module,
        activations="act",
        embed=module,
        sample_rate=RATE,
        clip_seconds=1.0,
        name="planted",
        samples_per_token=STEP,
    )


def section(tuning: Tuning, name: str) -> pd.DataFrame:
    """The neurons of one kind."""
    sizes = {
        "band": len(FREQUENCIES),
        "modulation": len(MODULATIONS),
        "up": 1,
        "down": 1,
        "level": len(THRESHOLDS),
        "onset": 1,
        "random": RANDOM + SPARSE,
    }
    ends = dict(zip(sizes, np.cumsum([*sizes.values()]), strict=True))
    return tuning.table().iloc[ends[name] - sizes[name] : ends[name]]
