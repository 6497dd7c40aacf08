"""Sounds computed from scratch: everyday sound events, synthesiser patches, drum hits, and rooms to put them in.

Every event generator takes two random generators: ``rec`` draws what one recording has in common (the size of the
bell, the speed of the steps, the kind of rain), ``clip`` what differs from clip to clip of it. All waves are float
[samples] mono at 16 kHz; levels are arbitrary until :func:`finish`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from scipy import signal

from miniature.midi import SAMPLE_RATE

CLIP_SECONDS = 2.0
_N = round(CLIP_SECONDS * SAMPLE_RATE)
Event = Callable[[Generator, Generator], np.ndarray]


# --- building blocks ---


def seconds(n: float) -> np.ndarray:
    """Time axis of ``n`` seconds, s."""
    return np.arange(round(n * SAMPLE_RATE)) / SAMPLE_RATE


def band(wave: np.ndarray, low: float, high: float, order: int = 2) -> np.ndarray:
    """Butterworth filter between ``low`` and ``high`` Hz (low <= 0: a low-pass; high >= 8000: a high-pass)."""
    top = SAMPLE_RATE / 2
    if low <= 0:
        sos = signal.butter(order, min(high, 0.98 * top), "low", fs=SAMPLE_RATE, output="sos")
    elif high >= top:
        sos = signal.butter(order, low, "high", fs=SAMPLE_RATE, output="sos")
    else:
        sos = signal.butter(
            order, (low, min(high, 0.98 * top)), "band", fs=SAMPLE_RATE, output="sos"
        )
    return signal.sosfilt(sos, wave)


def noise(
    rng: Generator, n: float, low: float = 0, high: float = 8000, order: int = 2
) -> np.ndarray:
    """``n`` seconds of Gaussian noise between two frequencies in Hz, RMS about 1."""
    wave = band(rng.standard_normal(round(n * SAMPLE_RATE)), low, high, order)
    return wave / (np.sqrt(np.mean(wave**2)) + 1e-9)


def sweep(frequency: np.ndarray, phase: float = 0.0) -> np.ndarray:
    """A sine whose frequency in Hz is given for every sample."""
    return np.sin(2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE + phase)


def wander(rng: Generator, n: float, per_second: float) -> np.ndarray:
    """A smooth random curve in [0, 1] with about ``per_second`` turns a second."""
    knots = rng.random(max(4, round(n * per_second) + 3))
    at = np.linspace(0, len(knots) - 1.001, round(n * SAMPLE_RATE))
    low = at.astype(int)
    share = (1 - np.cos(np.pi * (at - low))) / 2
    return knots[low] * (1 - share) + knots[low + 1] * share


def put(wave: np.ndarray, hit: np.ndarray, at: float) -> None:
    """Add ``hit`` to ``wave`` in place, ``at`` seconds from its start; what hangs over is cut."""
    start = max(0, round(at * SAMPLE_RATE))
    part = hit[: max(0, len(wave) - start)]
    wave[start : start + len(part)] += part


def spray(wave: np.ndarray, hit: np.ndarray, onsets: np.ndarray, levels: np.ndarray) -> None:
    """Add many copies of one ``hit`` to ``wave`` in place: onsets in s, linear levels."""
    train = np.zeros(len(wave))
    at = (np.asarray(onsets) * SAMPLE_RATE).astype(int)
    inside = (at >= 0) & (at < len(wave))
    np.add.at(train, at[inside], np.asarray(levels)[inside])
    wave += signal.oaconvolve(train, hit)[: len(wave)]


def ring(
    rng: Generator, n: float, frequencies: np.ndarray, decays: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """A struck body: decaying partials (Hz, s, linear level) of random phase."""
    t = seconds(n)
    wave = np.zeros_like(t)
    for f, d, a in zip(frequencies, decays, levels, strict=True):
        if f < 7600:
            wave += a * np.exp(-t / d) * np.sin(2 * np.pi * f * t + rng.uniform(0, 2 * np.pi))
    wave[: min(len(wave), 16)] *= np.linspace(0, 1, min(len(wave), 16))
    return wave


def burst(
    rng: Generator, decay: float, low: float, high: float, attack: float = 0.001
) -> np.ndarray:
    """A noise burst with exponential decay (s) between two frequencies (Hz)."""
    n = min(CLIP_SECONDS, 7 * decay + attack)
    t = seconds(n)
    return noise(rng, n, low, high) * np.minimum(1, t / attack) * np.exp(-t / decay)


def steady(
    rng: Generator, period: float, jitter: float = 0.03, start: float | None = None
) -> list[float]:
    """Onsets in s, ``period`` seconds apart, each off by a normal share ``jitter`` of it."""
    first = rng.uniform(0.02, 0.02 + min(period, 0.5)) if start is None else start
    onsets = np.arange(first, CLIP_SECONDS - 0.05, period)
    return [float(max(0, x + period * jitter * rng.standard_normal())) for x in onsets]


def finish(
    wave: np.ndarray, rec: Generator, *, reverb: tuple[float, float], tilt: float, level: float
) -> np.ndarray:
    """The room and the microphone of a recording: reverberation (s), spectral tilt (+-), faint hiss, a peak level (at most 0.98)."""
    wave = np.asarray(wave, dtype=np.float64)
    seconds_60 = rec.uniform(*reverb)
    impulse = rec.standard_normal(round(seconds_60 * SAMPLE_RATE)) * np.exp(
        -6.9 * np.linspace(0, 1, round(seconds_60 * SAMPLE_RATE))
    )
    wet = signal.fftconvolve(wave, impulse)[: min(_N, len(wave) + len(impulse) // 3)]
    wet *= rec.uniform(0.05, 0.4) * np.abs(wave).max() / (np.abs(wet).max() + 1e-9)
    wave = np.pad(wave, (0, max(0, len(wet) - len(wave))))[:_N]
    wave[: len(wet)] += wet[: len(wave)]
    # A first-order shelf: a > 0 brightens, a < 0 darkens.
    a = rec.uniform(-tilt, tilt)
    wave = signal.lfilter([1, -a], [1.0], wave)
    hiss = 10 ** (-rec.uniform(45, 65) / 20) * np.abs(wave).max()
    wave = wave + hiss * rec.standard_normal(len(wave))
    return (wave * min(level, 0.98) / (np.abs(wave).max() + 1e-9)).astype(np.float32)


# --- sound events ---


def rain(rec: Generator, clip: Generator) -> np.ndarray:
    low, high, drops = rec.uniform(600, 2000), rec.uniform(4500, 7800), rec.uniform(30, 250)
    wave = noise(clip, 2.0, low, high, 1) * (0.85 + 0.15 * wander(clip, 2.0, 3))
    count = clip.poisson(2 * drops)
    spray(
        wave,
        burst(clip, 0.0025, 1500, 7500),
        clip.uniform(0, 2, count),
        1.2 * clip.gamma(1.5, size=count),
    )
    return wave


def sea_waves(rec: Generator, clip: Generator) -> np.ndarray:
    length, surf = rec.uniform(1.2, 2.6), rec.uniform(1500, 4000)
    t = seconds(2.0)
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * (t / length + clip.random()))
    deep = noise(clip, 2.0, 60, 500, 1) * (0.4 + 0.6 * swell)
    return deep + 1.6 * noise(clip, 2.0, 400, surf, 1) * swell**2


def wind(rec: Generator, clip: Generator) -> np.ndarray:
    centre, howl = rec.uniform(250, 700), rec.uniform(0.2, 0.7)
    gust = wander(clip, 2.0, rec.uniform(1, 2.5))
    f = centre * (0.7 + 0.8 * gust)
    carrier = noise(clip, 2.0, 0, 40)  # narrow noise moved up to the whistling frequency
    whistle = carrier * sweep(f, clip.uniform(0, 6))
    return (noise(clip, 2.0, 40, 450, 1) * (1 - howl) + howl * whistle) * (0.25 + gust**1.5)


def thunderstorm(rec: Generator, clip: Generator) -> np.ndarray:
    far = rec.uniform(0.2, 1.0)
    wave = np.zeros(_N)
    for at in sorted(clip.uniform(0, 1.0, clip.integers(3, 8))):
        put(
            wave,
            clip.uniform(0.4, 1) * burst(clip, clip.uniform(0.15, 0.5), 25, 350 - 220 * far, 0.02),
            at,
        )
    if far < 0.6:
        put(wave, 1.2 * (1 - far) * burst(clip, 0.06, 300, 4000), clip.uniform(0.0, 0.2))
    return wave + rec.uniform(0.01, 0.08) * noise(clip, 2.0, 1000, 7000, 1)


def crackling_fire(rec: Generator, clip: Generator) -> np.ndarray:
    rate, roar = rec.uniform(8, 28), rec.uniform(0.03, 0.12)
    wave = (
        roar * noise(clip, 2.0, 60, rec.uniform(300, 800), 1) * (0.6 + 0.4 * wander(clip, 2.0, 4))
    )
    for at in clip.uniform(0, 2, clip.poisson(2 * rate)):
        low = clip.uniform(800, 3500)
        put(
            wave,
            clip.exponential(0.35) * burst(clip, clip.uniform(0.001, 0.006), low, 2.2 * low),
            at,
        )
    return wave


def water_drops(rec: Generator, clip: Generator) -> np.ndarray:
    f0, every, wet = rec.uniform(500, 1800), rec.uniform(0.25, 0.8), rec.uniform(0.02, 0.05)
    rise = rec.uniform(2, 6)
    wave = np.zeros(_N)
    for at in steady(clip, every, 0.12):
        t = seconds(0.2)
        f = f0 * clip.uniform(0.85, 1.15) * (1 + rise * t)  # a bubble's pitch rises as it closes
        put(wave, sweep(f) * np.exp(-t / wet) * clip.uniform(0.5, 1) * np.minimum(1, t / 0.002), at)
        put(wave, 0.2 * burst(clip, 0.003, 2000, 7000), at)
    return wave


def crickets(rec: Generator, clip: Generator) -> np.ndarray:
    f, pulses, rate, chirps = (
        rec.uniform(3300, 5800),
        rec.integers(2, 6),
        rec.uniform(35, 70),
        rec.uniform(0.28, 0.6),
    )
    wave = 0.01 * noise(clip, 2.0, 500, 7000)
    for at in steady(clip, chirps, 0.02):
        for k in range(pulses):
            t = seconds(0.6 / rate)
            pulse = (
                np.sin(2 * np.pi * f * (1 - 0.02 * t * rate) * t)
                * np.sin(np.pi * t * rate / 0.6) ** 2
            )
            put(wave, clip.uniform(0.7, 1) * pulse, at + k / rate)
    return wave


def chirping_birds(rec: Generator, clip: Generator) -> np.ndarray:
    base, kind, gap = rec.uniform(2200, 4200), rec.integers(0, 3), rec.uniform(0.12, 0.4)
    depth, length = rec.uniform(0.15, 0.45), rec.uniform(0.05, 0.14)
    wave = 0.01 * noise(clip, 2.0, 300, 7500)
    for at in steady(clip, gap, 0.15):
        if clip.random() < 0.2:
            continue
        t = seconds(length * clip.uniform(0.8, 1.2))
        x = t / t[-1]
        shape = (x, 1 - x, np.sin(2 * np.pi * 2 * x))[kind]
        f = base * clip.uniform(0.9, 1.1) * (1 + depth * shape)
        tone = sweep(f) + 0.15 * sweep(np.minimum(2 * f, 7800))
        put(wave, tone * np.sin(np.pi * x) ** 0.7 * clip.uniform(0.5, 1), at)
    return wave


def church_bells(rec: Generator, clip: Generator) -> np.ndarray:
    # Partials of a bell: hum, prime, tierce, quint, nominal, ... (relative to the prime)
    ratios = np.array([0.5, 1, 1.2, 1.5, 2, 2.5, 2.67, 3, 4.1, 5.3])
    tones = rec.uniform(220, 620) * np.array([1.0, rec.choice([0.75, 0.8, 1.25, 1.33])])
    every, long = rec.uniform(0.7, 1.6), rec.uniform(0.7, 2.0)
    ratios = ratios * (1 + 0.004 * rec.standard_normal(len(ratios)))
    wave = np.zeros(_N)
    for k, at in enumerate(steady(clip, every, 0.02)):
        f = tones[k % 2] * ratios
        levels = clip.uniform(0.4, 1, len(ratios)) / (1 + 0.25 * np.arange(len(ratios)))
        put(wave, ring(clip, 2.0, f, long / ratios**0.6, levels), at)
        put(wave, 0.3 * burst(clip, 0.01, 800, 5000), at)
    return wave


def clock_alarm(rec: Generator, clip: Generator) -> np.ndarray:
    f, beeps = rec.uniform(1400, 3200), rec.integers(2, 5)
    on, pause = rec.uniform(0.05, 0.11), rec.uniform(0.25, 0.5)
    square = rec.random() < 0.5
    wave = np.zeros(_N)
    at = clip.uniform(0, 0.4)
    while at < 2:
        for _ in range(beeps):
            t = seconds(on)
            tone = np.sin(2 * np.pi * f * t)
            if square:
                tone = np.tanh(3 * tone)
            put(wave, tone * np.minimum(1, np.minimum(t, on - t) / 0.003), at)
            at += 1.7 * on
        at += pause
    return wave


def clock_tick(rec: Generator, clip: Generator) -> np.ndarray:
    period, f = rec.uniform(0.25, 0.7), rec.uniform(1200, 4500)
    colour, decay = rec.uniform(0.75, 0.95), rec.uniform(0.004, 0.014)
    wave = np.zeros(_N)
    for k, at in enumerate(steady(clip, period, 0.004)):
        g = f * (colour if k % 2 else 1)
        partials = g * np.array([1, 1.62, 2.31])
        put(
            wave,
            ring(clip, 0.1, partials, decay * np.array([1, 0.7, 0.5]), np.array([1, 0.6, 0.4])),
            at,
        )
        put(wave, 0.3 * burst(clip, 0.0015, 1500, 7500), at)
    return wave


def siren(rec: Generator, clip: Generator) -> np.ndarray:
    low, ratio, period = rec.uniform(450, 800), rec.uniform(1.3, 2.1), rec.uniform(0.35, 1.9)
    kind, t = rec.integers(0, 3), seconds(2.0)
    phase = (t / period + clip.random()) % 1
    shape = (
        0.5 - 0.5 * np.cos(2 * np.pi * phase),
        (phase < 0.5).astype(float),
        1 - np.abs(2 * phase - 1),
    )[kind]
    f = low * ratio**shape
    tone = sum(sweep(k * f) * np.where(k * f < 7500, 1 / k**1.3, 0) for k in range(1, 7))
    return tone * (0.8 + 0.2 * wander(clip, 2.0, 4)) + 0.02 * noise(clip, 2.0, 100, 4000)


def car_horn(rec: Generator, clip: Generator) -> np.ndarray:
    f = rec.uniform(300, 480)
    tones = f * np.array([1.0, rec.uniform(1.18, 1.28)])
    count = rec.integers(1, 4)
    wave = np.zeros(_N)
    at = clip.uniform(0, 0.2)
    for _ in range(count):
        t = seconds(clip.uniform(0.7, 1.5) if count == 1 else clip.uniform(0.2, 0.45))
        tone = sum(polyblep_saw(np.full(len(t), g)) for g in tones)
        filtered = band(tone, 250, 5000)  # type: ignore[arg-type]
        put(wave, np.tanh(1.5 * filtered) * np.minimum(1, np.minimum(t, t[-1] - t) / 0.02), at)
        at += t[-1] + clip.uniform(0.08, 0.2)
    return wave[: round(min(2.0, at) * SAMPLE_RATE)]


def engine(rec: Generator, clip: Generator) -> np.ndarray:
    f0, rough = rec.uniform(22, 75), rec.uniform(0.1, 0.4)
    f = f0 * (1 + 0.06 * (wander(clip, 2.0, 1.5) - 0.5))
    pulses = np.maximum(0, sweep(f)) ** rec.uniform(4, 10) + 0.6 * np.maximum(0, sweep(f / 2)) ** 6
    body = band(pulses - pulses.mean(), 35, rec.uniform(300, 900))
    return body / np.abs(body).max() + rough * noise(clip, 2.0, 80, 2500, 1) * (0.3 + pulses)


def helicopter(rec: Generator, clip: Generator) -> np.ndarray:
    rate, sharp = rec.uniform(9, 20), rec.uniform(3, 8)
    t = seconds(2.0)
    chop = (0.5 + 0.5 * np.cos(2 * np.pi * rate * t + clip.uniform(0, 6))) ** sharp
    wave = noise(clip, 2.0, 40, rec.uniform(250, 700), 1) * (0.15 + chop)
    turbine = rec.uniform(0.02, 0.08) * np.sin(2 * np.pi * rec.uniform(900, 2500) * t)
    return wave + turbine + rec.uniform(0.03, 0.1) * noise(clip, 2.0, 800, 4000, 1) * (0.4 + chop)


def vacuum_cleaner(rec: Generator, clip: Generator) -> np.ndarray:
    f0 = rec.uniform(180, 420)
    f = f0 * (1 + 0.01 * (wander(clip, 2.0, 2) - 0.5))
    hum = sum(rec.uniform(0.2, 1) / k * sweep(k * f, rec.uniform(0, 6)) for k in range(1, 9))
    return rec.uniform(0.25, 0.7) * hum + noise(
        clip, 2.0, rec.uniform(200, 500), rec.uniform(3000, 7000), 1
    )


def hand_saw(rec: Generator, clip: Generator) -> np.ndarray:
    stroke, low, teeth = rec.uniform(0.28, 0.55), rec.uniform(900, 2200), rec.uniform(60, 150)
    wave = np.zeros(_N)
    for k, at in enumerate(steady(clip, stroke, 0.03)):
        t = seconds(0.85 * stroke)
        x = t / t[-1]
        speed = np.sin(np.pi * x)
        grain = 0.5 + 0.5 * np.sign(sweep(teeth * (0.4 + speed)))
        tone = noise(clip, t[-1] + 1 / SAMPLE_RATE, low * (1.25 if k % 2 else 1), 3.2 * low, 1)[
            : len(t)
        ]
        put(wave, tone * speed * (0.35 + 0.65 * grain) * (1 if k % 2 else 0.8), at)
    return wave


def door_wood_knock(rec: Generator, clip: Generator) -> np.ndarray:
    f, decay, every = rec.uniform(110, 320), rec.uniform(0.018, 0.05), rec.uniform(0.14, 0.32)
    ratios = np.array([1, 1.7, 2.6, 3.9]) * (1 + 0.06 * rec.standard_normal(4))
    wave = np.zeros(_N)
    at = clip.uniform(0.0, 0.3)
    for _ in range(clip.integers(2, 6)):
        hit = ring(
            clip,
            0.4,
            f * ratios,
            decay * np.array([1.4, 1, 0.7, 0.5]),
            np.array([1, 0.7, 0.5, 0.3]),
        )
        put(wave, clip.uniform(0.6, 1) * hit, at)
        put(wave, 0.4 * burst(clip, 0.004, 300, 3500), at)
        at += every * clip.uniform(0.92, 1.08)
    return wave[: round(min(2.0, at + 0.25) * SAMPLE_RATE)]


def footsteps(rec: Generator, clip: Generator) -> np.ndarray:
    every, thud, grit = rec.uniform(0.32, 0.7), rec.uniform(70, 200), rec.uniform(0.05, 0.7)
    sole, ground = rec.uniform(0.02, 0.05), rec.uniform(3000, 7000)
    wave = np.zeros(_N)
    for at in steady(clip, every, 0.03):
        level = clip.uniform(0.7, 1)
        put(wave, level * burst(clip, sole, thud * 0.6, thud * 2.5, 0.003), at)
        put(
            wave, level * grit * burst(clip, 0.03, 700, ground, 0.01), at + clip.uniform(0.02, 0.06)
        )
        put(wave, 0.4 * level * burst(clip, 0.004, 500, 4000), at)
    return wave


def clapping(rec: Generator, clip: Generator) -> np.ndarray:
    people, tempo = rec.integers(1, 14), rec.uniform(0.17, 0.4)
    wave = np.zeros(_N)
    for _ in range(people):
        centre, period = rec.uniform(700, 2200), tempo * rec.uniform(0.85, 1.15)
        hit = burst(clip, rec.uniform(0.006, 0.016), 0.6 * centre, 1.9 * centre)
        put(hit, 0.3 * burst(clip, 0.002, 1500, 7500), 0)
        onsets = np.array(steady(clip, period, 0.08))
        spray(wave, hit, onsets, clip.uniform(0.5, 1, len(onsets)))
    return wave


def keyboard_typing(rec: Generator, clip: Generator) -> np.ndarray:
    speed, f, click = rec.uniform(5, 11), rec.uniform(1800, 4200), rec.uniform(0.002, 0.006)
    wave = 0.004 * noise(clip, 2.0, 100, 4000)
    at = clip.uniform(0, 0.2)
    while at < 1.95:
        level = clip.uniform(0.4, 1)
        press = burst(clip, click, f * clip.uniform(0.6, 0.9), 7600)
        put(wave, level * press, at)
        put(
            wave,
            0.5
            * level
            * ring(clip, 0.05, np.array([f * 0.15, f * 0.33]), np.full(2, 0.008), np.ones(2)),
            at,
        )
        put(wave, 0.5 * level * burst(clip, 0.002, f, 7600), at + clip.uniform(0.05, 0.09))
        at += clip.gamma(4, 1 / (4 * speed)) + 0.03
    return wave


def glass_breaking(rec: Generator, clip: Generator) -> np.ndarray:
    start, shards, size = clip.uniform(0, 0.3), rec.integers(12, 45), rec.uniform(0.03, 0.12)
    fall = rec.uniform(0.12, 0.3)
    wave = np.zeros(_N)
    put(wave, 1.5 * burst(clip, rec.uniform(0.02, 0.06), 1200, 7800), start)
    for at in start + clip.exponential(fall, shards):
        f = clip.uniform(2000, 6500) * np.array([1, 1.35, 1.78])
        put(
            wave,
            clip.uniform(0.1, 0.6) * ring(clip, 0.5, f, size * np.array([1, 0.7, 0.5]), np.ones(3)),
            at,
        )
    return wave[: round(min(2.0, start + 1.3) * SAMPLE_RATE)]


def fireworks(rec: Generator, clip: Generator) -> np.ndarray:
    whistle, crackle = rec.random() < 0.6, rec.uniform(20, 90)
    wave, bang = np.zeros(_N), clip.uniform(0.3, 0.8)
    if whistle:
        t = seconds(bang)
        put(wave, 0.12 * sweep(rec.uniform(1500, 2500) * (1 + 0.5 * t / t[-1])) * (t / t[-1]), 0.0)
    put(wave, 1.4 * burst(clip, rec.uniform(0.06, 0.2), 40, 900, 0.002), bang)
    put(wave, 0.5 * burst(clip, 0.02, 500, 6000), bang)
    onsets = bang + 0.05 + clip.exponential(0.35, clip.poisson(crackle))
    spray(wave, burst(clip, 0.004, 1500, 7000), onsets, clip.uniform(0.05, 0.3, len(onsets)))
    return wave


def breathing(rec: Generator, clip: Generator) -> np.ndarray:
    cycle, mouth = rec.uniform(0.8, 1.5), rec.uniform(600, 1600)
    wave = np.zeros(_N)
    for at in np.arange(clip.uniform(-0.4, 0.1), 2, cycle):
        for offset, length, centre, level in ((0, 0.4, 1.5, 0.7), (0.48, 0.46, 1.0, 1.0)):
            n = length * cycle * clip.uniform(0.9, 1.05)
            breath = noise(clip, n, 0.5 * mouth * centre, 2.4 * mouth * centre, 1)
            start = at + offset * cycle
            hit = level * breath * np.sin(np.pi * np.linspace(0, 1, len(breath))) ** 1.3
            put(wave, hit[max(0, round(-start * SAMPLE_RATE)) :], max(0, start))
    return wave


# --- struck things: events of one hit, also the drum kits of the pieces ---


def kick(rec: Generator, clip: Generator) -> np.ndarray:
    f, drop, decay = rec.uniform(42, 65), rec.uniform(40, 160), rec.uniform(0.07, 0.28)
    t = seconds(min(1.2, 6 * decay))
    wave = sweep(f + drop * np.exp(-t / 0.018)) * np.exp(-t / decay)
    put(wave, rec.uniform(0.05, 0.5) * burst(clip, 0.004, 800, 5000), 0)
    return wave


def snare(rec: Generator, clip: Generator) -> np.ndarray:
    f, rattle, decay = rec.uniform(150, 240), rec.uniform(0.4, 1.0), rec.uniform(0.05, 0.14)
    wave = np.zeros(round(0.7 * SAMPLE_RATE))
    put(
        wave,
        ring(
            clip,
            0.5,
            f * np.array([1, 1.6, 2.3]),
            np.array([0.09, 0.06, 0.04]),
            np.array([1, 0.6, 0.3]),
        ),
        0,
    )
    put(wave, 0.9 * rattle * burst(clip, decay, rec.uniform(900, 2000), 7600), 0)
    return wave


def hat(rec: Generator, clip: Generator, opened: float | None = None) -> np.ndarray:
    base, decay = rec.uniform(280, 460), rec.uniform(0.015, 0.045) if opened is None else opened
    t = seconds(min(1.5, 7 * decay))
    metal = sum(np.sign(np.sin(2 * np.pi * base * r * t)) for r in (2, 3, 4.16, 5.43, 6.79, 8.21))
    wave = band(metal, 5000, 8000) + 0.5 * noise(clip, len(t) / SAMPLE_RATE, 5500, 8000)[: len(t)]  # type: ignore[arg-type]
    return wave * np.exp(-t / decay)


def cymbal(rec: Generator, clip: Generator) -> np.ndarray:
    decay, low = rec.uniform(0.35, 1.0), rec.uniform(1500, 3500)
    t = seconds(2.0)
    f = rec.uniform(300, 7000, 40)
    wave = 0.05 * ring(clip, 2.0, f, np.full(40, decay), rec.random(40))
    hiss = noise(clip, 2.0, low, 8000) * np.exp(-t / decay)
    return wave + hiss + 0.8 * noise(clip, 2.0, 500, 3000) * np.exp(-t / (0.15 * decay))


def tambourine(rec: Generator, clip: Generator) -> np.ndarray:
    f, shakes, every = rec.uniform(3500, 5500), rec.integers(1, 6), rec.uniform(0.1, 0.25)
    decay = rec.uniform(0.03, 0.08)
    wave = np.zeros(_N)
    for k in range(shakes):
        for at in k * every + clip.exponential(0.012, 8):
            tones = f * clip.uniform(0.85, 1.3, 4)
            put(wave, 0.3 * ring(clip, 0.4, tones, np.full(4, decay), clip.random(4)), at)
        put(wave, burst(clip, 0.02, 4000, 8000), k * every)
    return wave[: round(min(2.0, shakes * every + 0.4) * SAMPLE_RATE)]


def cowbell(rec: Generator, clip: Generator) -> np.ndarray:
    f, ratio, decay = rec.uniform(480, 800), rec.uniform(1.42, 1.55), rec.uniform(0.06, 0.2)
    wave = np.zeros(_N)
    hits, every = clip.integers(1, 5), rec.uniform(0.2, 0.4)
    for k in range(hits):
        t = seconds(min(1.0, 6 * decay))
        metal = np.sign(np.sin(2 * np.pi * f * t)) + 0.8 * np.sign(
            np.sin(2 * np.pi * f * ratio * t)
        )
        put(
            wave,
            band(metal, 0.8 * f, 5 * f, 1) * np.exp(-t / decay) * clip.uniform(0.6, 1),
            k * every,
        )
    return wave[: round(min(2.0, hits * every + 0.4) * SAMPLE_RATE)]


def hits_of(drum: Callable[[Generator, Generator], np.ndarray], hits: tuple[int, int]) -> Event:
    """An event of several strokes of one drum."""

    def event(rec: Generator, clip: Generator) -> np.ndarray:
        seed, every = int(rec.integers(1 << 30)), rec.uniform(0.18, 0.5)
        count = int(clip.integers(hits[0], hits[1] + 1))
        wave, end = np.zeros(_N), 0.0
        for k in range(count):
            hit = drum(np.random.default_rng(seed), clip)
            put(wave, clip.uniform(0.6, 1) * hit, k * every)
            end = k * every + len(hit) / SAMPLE_RATE
        return wave[: round(min(CLIP_SECONDS, end) * SAMPLE_RATE)]

    return event


EVENTS: dict[str, Event] = {
    "rain": rain,
    "sea_waves": sea_waves,
    "wind": wind,
    "thunderstorm": thunderstorm,
    "crackling_fire": crackling_fire,
    "water_drops": water_drops,
    "crickets": crickets,
    "chirping_birds": chirping_birds,
    "church_bells": church_bells,
    "clock_alarm": clock_alarm,
    "clock_tick": clock_tick,
    "siren": siren,
    "car_horn": car_horn,
    "engine": engine,
    "helicopter": helicopter,
    "vacuum_cleaner": vacuum_cleaner,
    "hand_saw": hand_saw,
    "door_wood_knock": door_wood_knock,
    "footsteps": footsteps,
    "clapping": clapping,
    "keyboard_typing": keyboard_typing,
    "glass_breaking": glass_breaking,
    "fireworks": fireworks,
    "breathing": breathing,
    "bass_drum": hits_of(kick, (1, 4)),
    "snare_drum": hits_of(snare, (1, 4)),
    "hi-hat": hits_of(hat, (2, 8)),
    "crash_cymbal": hits_of(cymbal, (1, 1)),
    "tambourine": tambourine,
    "cowbell": cowbell,
}


# --- synthesiser patches ---


def polyblep_saw(frequency: np.ndarray, phase: float = 0.0) -> np.ndarray:
    """A sawtooth in [-1, 1] with smoothed steps (PolyBLEP), which keeps aliases down. Frequency in Hz per sample."""
    step = frequency / SAMPLE_RATE
    position = (phase + np.cumsum(step)) % 1.0
    wave = 2 * position - 1
    early, late = position < step, position > 1 - step
    x = position[early] / step[early]
    wave[early] -= 2 * x - x * x - 1
    x = (position[late] - 1) / step[late]
    wave[late] -= x * x + 2 * x + 1
    return wave


def patch(rec: Generator, clip: Generator, pitch: int, velocity: float) -> np.ndarray:
    """One note of a synthesiser patch: MIDI pitch, velocity 0..1. ``rec`` is the patch, ``clip`` the take."""
    kind = rec.integers(0, 5)
    attack, decay, sustain = rec.uniform(0.003, 0.12), rec.uniform(0.2, 1.2), rec.uniform(0.05, 0.8)
    hold, release = rec.uniform(0.7, 1.4), rec.uniform(0.05, 0.4)
    t = seconds(min(CLIP_SECONDS, hold + release))
    vibrato = rec.uniform(0, 0.004) * np.sin(
        2 * np.pi * rec.uniform(4, 6.5) * t + clip.uniform(0, 6)
    )
    f = 440 * 2 ** ((pitch - 69) / 12) * (1 + vibrato)
    detune, pulse = rec.uniform(0.001, 0.006), rec.uniform(0.15, 0.5)
    if kind == 0:  # saws, slightly apart
        wave = sum(polyblep_saw(f * (1 + d * detune), clip.random()) for d in (-1, 0, 1))
    elif kind == 1:  # pulse: the difference of two saws
        start = clip.random()
        wave = polyblep_saw(f, start) - polyblep_saw(f, (start + pulse) % 1)
    elif kind == 2:  # frequency modulation, modulator at a whole multiple
        ratio, index = rec.integers(1, 4), rec.uniform(0.5, 4) * np.exp(-t / decay)
        phase = 2 * np.pi * np.cumsum(f) / SAMPLE_RATE
        wave = np.sin(phase + index * np.sin(ratio * phase))
    elif kind == 3:  # drawbars
        levels = rec.random(6)
        levels[0] = 1.0
        wave = sum(
            a * sweep(k * f, clip.uniform(0, 6))
            for k, a in zip((1, 2, 3, 4, 6, 8), levels, strict=True)
        )
    else:  # saw and its sub-square mixed low, plucked
        wave = polyblep_saw(f, clip.random()) + 0.5 * np.tanh(4 * sweep(f))
        sustain *= 0.3
    cutoff = np.clip(rec.uniform(3, 12) * float(f[0]) * (0.5 + 0.5 * velocity), 300, 7000)
    if kind in (0, 1, 4):
        wave = band(wave, 0, float(cutoff), 2)  # type: ignore[arg-type]
    shape = np.minimum(1, t / attack) * (
        sustain + (1 - sustain) * np.exp(-np.maximum(0, t - attack) / decay)
    )
    shape *= np.where(t > hold, np.exp(-(t - hold) / (0.3 * release)), 1)
    return wave * shape
