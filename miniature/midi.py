"""Notes and scores to sound: mido writes MIDI bytes, midirenderer plays them with the TimGM6mb soundfont.

The soundfont comes with the ``pretty_midi`` wheel. It is read from there and not shipped (see NOTICE.md).
A small reader of the soundfont's zones tells which recorded samples a score plays, so that a test can prove that
no sample heard in a test clip is heard in a training clip: instruments of other names often share samples.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import io
import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mido
import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16000  # Hz, of everything that this package renders
DRUMS = 9  # MIDI channel of the percussion kits
TICKS = 480  # per second: the files are written at 60 beats a minute


@dataclass(frozen=True)
class Note:
    """One note: onset and length in seconds, MIDI key 0..127, velocity 1..127."""

    onset: float
    seconds: float
    key: int
    velocity: int = 96


@dataclass(frozen=True)
class Part:
    """Notes played by one General MIDI program (or, with ``drums``, by the kit of that number)."""

    program: int
    notes: tuple[Note, ...]
    drums: bool = False
    volume: int = 100
    pan: int = 64


@functools.cache
def soundfont_path() -> Path:
    """Where pretty_midi keeps its soundfont; pretty_midi itself is not imported.

    Raises FileNotFoundError if pretty_midi is not installed or holds no soundfont.
    """
    spec = importlib.util.find_spec("pretty_midi")
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    for folder in folders:
        path = Path(folder) / "TimGM6mb.sf2"
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"expected TimGM6mb.sf2 in the pretty_midi package, looked in {folders or 'no installed package'}; "
        "install it with: pip install pretty_midi"
    )


@functools.cache
def soundfont_bytes() -> bytes:
    return soundfont_path().read_bytes()


def write_midi(parts: Sequence[Part], tail: float = 1.0) -> bytes:
    """A type-1 MIDI file of the parts, going on for ``tail`` seconds after the last note for its decay. At most 15 melodic parts (one channel each, channel 10 is for drums)."""
    file = mido.MidiFile(type=1, ticks_per_beat=TICKS)
    free = [channel for channel in range(16) if channel != DRUMS]
    for part in parts:
        if not part.drums and not free:
            raise ValueError(
                "a score has more than 15 melodic parts; MIDI has no channel left for them"
            )
        channel = DRUMS if part.drums else free.pop(0)
        track = mido.MidiTrack()
        track.append(mido.MetaMessage("set_tempo", tempo=1_000_000, time=0))
        track.append(mido.Message("program_change", channel=channel, program=part.program, time=0))
        track.append(
            mido.Message("control_change", channel=channel, control=7, value=part.volume, time=0)
        )
        track.append(
            mido.Message("control_change", channel=channel, control=10, value=part.pan, time=0)
        )
        # A note ends before another begins at the same tick, or the second would be cut.
        events = []
        for note in part.notes:
            start = round(note.onset * TICKS)
            stop = max(start + 1, round((note.onset + note.seconds) * TICKS))
            events.append((start, 1, note.key, note.velocity))
            events.append((stop, 0, note.key, 0))
        now = 0
        for tick, on, key, velocity in sorted(events):
            kind = "note_on" if on else "note_off"
            track.append(
                mido.Message(kind, channel=channel, note=key, velocity=velocity, time=tick - now)
            )
            now = tick
        track.append(mido.MetaMessage("end_of_track", time=round(tail * TICKS)))
        file.tracks.append(track)
    buffer = io.BytesIO()
    file.save(file=buffer)
    return buffer.getvalue()


def _until(end: float, notes: Iterable[Note]) -> Iterator[Note]:
    for note in notes:
        if note.onset < end:
            yield dataclasses.replace(note, seconds=min(note.seconds, end - note.onset))


def play(parts: Sequence[Part], seconds: float) -> np.ndarray:
    """Render the parts: float32 [samples] mono at 16 kHz, not normalised, at most ``seconds`` long."""
    import midirenderer

    end = seconds + 0.2  # what would sound later is not rendered
    parts = [dataclasses.replace(part, notes=tuple(_until(end, part.notes))) for part in parts]
    last = max(note.onset + note.seconds for part in parts for note in part.notes)
    wav = midirenderer.render_wave_from(
        soundfont_bytes(), write_midi(parts, tail=min(1.0, end - last))
    )
    wave, rate = soundfile.read(io.BytesIO(wav), dtype="float32", always_2d=True)
    wave = wave[: round((seconds + 0.1) * rate)].mean(axis=1)
    return soxr.resample(wave, rate, SAMPLE_RATE)[: round(seconds * SAMPLE_RATE)].astype(np.float32)


# --- which recorded samples does a score play? (SoundFont 2.04 specification, section 7) ---

_KEY_RANGE, _VELOCITY_RANGE, _INSTRUMENT, _SAMPLE = 43, 44, 41, 53


def _records(data: bytes, name: bytes, layout: str) -> list[tuple]:
    at = data.index(name, data.index(b"pdta"))
    size = struct.unpack_from("<I", data, at + 4)[0]
    return list(struct.iter_unpack(layout, data[at + 8 : at + 8 + size]))


def _zones(
    bags: list[tuple], generators: list[tuple], first: int, last: int
) -> Iterable[dict[int, tuple[int, int]]]:
    for zone in range(first, last):
        yield {
            kind: (low, high) for kind, low, high in generators[bags[zone][0] : bags[zone + 1][0]]
        }


@functools.cache
def _presets() -> dict[tuple[bool, int], list[tuple[tuple[int, int], tuple[int, int], str]]]:
    """(drums, program) -> [(key range, velocity range, sample name)]."""
    data = soundfont_bytes()
    presets, preset_bags = _records(data, b"phdr", "<20sHHHIII"), _records(data, b"pbag", "<HH")
    preset_generators, instruments = (
        _records(data, b"pgen", "<HBB"),
        _records(data, b"inst", "<20sH"),
    )
    bags, generators = _records(data, b"ibag", "<HH"), _records(data, b"igen", "<HBB")
    samples = [
        row[0].split(b"\0")[0].decode("latin1").strip()
        for row in _records(data, b"shdr", "<20sIIIIIBbHH")
    ]
    found: dict[tuple[bool, int], list[tuple[tuple[int, int], tuple[int, int], str]]] = {}
    for preset, following in itertools.pairwise(presets):
        rows = found.setdefault((preset[2] == 128, preset[1]), [])
        for outer in _zones(preset_bags, preset_generators, preset[3], following[3]):
            if _INSTRUMENT not in outer:
                continue
            low, high = outer[_INSTRUMENT]
            index = low + 256 * high
            for inner in _zones(bags, generators, instruments[index][1], instruments[index + 1][1]):
                if _SAMPLE not in inner:
                    continue
                ranges = []
                for kind in (_KEY_RANGE, _VELOCITY_RANGE):
                    a, b = outer.get(kind, (0, 127)), inner.get(kind, (0, 127))
                    ranges.append((max(a[0], b[0]), min(a[1], b[1])))
                low, high = inner[_SAMPLE]
                rows.append((ranges[0], ranges[1], samples[low + 256 * high]))
    return found


def samples_played(parts: Iterable[Part]) -> set[str]:
    """Names of the soundfont's recorded samples that the parts' notes sound."""
    heard = set()
    for part in parts:
        for (k0, k1), (v0, v1), name in _presets()[part.drums, part.program]:
            if any(k0 <= note.key <= k1 and v0 <= note.velocity <= v1 for note in part.notes):
                heard.add(name)
    return heard
