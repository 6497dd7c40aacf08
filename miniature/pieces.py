"""Short generated pieces in ten genres: a drum pattern, a bass, chords and a line, at a tempo typical of each.

Instruments of the training and the test pieces share no recorded sample of the soundfont; drums are computed
(:mod:`miniature.events`), one kit per piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from miniature import events
from miniature.midi import SAMPLE_RATE, Note, Part, play

MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)
TRIAD, MINOR_TRIAD, SEVENTH, MINOR_SEVENTH, MAJOR_SEVENTH, POWER = (
    (0, 4, 7),
    (0, 3, 7),
    (0, 4, 7, 10),
    (0, 3, 7, 10),
    (0, 4, 7, 11),
    (0, 7, 12),
)


@dataclass(frozen=True)
class Genre:
    """What is typical of a genre.

    ``tempo``: quarter notes a minute, lowest and highest. ``train`` and ``test``: General MIDI programs for bass,
    chords and line. ``chords``: (root in semitones above the key, intervals), one per half or whole bar.
    ``drums``: for each drum a pattern of 16 steps: '.' nothing, 'x' soft, 'X' loud. ``swing``: 0 straight, 1 triplets.
    """

    tempo: tuple[int, int]
    train: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    test: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    chords: tuple[tuple[int, tuple[int, ...]], ...]
    scale: tuple[int, ...]
    bass: str
    comping: str
    drums: dict[str, str]
    swing: float = 0.0
    line: float = 0.5  # share of eighths on which the line plays
    levels: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)  # drums, bass, chords, line
    line_from: int = 64  # lowest MIDI key of the line in E


GENRES: dict[str, Genre] = {
    "blues": Genre(
        (66, 96), ((33,), (27,), (22,)), ((34,), (17,), (29,)),
        ((0, SEVENTH), (0, SEVENTH), (5, SEVENTH), (0, SEVENTH), (7, SEVENTH), (5, SEVENTH)),
        (0, 3, 5, 6, 7, 10), "shuffle", "x.x.x.x.x.x.x.x.",
        {"kick": "X.......X.......", "snare": "....X.......X...", "hat": "x.x.x.x.x.x.x.x."}, swing=1.0, line=0.45,
        levels=(0.5, 1.0, 0.8, 1.1), line_from=40,
    ),
    "classical": Genre(
        (60, 132), ((42,), (44, 6), (40, 68)), ((70,), (46, 49), (71, 73)),
        ((0, TRIAD), (5, TRIAD), (7, TRIAD), (0, TRIAD), (9, MINOR_TRIAD), (2, MINOR_TRIAD)),
        MAJOR, "long", "arpeggio", {}, line=0.8, levels=(0.0, 0.8, 0.8, 1.2),
    ),
    "country": Genre(
        (92, 132), ((33,), (24,), (110,)), ((34,), (25,), (105,)),
        ((0, TRIAD), (5, TRIAD), (0, TRIAD), (7, TRIAD)),
        (0, 2, 4, 7, 9), "alternate", "..x...x...x...x.",
        {"kick": "X.......X.......", "brush": "x.X.x.X.x.X.x.X."}, line=0.85, levels=(0.35, 1.0, 1.0, 1.0),
    ),
    "disco": Genre(
        (112, 130), ((36,), (51,), (61,)), ((37,), (50,), (63,)),
        ((0, MINOR_SEVENTH), (5, MINOR_SEVENTH), (10, SEVENTH), (3, MAJOR_SEVENTH)),
        MINOR, "octaves", "X.......X..x....",
        {"kick": "X...X...X...X...", "clap": "....X.......X...", "open": "..X...X...X...X."}, line=0.35,
        levels=(1.0, 1.1, 0.8, 0.7), line_from=58,
    ),
    "hiphop": Genre(
        (78, 98), ((38,), (4,), (11,)), ((35,), (5,), (108,)),
        ((0, MINOR_TRIAD), (0, MINOR_TRIAD), (8, TRIAD), (7, MINOR_TRIAD)),
        (0, 3, 5, 7, 10), "sub", "x...............",
        {"deep": "X..x..X...X.....", "clap": "....X.......X...", "hat": "xxxxx.xxxxxxx.xx"}, swing=0.3, line=0.2,
        levels=(1.5, 1.2, 0.45, 0.4),
    ),
    "jazz": Genre(
        (120, 190), ((32,), (0,), (66, 59)), ((35,), (26,), (64, 56)),
        ((2, MINOR_SEVENTH), (7, SEVENTH), (0, MAJOR_SEVENTH), (9, SEVENTH)),
        (0, 2, 3, 4, 5, 7, 9, 10, 11), "walking", "..x....x..x.....",
        {"ride": "X...X.x.X...X.x.", "hat": "....x.......x..."}, swing=1.0, line=0.75, levels=(0.5, 1.1, 0.8, 1.0),
    ),
    "metal": Genre(
        (150, 200), ((33,), (30,), (30,)), ((34,), (29,), (29,)),
        ((0, POWER), (0, POWER), (1, POWER), (0, POWER), (6, POWER), (5, POWER)),
        (0, 1, 3, 5, 6, 7, 8, 10), "chug", "XxxXxxXxXxxXxxXx",
        {"kick": "XXXXXXXXXXXXXXXX", "snare": "....X.......X...", "crash": "X..............."}, line=0.0,
        levels=(0.9, 0.9, 1.3, 0.5), line_from=40,
    ),
    "pop": Genre(
        (96, 124), ((38,), (4, 24), (80,)), ((81,), (5, 25), (54,)),
        ((0, TRIAD), (7, TRIAD), (9, MINOR_TRIAD), (5, TRIAD)),
        (0, 2, 4, 7, 9), "eighths", "X...x...X..x..x.",
        {"kick": "X.....X.X.......", "snare": "....X.......X...", "hat": "x.x.x.x.x.x.x.x."}, line=0.55,
        levels=(0.9, 0.9, 0.9, 0.8),
    ),
    "reggae": Genre(
        (64, 84), ((33,), (27, 16), (22,)), ((34,), (28, 18), (57,)),
        ((0, TRIAD), (0, TRIAD), (5, TRIAD), (7, TRIAD)),
        (0, 2, 4, 7, 9), "dub", "....X.......X...",
        {"kick": "........X.......", "rim": "........X.......", "hat": "x.x.x.x.x.x.x.x."}, swing=0.4, line=0.15,
        levels=(0.6, 1.4, 1.1, 0.5),
    ),
    "rock": Genre(
        (104, 148), ((33,), (30,), (30,)), ((34,), (29,), (29,)),
        ((0, POWER), (5, POWER), (10, POWER), (5, POWER)),
        (0, 3, 5, 7, 10), "eighths", "X.x.x.x.X.x.x.x.",
        {"kick": "X.....X.X.......", "snare": "....X.......X...", "open": "X.X.X.X.X.X.X.X."}, line=0.3,
        levels=(1.1, 1.0, 1.0, 0.8), line_from=40,
    ),
}  # fmt: skip


def _drum(name: str, kit: int, clip: Generator) -> np.ndarray:
    """One stroke of a piece's kit: the kit's seed decides how the drum sounds."""
    rec = np.random.default_rng([kit, *name.encode()])
    if name == "kick":
        return events.kick(rec, clip)
    if name == "deep":  # the long bass drum of a drum machine
        t = events.seconds(0.7)
        return events.sweep(rec.uniform(42, 52) + 60 * np.exp(-t / 0.02)) * np.exp(
            -t / rec.uniform(0.18, 0.35)
        )
    if name == "snare":
        return events.snare(rec, clip)
    if name == "rim":
        f = rec.uniform(400, 700)
        return events.ring(
            clip, 0.2, f * np.array([1, 2.3, 3.9]), np.array([0.02, 0.015, 0.01]), np.ones(3)
        )
    if name == "clap":
        hit = np.zeros(4000)
        for at in (0, 0.01, 0.021):
            events.put(hit, events.burst(clip, 0.04 if at > 0.02 else 0.006, 800, 3500), at)
        return hit
    if name == "brush":
        return 0.5 * events.burst(clip, rec.uniform(0.04, 0.08), 1500, 7000, 0.01)
    if name == "hat":
        return 0.5 * events.hat(rec, clip)
    if name == "open":
        return 0.5 * events.hat(rec, clip, opened=rec.uniform(0.08, 0.16))
    if name == "ride":
        f = rec.uniform(2500, 3800)
        hit = 0.3 * events.hat(rec, clip, opened=0.2)
        events.put(
            hit,
            0.5
            * events.ring(clip, 0.6, f * np.array([1, 1.34, 1.9]), np.full(3, 0.15), np.ones(3)),
            0,
        )
        return hit
    if name == "crash":
        return 0.5 * events.cymbal(rec, clip)
    raise ValueError(f"expected a drum of a piece, found {name!r}")


def _bass(
    style: str,
    root: int,
    intervals: tuple[int, ...],
    sixteenth: float,
    start: float,
    rng: Generator,
) -> list[Note]:
    """The bass notes of one bar from ``start`` (s). ``root``: MIDI key."""
    third = intervals[1] if intervals[1] < 7 else 7
    steps: dict[str, list[tuple[int, int, float]]] = {  # (step of 16, semitones, length in steps)
        "shuffle": [(k, (0, third, 7, 9)[k // 4], 2 + (k % 4 == 0)) for k in range(0, 16, 2)],
        "long": [(0, 0, 8), (8, int(rng.choice([0, 7, 4])) if third == 4 else 0, 8)],
        "alternate": [(0, 0, 3), (8, 7 - 12, 3)],
        "octaves": [(k, 12 * (k // 2 % 2), 1.5) for k in range(0, 16, 2)],
        "sub": [(0, 0, 5), (6, 0, 3), (10, int(rng.choice([0, 3, -2])), 5)],
        "walking": [
            (0, 0, 3.7),
            (4, third, 3.7),
            (8, 7, 3.7),
            (12, int(rng.choice([10, 9, 11, 6])), 3.7),
        ],
        "chug": [(k, 0, 0.8) for k in range(16)],
        "eighths": [(k, 0, 1.8) for k in range(0, 16, 2)],
        "dub": [
            (0, 0, 2.5),
            (3, 0, 1),
            (6, third, 1.5),
            (8, 7, 3),
            (12, int(rng.choice([0, 5, 7])), 2),
        ],
    }
    return [
        Note(start + step * sixteenth, length * sixteenth, root + up, int(rng.integers(88, 112)))
        for step, up, length in steps[style]
    ]


def score(genre: str, split: str, seed: int, bar: int) -> tuple[list[Part], float, int]:
    """Parts of one clip of a piece, seconds per sixteenth, and the seed of its drum kit.

    ``seed`` is the piece (tempo, key, instruments), ``bar`` where in the piece the clip starts.
    """
    style = GENRES[genre]
    piece = np.random.default_rng(seed)
    rng = np.random.default_rng([seed, bar])
    sixteenth = 15 / piece.uniform(*style.tempo)
    programs = style.test if split == "test" else style.train
    bass_program, chord_program, line_program = (int(piece.choice(choice)) for choice in programs)
    key = (
        int(piece.integers(0, 12))
        if genre not in ("metal", "rock")
        else int(piece.choice([4, 6, 7, 9, 2]))
    )
    kit = int(piece.integers(1 << 30))
    bass, chords, line = [], [], []
    bars = int(np.ceil(2.0 / (16 * sixteenth))) + 1
    degree = int(piece.integers(0, 12))  # where the line starts, in steps of the scale
    for b in range(bars):
        start = 16 * sixteenth * b
        root, intervals = style.chords[(bar + b) % len(style.chords)]
        low = 28 + (key + root - 4) % 12
        bass += _bass(
            style.bass, low + (12 if style.bass == "long" else 0), intervals, sixteenth, start, rng
        )
        middle = low + 12 if intervals is POWER else 52 + (key + root - 4) % 12
        if style.comping == "arpeggio":
            for step in range(0, 16, 2):
                up = intervals[(0, 1, 2, 1)[step // 2 % 4] % len(intervals)]
                chords.append(
                    Note(
                        start + step * sixteenth,
                        2.2 * sixteenth,
                        middle + up,
                        int(rng.integers(60, 84)),
                    )
                )
        else:
            for step, mark in enumerate(style.comping):
                if mark == ".":
                    continue
                length = 15 * sixteenth if style.comping.count(".") > 14 else 1.6 * sixteenth
                if genre == "disco":
                    length = 5 * sixteenth
                moved = start + _swung(step, style.swing) * sixteenth
                palm = genre == "metal" and mark == "x"
                for up in intervals[: 2 if palm else None]:
                    loud = int(rng.integers(96, 118)) if mark == "X" else int(rng.integers(72, 92))
                    chords.append(Note(moved, length * (0.5 if palm else 1), middle + up, loud))
        for step in range(0, 16, 2):
            if rng.random() < style.line:
                degree = int(np.clip(degree + rng.integers(-2, 3), 0, 2 * len(style.scale) - 1))
                octave, step_of_scale = divmod(degree, len(style.scale))
                pitch = style.line_from + (key - 4) % 12 + 12 * octave + style.scale[step_of_scale]
                moved = start + _swung(step, style.swing) * sixteenth
                line.append(
                    Note(
                        moved,
                        rng.choice([1.7, 1.7, 3.5]) * sixteenth,
                        pitch,
                        int(rng.integers(78, 110)),
                    )
                )
    volumes = [min(127, round(80 * level)) for level in style.levels[1:]]
    parts = [
        Part(program, tuple(notes), volume=volume, pan=64)
        for program, notes, volume in zip(
            (bass_program, chord_program, line_program), (bass, chords, line), volumes, strict=True
        )
        if notes
    ]
    return parts, sixteenth, kit


def _swung(step: int, swing: float) -> float:
    """Sixteenth steps with the off-beat eighths (2, 6, 10, 14) delayed towards the last third of the beat."""
    return step + (swing * 2 / 3 if step % 4 == 2 else 0)


def piece(genre: str, split: str, seed: int, bar: int) -> np.ndarray:
    """Two seconds of a generated piece: float64 [samples] mono at 16 kHz, not normalised."""
    parts, sixteenth, kit = score(genre, split, seed, bar)
    style = GENRES[genre]
    wave = play(parts, events.CLIP_SECONDS).astype(np.float64)
    wave = np.pad(wave, (0, max(0, round(events.CLIP_SECONDS * SAMPLE_RATE) - len(wave))))
    wave /= np.sqrt(np.mean(wave**2)) + 1e-9
    clip = np.random.default_rng([seed, bar, 1])
    drums = np.zeros(len(wave))
    for name, pattern in style.drums.items():
        hit = _drum(name, kit, clip)
        hit = hit / (np.abs(hit).max() + 1e-9)
        for b in range(int(np.ceil(events.CLIP_SECONDS / (16 * sixteenth)))):
            for step, mark in enumerate(pattern):
                if mark == "." or (name == "crash" and (bar + b) % 4):
                    continue
                at = (16 * b + _swung(step, style.swing)) * sixteenth
                events.put(
                    drums, hit * (1.0 if mark == "X" else 0.55) * clip.uniform(0.85, 1.0), at
                )
    return wave + 3.0 * style.levels[0] * drums
