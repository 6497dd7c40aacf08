"""How frequency is laid out on a model's spectrogram, and a clip filtered by where a neuron is active in it."""

from __future__ import annotations

import numpy as np
from scipy.signal import istft, stft

from aape.atlas.sound import log_mel
from aape.encoders.encoder import Encoder

TICKS = (250, 1000, 4000)  # Hz
TONES = 40
TONE_SECONDS = 1.0
WINDOW_SECONDS = 0.032  # of the short-time Fourier transform
MOST_GAIN = 20.0  # of a filtered clip


class FrequencyAxis:
    """Where frequencies lie on the spectrogram of a model, found by playing pure tones to its front end.

    Attributes:
        frequencies: of the tones, Hz [TONES].
        heights: where they lie, from 0 (lowest band) to 1 (highest band) [TONES].
    """

    def __init__(self, encoder: Encoder) -> None:
        rate = encoder.sample_rate
        self.frequencies = np.geomspace(60, 0.48 * rate, TONES)
        time = np.arange(round(TONE_SECONDS * rate)) / rate
        heights = []
        for frequency in self.frequencies:
            tone = 0.3 * np.sin(2 * np.pi * frequency * time)
            bands = log_mel(encoder, tone.astype(np.float32)).mean(axis=1)
            heights.append((bands.argmax() + 0.5) / len(bands))
        self.heights = np.maximum.accumulate(heights)

    def height(self, frequency: np.ndarray) -> np.ndarray:
        """Where frequencies in Hz lie on the axis, from 0 to 1."""
        return np.interp(frequency, self.frequencies, self.heights)

    def ticks(self) -> list[list[float]]:
        """[frequency in Hz, height] of the labels on pictures."""
        shown = [tick for tick in TICKS if tick < self.frequencies[-1]]
        return [[tick, round(float(self.height(np.array(tick))), 3)] for tick in shown]

    def filtered(
        self, wave: np.ndarray, rate: int, levels: np.ndarray, seconds: float
    ) -> np.ndarray:
        """A clip with only those times and frequencies where a neuron is active.

        Args:
            wave: [samples].
            rate: Hz.
            levels: the neuron's map of this clip [frequency, time], from 0 upwards.
            seconds: duration of the map.

        Returns:
            [samples], as loud as the clip at its peak as far as `MOST_GAIN` allows.
        """
        window = round(WINDOW_SECONDS * rate)
        frequency, time, spectrum = stft(wave, rate, nperseg=window)
        rows, columns = levels.shape
        gain = levels / max(float(levels.max()), 1e-9)
        row_centres = (np.arange(rows) + 0.5) / rows
        column_centres = (np.arange(columns) + 0.5) * seconds / columns
        by_time = np.array([np.interp(time, column_centres, row) for row in gain])  # [rows, frames]
        heights = self.height(frequency)
        mask = np.array(
            [np.interp(heights, row_centres, frame) for frame in by_time.T]
        ).T  # [bins, frames]
        sound = istft(spectrum * mask, rate, nperseg=window)[1][: len(wave)]
        loudest = max(float(np.abs(sound).max(initial=0.0)), 1e-9)
        return sound * min(MOST_GAIN, float(np.abs(wave).max(initial=0.0)) / loudest)
