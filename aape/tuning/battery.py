"""The battery of test sounds: which sounds are played, and their waveforms.

The battery is a table with one row per sound and response window:

    kind           what is played, see KINDS
    frequency      of the tone, noise band, carrier or fundamental, Hz (0: broadband)
    level          dB relative to full scale
    rate           of modulation or clicks, Hz; for sweeps the speed, octaves per second
    realisation    number of the independent realisation (random phases and noise)
    start, end     response window, s

Sounds that are compared in pairs (upward and downward sweeps, harmonic and inharmonic complexes, gated and steady sounds)
share their random numbers.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable

import numpy as np
import pandas as pd

from aape.tuning import stimuli

LOWEST_HZ = 60.0
HIGHEST_SHARE = 0.45  # of the sample rate
STEPS_PER_OCTAVE = 4
LEVELS_DB = (-65.0, -50.0, -35.0, -20.0)
LEVEL_DB = -25.0  # of sounds that are played at one level
REALISATIONS = 4
MODULATIONS_HZ = tuple(2 ** (step / 2) for step in range(2, 15))  # half octaves from 2 to 128 Hz
SWEEP_SPEEDS = (8.0, 16.0, 32.0, 64.0)  # octaves per second
FUNDAMENTALS_HZ = tuple(60 * 2 ** (step / 2) for step in range(8))  # to 679 Hz
CLICK_RATES_HZ = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
CARRIERS_HZ = (500.0, 1000.0, 2000.0)
SETTLED_SECONDS = 0.1  # the steady response begins here
CLICK_PEAK = 0.7

KINDS = (
    "tone", "band noise", "noise", "modulated noise", "modulated tone", "sweep up", "sweep down", "harmonic",
    "missing fundamental", "inharmonic", "clicks", "onset", "steady", "offset", "silence",
)  # fmt: skip
_SHARED = {"sweep down": "sweep up", "missing fundamental": "harmonic", "inharmonic": "harmonic"}
_SHARED |= {"onset": "gated", "steady": "gated", "offset": "gated"}


def battery(sample_rate: int, seconds: float, realisations: int = REALISATIONS) -> pd.DataFrame:
    """The table of all test sounds for a sample rate (Hz) and a duration (s).

    Sounds that the rate or the duration cannot hold are left out: frequencies above 0.45 of the rate, and modulations of
    which fewer than two periods fit.
    """
    highest = HIGHEST_SHARE * sample_rate
    octaves = np.log2(highest / LOWEST_HZ)
    frequencies = [
        LOWEST_HZ * 2 ** (step / STEPS_PER_OCTAVE)
        for step in range(int(octaves * STEPS_PER_OCTAVE) + 1)
    ]
    bands = [f for f in frequencies[::STEPS_PER_OCTAVE] if f * np.sqrt(2) <= highest]
    carriers = [f for f in CARRIERS_HZ if f * np.sqrt(2) <= highest]
    fastest = [rate for rate in MODULATIONS_HZ if rate * seconds >= 2]
    trains = [rate for rate in CLICK_RATES_HZ if rate * seconds >= 2]
    fundamentals = [f for f in FUNDAMENTALS_HZ if 6 * f <= highest]
    steady = (min(SETTLED_SECONDS, seconds / 4), seconds)
    early = (0.5 * seconds, 0.6 * seconds)
    late = (0.7 * seconds, seconds)
    one_level = (LEVEL_DB,)
    parts = [
        _rows("tone", frequencies, LEVELS_DB, [0.0], steady, realisations),
        _rows("band noise", bands, LEVELS_DB, [0.0], steady, realisations),
        _rows("noise", [0.0], LEVELS_DB, [0.0], steady, realisations),
        _rows("modulated noise", [0.0], one_level, fastest, steady, realisations),
        _rows("modulated tone", carriers[1:2], one_level, fastest, steady, realisations),
        _rows("sweep up", [0.0], one_level, SWEEP_SPEEDS, steady, realisations),
        _rows("sweep down", [0.0], one_level, SWEEP_SPEEDS, steady, realisations),
        _rows("harmonic", fundamentals, one_level, [0.0], steady, realisations),
        _rows("missing fundamental", fundamentals, one_level, [0.0], steady, realisations),
        _rows("inharmonic", fundamentals, one_level, [0.0], steady, realisations),
        _rows("clicks", [0.0], one_level, trains, steady, realisations),
        _rows("silence", [0.0], one_level, [0.0], steady, realisations),
    ]
    for kind, window in itertools.product(("onset", "steady", "offset", "silence"), (early, late)):
        played = [0.0] if kind == "silence" else [0.0, *carriers]
        parts.append(_rows(kind, played, one_level, [0.0], window, realisations))
    return pd.concat([part for part in parts if len(part)], ignore_index=True)


def _rows(
    kind: str,
    frequencies: Iterable[float],
    levels: Iterable[float],
    rates: Iterable[float],
    window: tuple[float, float],
    realisations: int,
) -> pd.DataFrame:
    """All combinations for one kind of sound."""
    combinations = itertools.product(
        [kind], frequencies, levels, rates, range(realisations), [window[0]], [window[1]]
    )
    columns = ["kind", "frequency", "level", "rate", "realisation", "start", "end"]
    return pd.DataFrame(list(combinations), columns=columns)


def waveform(row: pd.Series, sample_rate: int, samples: int, seed: int = 0) -> np.ndarray:
    """The sound of one row of the battery, float32 [samples]."""
    shared = _SHARED.get(row.kind, row.kind)
    described = f"{shared} {row.frequency:.3f} {row.rate:.3f}"
    rng = np.random.default_rng([seed, int(row.realisation), zlib.crc32(described.encode())])
    if row.kind == "clicks":
        return np.float32(CLICK_PEAK * stimuli.clicks(samples, sample_rate, row.rate, rng))
    silence = 10 ** (stimuli.SILENCE_DB / 20) * stimuli.noise(
        samples, np.random.default_rng([seed, row.realisation])
    )
    if row.kind == "silence":
        return np.float32(silence)
    sound = stimuli.at_level(_sound(row, sample_rate, samples, rng), row.level, sample_rate)
    if row.kind in ("onset", "offset"):
        sound = stimuli.gated(sound, sample_rate, row.kind == "onset") + silence
    return np.float32(sound)


def _sound(row: pd.Series, sample_rate: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """The sound at an RMS of 1, without its level and ramps."""
    carrier_of = {
        "modulated noise": "noise",
        "modulated tone": "tone",
        "onset": "noise",
        "steady": "noise",
        "offset": "noise",
    }
    kind = carrier_of.get(row.kind, row.kind)
    if kind == "noise" and row.frequency > 0:
        kind = "band noise"
    if kind == "tone":
        sound = stimuli.tone(samples, sample_rate, row.frequency, rng)
    elif kind == "band noise":
        sound = stimuli.band_noise(samples, sample_rate, row.frequency, rng)
    elif kind == "noise":
        sound = stimuli.noise(samples, rng)
    elif kind.startswith("sweep"):
        sound = stimuli.sweeps(samples, sample_rate, row.rate, kind == "sweep up", rng)
    else:
        lowest = 4 if kind == "missing fundamental" else 1
        inharmonic = kind == "inharmonic"
        sound = stimuli.harmonic_complex(
            samples, sample_rate, row.frequency, rng, lowest=lowest, inharmonic=inharmonic
        )
    if row.kind.startswith("modulated"):
        return stimuli.modulated(sound, sample_rate, row.rate, rng)
    return sound
