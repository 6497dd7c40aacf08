"""Test sounds of auditory physiology, each as one formula.

Every function returns a sound, float64 [samples]. All sounds except clicks have an RMS of 1, so that `at_level` can give them
equal levels. What is random (phases, noise) comes from a generator that the caller seeds.
"""

from __future__ import annotations

import numpy as np
from scipy import signal

RAMP_SECONDS = 0.01
SILENCE_DB = -90.0  # about the noise floor of a 16-bit recording
INHARMONIC_SHIFT = 0.3  # of the fundamental
CLICK_SECONDS = 0.0005

Generator = np.random.Generator


def times(samples: int, rate: int) -> np.ndarray:
    """Time of each sample [samples], s."""
    return np.arange(samples) / rate


def unit_rms(sound: np.ndarray) -> np.ndarray:
    """The same sound with an RMS of 1."""
    return sound / np.sqrt(np.mean(sound**2))


def at_level(sound: np.ndarray, level_db: float, rate: int) -> np.ndarray:
    """A sound of RMS 1 at a level in dB relative to full scale, with raised-cosine ramps of 10 ms at both ends."""
    share = min(1.0, 2 * RAMP_SECONDS * rate / len(sound))
    return 10 ** (level_db / 20) * sound * signal.windows.tukey(len(sound), share)


def tone(samples: int, rate: int, frequency: float, rng: Generator) -> np.ndarray:
    """A pure tone of random phase, sqrt(2) sin(2 pi f t + phase)."""
    phase = rng.uniform(0, 2 * np.pi)
    return np.sqrt(2) * np.sin(2 * np.pi * frequency * times(samples, rate) + phase)


def noise(samples: int, rng: Generator) -> np.ndarray:
    """Gaussian white noise."""
    return unit_rms(rng.standard_normal(samples))


def band_noise(samples: int, rate: int, centre: float, rng: Generator) -> np.ndarray:
    """Noise of one octave around a centre frequency, as Rauschecker, Tian and Hauser (Science 268:111, 1995) compared with
    tones: white noise through a Butterworth band-pass filter of order 4.
    """
    edges = centre / np.sqrt(2), min(centre * np.sqrt(2), 0.49 * rate)
    filter_sections = signal.butter(4, edges, "bandpass", fs=rate, output="sos")
    warm_up = rate // 4  # samples until the filter has settled
    filtered = signal.sosfilt(filter_sections, rng.standard_normal(warm_up + samples))
    return unit_rms(filtered[warm_up:])


def modulated(carrier: np.ndarray, rate: int, modulation: float, rng: Generator) -> np.ndarray:
    """Full sinusoidal amplitude modulation, (1 + cos(2 pi m t + phase)) carrier.

    Schreiner and Urbas (Hear. Res. 32:49, 1988) used modulated tones, Koumura, Terashima and Furukawa (J. Neurosci. 39:5517,
    2019) modulated sounds in a network.
    """
    phase = rng.uniform(0, 2 * np.pi)
    envelope = 1 + np.cos(2 * np.pi * modulation * times(len(carrier), rate) + phase)
    return unit_rms(envelope * carrier)


def sweeps(samples: int, rate: int, speed: float, upward: bool, rng: Generator) -> np.ndarray:
    """A train of logarithmic sweeps from 100 Hz to 0.4 of the rate.

    Tian and Rauschecker (J. Neurophysiol. 92:2993, 2004) used single upward and downward sweeps; a train fills the response
    window. Downward sweeps are upward ones in reverse, so that both have the same spectrum, envelope and repetition rate.

    Args:
        speed: octaves per second.
    """
    lowest, highest = 100.0, 0.4 * rate
    period = np.log2(highest / lowest) / speed
    within = (times(samples, rate) + rng.uniform(0, period)) % period
    phase = float(rng.uniform(0, 360))
    sound = signal.chirp(within, lowest, period, highest, method="logarithmic", phi=phase)
    ramp = min(RAMP_SECONDS, period / 4)
    edge = np.minimum(within, period - within) / ramp  # without clicks where a sweep ends
    sound = unit_rms(sound * np.sin(np.pi / 2 * np.clip(edge, 0, 1)) ** 2)
    return sound if upward else sound[::-1]


def harmonic_complex(
    samples: int,
    rate: int,
    fundamental: float,
    rng: Generator,
    *,
    lowest: int = 1,
    inharmonic: bool = False,
) -> np.ndarray:
    """Equal harmonics of a fundamental in random phases, up to the twelfth.

    Without the first three harmonics the fundamental is missing. Inharmonic controls shift every component at random by at
    most 0.3 of the fundamental; Kalluri, Depireux and Shamma (J. Acoust. Soc. Am. 123:2701, 2008) compared harmonic with
    inharmonic tones.
    """
    numbers = np.arange(1, 13)
    phases = rng.uniform(0, 2 * np.pi, len(numbers))
    shifts = rng.uniform(-INHARMONIC_SHIFT, INHARMONIC_SHIFT, len(numbers))
    frequencies = fundamental * (numbers + shifts * inharmonic)
    present = (numbers >= lowest) & (frequencies < 0.45 * rate)
    angles = (
        2 * np.pi * np.outer(frequencies[present], times(samples, rate)) + phases[present, None]
    )
    return unit_rms(np.sin(angles).sum(axis=0))


def clicks(samples: int, rate: int, repetition: float, rng: Generator) -> np.ndarray:
    """Rectangular clicks of 0.5 ms and amplitude 1 at a repetition rate from a random first click on, as the click trains of
    Lu, Liang and Wang (Nat. Neurosci. 4:1131, 2001). Clicks have equal peaks, because equal RMS would clip slow trains.
    """
    period = 1 / repetition
    since_click = (times(samples, rate) + rng.uniform(0, period)) % period
    return (since_click < max(CLICK_SECONDS, 1 / rate)).astype(np.float64)


def gated(sound: np.ndarray, rate: int, onset: bool) -> np.ndarray:
    """The second half of a sound after silence (onset), or its first half before silence (offset), with a ramp of 10 ms.

    Malone, Scott and Semple (J. Neurophysiol. 113:2934, 2015) compare onset, sustained and offset responses to gated tones.
    """
    since_onset = times(len(sound), rate) - len(sound) / 2 / rate
    gate = np.sin(np.pi / 2 * np.clip(since_onset / RAMP_SECONDS, 0, 1)) ** 2
    return sound * gate if onset else sound * (1 - gate)
