"""The ten synthetic tasks: what each clip is (a plan), how it is rendered, cached, and handed over as a task.

A plan is a pure function of nothing but seeds in this file: it lists every clip with its label, split, group and the
parameters of its sound. Rendering turns the plan into 16 kHz FLAC files and EVAR-format metadata. Of every task, the
test split has instruments, voices, sentences, drum kits and seeds of its own.

    python -m miniature.tasks render            # everything, with timing
    python -m miniature.tasks render cremad     # one task
"""

from __future__ import annotations

import argparse
import ast
import csv
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
from tqdm.auto import tqdm

from aape.files import folder_lock, write_json
from miniature import events, pieces, speech
from miniature.midi import SAMPLE_RATE, Note, Part, play
from miniature.sentences import NEUTRAL, SENTENCES, share

if TYPE_CHECKING:
    from aape.sounds.task import Task

CLIP_SECONDS = events.CLIP_SECONDS
SPLITS = ("train", "valid", "test")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """One clip of a plan. ``renderer`` names a function of RENDERERS, ``parameters`` (JSON values) are its input."""

    file_name: str
    label: str
    split: str
    group: str
    renderer: str
    parameters: dict[str, Any]


# --- renderers: parameters -> float32 [samples] at 16 kHz ---


def parts_of(clip: Clip) -> list[Part]:
    """The soundfont score of a clip, empty for clips that use none (speech, computed sounds)."""
    p = clip.parameters
    if clip.renderer == "note":
        return [Part(p["program"], (Note(0.0, p["hold"], p["pitch"], p["velocity"]),))]
    if clip.renderer == "phrase":
        return [Part(p["program"], tuple(Note(*note) for note in p["notes"]), drums=p["drums"])]
    if clip.renderer == "piece":
        return pieces.score(p["genre"], clip.split, p["seed"], p["bar"])[0]
    return []


def _sound(clip: Clip) -> np.ndarray:
    p = clip.parameters
    if clip.renderer in ("note", "phrase"):
        return play(parts_of(clip), CLIP_SECONDS)
    if clip.renderer == "patch":
        rec, take = np.random.default_rng(p["seed"]), np.random.default_rng(p["take"])
        return events.patch(rec, take, p["pitch"], p["velocity"] / 127)
    if clip.renderer == "event":
        rec, take = np.random.default_rng(p["seed"]), np.random.default_rng(p["take"])
        return events.EVENTS[p["event"]](rec, take)
    if clip.renderer == "piece":
        return pieces.piece(p["genre"], clip.split, p["seed"], p["bar"])
    if clip.renderer == "speech":
        keys = ("text", "voice", "rate", "pitch", "pitch_range")
        wave = speech.speak(**{key: p[key] for key in keys})
        if p.get("tremor"):  # a trembling voice: the loudness flutters
            t = np.arange(len(wave)) / SAMPLE_RATE
            wave = wave * (1 - p["tremor"] * (0.5 + 0.5 * np.sin(2 * np.pi * 7.5 * t)))
        return wave
    raise ValueError(
        f"expected a renderer of note, phrase, patch, event, piece, speech; found {clip.renderer!r}"
    )


def sound(clip: Clip) -> np.ndarray:
    """Render one clip: float32 [samples] at 16 kHz, at most two seconds, trailing silence removed."""
    p = clip.parameters
    wave = np.asarray(_sound(clip), dtype=np.float64)[: round(CLIP_SECONDS * SAMPLE_RATE)]
    peak = np.abs(wave).max() if len(wave) else 0.0
    if not np.isfinite(peak) or peak < 1e-6:
        raise RuntimeError(f"{clip.file_name} came out silent or not finite (parameters {p})")
    wave = wave[: np.flatnonzero(np.abs(wave) > 1e-3 * peak)[-1] + 1]
    room = np.random.default_rng(p["room"])
    return events.finish(wave, room, reverb=tuple(p["reverb"]), tilt=p["tilt"], level=p["level"])


# --- plans ---

# eSpeak NG voice variants by pitch (median f0 of the female ones 173 to 263 Hz, of the male ones 83 to 110 Hz)
VOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "female": ("f1", "f2", "f4", "Alicia", "Andrea", "Annie", "belinda", "grandma"),
        "male": ("m1", "m3", "m5", "m7", "Alex", "Denis", "michel", "max"),
    },
    "valid": {"female": ("f5", "linda"), "male": ("m2", "Michael")},
    "test": {
        "female": ("f3", "anika", "aunty", "steph", "shelby"),
        "male": ("m4", "m6", "m8", "Mike", "victor"),
    },
}

LOW_PITCH, HIGH_PITCH = 36, 84  # MIDI, both included: four octaves, every semitone

# General MIDI programs whose notes were measured to sound at the pitch asked for, over all four octaves
ACOUSTIC = {
    "train": (0, 6, 12, 20, 24, 40, 46, 52, 58, 60, 71, 73),
    "valid": (105, 44, 70, 75),
    "test": (25, 11, 42, 49, 56, 66, 69, 74),
}
SYNTHESISERS = {"train": (38, 51, 4, 80, 63, 54), "valid": (5, 50), "test": (81, 85, 91)}
PATCHES = {"train": 6, "valid": 2, "test": 5}  # beside those, patches of the computed synthesiser

ESC50 = (
    "rain", "sea_waves", "wind", "thunderstorm", "crackling_fire", "water_drops", "crickets", "chirping_birds",
    "church_bells", "clock_alarm", "clock_tick", "siren", "car_horn", "engine", "helicopter", "vacuum_cleaner",
    "hand_saw", "door_wood_knock", "footsteps", "clapping", "keyboard_typing", "glass_breaking", "fireworks",
    "breathing",
)  # fmt: skip
GISE51 = (
    "rain", "sea_waves", "thunderstorm", "crickets", "chirping_birds", "church_bells", "clock_tick", "siren",
    "door_wood_knock", "footsteps", "clapping", "glass_breaking",  # the twelve that are classes of both
    "bass_drum", "snare_drum", "hi-hat", "crash_cymbal", "tambourine", "cowbell", "guitar", "organ",
    "brass_instrument", "human_speech",
)  # fmt: skip

# Soundfont sources of events: class -> split -> [(drum kit?, program, keys)]. The rest is computed (events.py).
# A source never serves two splits of a task, and no recorded sample is heard on both sides (tested).
Source = tuple[bool, int, tuple[int, ...]]
ESC50_SOURCES: dict[str, dict[str, tuple[Source, ...]]] = {
    "chirping_birds": {"train": ((False, 123, tuple(range(60, 80))),)},
    "sea_waves": {"train": ((False, 122, tuple(range(48, 67))),)},
    "helicopter": {"train": ((False, 125, tuple(range(52, 68))),)},
    "clapping": {"train": ((False, 126, tuple(range(52, 72))),)},
    "fireworks": {"train": ((False, 127, tuple(range(44, 66))),)},
    "church_bells": {"train": ((False, 14, tuple(range(53, 72))),)},
}
GISE51_SOURCES: dict[str, dict[str, tuple[Source, ...]]] = {
    "chirping_birds": {"test": ((False, 123, tuple(range(56, 76))),)},
    "sea_waves": {"test": ((False, 122, tuple(range(44, 60))),)},
    "clapping": {"test": ((False, 126, tuple(range(56, 70))),)},
    "church_bells": {"test": ((False, 14, tuple(range(50, 65))),)},
    "bass_drum": {"train": ((True, 0, (35, 36)), (True, 8, (35,))), "test": ((True, 25, (36,)),)},
    "snare_drum": {
        "train": ((True, 0, (38, 40)), (True, 32, (38, 40))),
        "test": ((True, 25, (38,)),),
    },
    "hi-hat": {"train": ((True, 0, (42, 44, 46)),), "test": ((True, 25, (42, 44, 46)),)},
    "crash_cymbal": {"train": ((True, 0, (49, 57)),), "test": ((True, 0, (52,)),)},
    "tambourine": {"train": ((True, 0, (54,)),)},
    "cowbell": {"train": ((True, 0, (56,)),)},
    "guitar": {
        "train": ((False, 24, tuple(range(45, 68))), (False, 26, tuple(range(45, 68)))),
        "valid": ((False, 27, tuple(range(45, 62))),),
        "test": ((False, 25, tuple(range(45, 68))), (False, 31, tuple(range(52, 68)))),
    },
    "organ": {
        "train": ((False, 16, tuple(range(48, 77))), (False, 19, tuple(range(48, 77)))),
        "valid": ((False, 20, tuple(range(48, 77))),),
        "test": ((False, 17, tuple(range(48, 77))), (False, 18, tuple(range(48, 77)))),
    },
    "brass_instrument": {
        "train": ((False, 56, tuple(range(55, 77))), (False, 57, tuple(range(46, 68)))),
        "valid": ((False, 60, tuple(range(46, 66))),),
        "test": ((False, 59, tuple(range(55, 77))), (False, 61, tuple(range(48, 70)))),
    },
}

LANGUAGES = ("de", "en", "es", "fr", "it", "ru")
# An English text read with the letter-to-sound rules and the sounds of another language: a caricature of an accent
COUNTRIES = {
    "Brazil": "pt-br", "France": "fr", "Germany": "de", "Italy": "it", "Netherlands": "nl", "Poland": "pl",
    "Spain": "es", "Sweden": "sv", "UK": "en-gb-x-rp", "USA": "en-us",
}  # fmt: skip

# Prosody: words a minute, eSpeak pitch and pitch range (0..99), level in dB, tremor (share), the mark that sets the
# intonation contour, spectral tilt is left alone. NEU is the speaker's own voice.
EMOTIONS: dict[str, tuple[int, int, int, float, float, str]] = {
    "ANG": (205, 58, 85, 5.0, 0.0, "!"),
    "DIS": (138, 38, 62, -1.0, 0.0, "."),
    "FEA": (215, 76, 28, 0.0, 0.35, "?"),
    "HAP": (182, 68, 92, 2.0, 0.0, "!"),
    "NEU": (168, 50, 45, 0.0, 0.0, "."),
    "SAD": (135, 38, 15, -6.0, 0.0, ","),
}

DRY = {"reverb": (0.04, 0.12), "tilt": 0.15}
STUDIO = {"reverb": (0.05, 0.25), "tilt": 0.35}
FIELD = {"reverb": (0.15, 0.6), "tilt": 0.5}


def _rng(*key: object) -> np.random.Generator:
    """A generator of its own for every key: adding a class does not change the others."""
    return np.random.default_rng(_seed(*key))


def _seed(*key: object) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:6], "big")


def _pick(rng: np.random.Generator, values: Sequence, count: int) -> list:
    """``count`` different values in random order."""
    return [values[int(k)] for k in rng.permutation(len(values))[:count]]


def _level(rng: np.random.Generator, low: float = 0.35, high: float = 0.9) -> float:
    return round(float(rng.uniform(low, high)), 3)


def _plan_pitch(
    task: str, programs: dict[str, tuple[int, ...]], patches: dict[str, int]
) -> list[Clip]:
    clips = []
    for split in SPLITS:
        sources: list[tuple[str, int]] = [("note", program) for program in programs[split]]
        sources += [("patch", _seed(task, split, k)) for k in range(patches.get(split, 0))]
        for k, (renderer, source) in enumerate(sources):
            group = f"program{source:03d}" if renderer == "note" else f"patch-{split}-{k:02d}"
            own = _rng(task, group)
            hold = round(float(own.uniform(0.8, 1.5)), 3)
            for pitch in range(LOW_PITCH, HIGH_PITCH + 1):
                rng = _rng(task, group, pitch)
                parameters: dict[str, Any] = {
                    "pitch": pitch,
                    "velocity": int(rng.integers(60, 120)),
                }
                if renderer == "note":
                    parameters |= {"program": source, "hold": hold}
                else:
                    parameters |= {"seed": source, "take": _seed(task, group, pitch)}
                parameters |= {"room": _seed(task, group, "room"), "level": _level(rng), **DRY}
                clips.append(
                    Clip(
                        f"{group}_{pitch:03d}.flac", str(pitch), split, group, renderer, parameters
                    )
                )
    return clips


def _phrase(rng: np.random.Generator, source: Source) -> dict[str, Any]:
    drums, program, keys = source
    count = int(rng.integers(1, 5)) if drums or len(keys) > 20 else int(rng.integers(1, 3))
    if program in (122, 125, 126):  # long textures
        count = 1
    every = float(rng.uniform(0.2, 0.5)) if count > 1 else 0.0
    length = 1.9 if count == 1 and program in (122, 125, 126, 123, 14) else 0.9 * max(every, 0.5)
    notes = [
        (round(k * every, 3), round(length, 3), int(rng.choice(keys)), int(rng.integers(70, 120)))
        for k in range(count)
    ]
    return {"program": program, "drums": drums, "notes": notes}


def _plan_events(task: str, classes: Sequence[str], sources: dict, room: dict) -> list[Clip]:
    clips = []
    for label in classes:
        for split, recordings in zip(SPLITS, (6, 2, 4), strict=True):
            given: tuple[Source, ...] = sources.get(label, {}).get(split, ())
            computed = label in events.EVENTS
            for r in range(recordings):
                group = f"{label}-{split}-{r}"
                own = _rng(task, group)
                # Where a class has both kinds of source, every second recording is the soundfont's.
                source = given[(r // 2 if computed else r) % len(given)] if given else None
                if computed and r % 2:
                    source = None
                speaker = None
                if label == "human_speech":
                    speaker = _cast(task, "en-us", split, (3, 1, 2))[r]
                    texts = _pick(own, share(SENTENCES["en"], split), 3)
                for take in range(3):
                    rng = _rng(task, group, take)
                    parameters: dict[str, Any]
                    if speaker is not None:
                        renderer = "speech"
                        parameters = {"text": texts[take], **_voice(speaker)}
                    elif source is not None:
                        renderer, parameters = "phrase", _phrase(rng, source)
                    else:
                        renderer = "event"
                        parameters = {
                            "event": label,
                            "seed": _seed(task, group),
                            "take": _seed(task, group, take),
                        }
                    parameters |= {
                        "room": _seed(task, group, "room"),
                        "level": _level(rng, 0.25, 0.95),
                        **room,
                    }
                    name = f"{label}-{split}-{r}_{take}.flac"
                    clips.append(Clip(name, label, split, group, renderer, parameters))
    return clips


def _plan_gtzan() -> list[Clip]:
    clips = []
    for genre in pieces.GENRES:
        for split, count, takes in zip(SPLITS, (8, 2, 8), (5, 5, 5), strict=True):
            for k in range(count):
                group = f"{genre}-{split}-{k}"
                for bar in range(takes):
                    rng = _rng("gtzan", group, bar)
                    parameters = {"genre": genre, "seed": _seed("gtzan", group), "bar": bar}
                    parameters |= {
                        "room": _seed("gtzan", group, "room"),
                        "level": _level(rng, 0.6, 0.95),
                        **STUDIO,
                    }
                    clips.append(
                        Clip(f"{group}_{bar}.flac", genre, split, group, "piece", parameters)
                    )
    return clips


def _cast(task: str, language: str, split: str, per_gender: Sequence[int]) -> list[dict[str, Any]]:
    """Speakers of one language: as many women as men, voices of the split only, each with a pitch and pace."""
    cast = []
    for gender in ("female", "male"):
        variants = _pick(
            _rng(task, language, split, gender),
            VOICES[split][gender],
            per_gender[SPLITS.index(split)],
        )
        for variant in variants:
            own = _rng(task, language, variant)
            cast.append(
                {
                    "name": f"{language}+{variant}",
                    "gender": gender,
                    "pitch": int(own.integers(38, 60)),
                    "rate": int(own.integers(158, 192)),
                    "pitch_range": int(own.integers(40, 62)),
                }
            )
    return cast


def _voice(speaker: dict[str, Any]) -> dict[str, Any]:
    return {
        "voice": speaker["name"],
        **{key: speaker[key] for key in ("rate", "pitch", "pitch_range")},
    }


def _plan_voxforge() -> list[Clip]:
    clips = []
    for label in LANGUAGES:
        language = "en-us" if label == "en" else label
        for split, takes in zip(SPLITS, (6, 3, 5), strict=True):
            for speaker in _cast("voxforge", language, split, (3, 1, 2)):
                texts = _pick(
                    _rng("voxforge", speaker["name"]), share(SENTENCES[label], split), takes
                )
                clips += _spoken("voxforge", label, split, speaker, texts)
    return clips


def _spoken(
    task: str, label: str, split: str, speaker: dict[str, Any], texts: Sequence[str]
) -> list[Clip]:
    clips = []
    for k, text in enumerate(texts):
        name = speaker["name"]
        rng = _rng(task, name, k)
        parameters = {
            "text": text,
            **_voice(speaker),
            "room": _seed(task, name, "room"),
            "level": _level(rng),
            **STUDIO,
        }
        file_name = f"{label}_{name.replace('+', '-')}_{k}.flac"
        clips.append(Clip(file_name, label, split, f"{label}/{name}", "speech", parameters))
    return clips


def _plan_vc1(labels: str) -> list[Clip]:
    clips = []
    for country, language in COUNTRIES.items():
        for split in SPLITS:
            for speaker in _cast("vc1", language, split, (3, 1, 2)):
                texts = _pick(
                    _rng("vc1", speaker["name"]),
                    share(SENTENCES["en"], split),
                    4 if split != "valid" else 3,
                )
                for clip in _spoken("vc1", country, split, speaker, texts):
                    label = country if labels == "country" else speaker["gender"]
                    clips.append(Clip(**{**asdict(clip), "label": label}))
    return clips


def _plan_cremad(labels: str) -> list[Clip]:
    clips = []
    accents = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-029")
    for split, per_gender, sentences in zip(SPLITS, (5, 2, 4), (6, 3, 5), strict=True):
        for gender in ("female", "male"):
            for variant in _pick(_rng("cremad", split, gender), VOICES[split][gender], per_gender):
                own = _rng("cremad", variant)
                name = f"{accents[int(own.integers(len(accents)))]}+{variant}"
                pace, height, force = own.normal(0, 9), own.normal(0, 5), own.uniform(0.7, 1.2)
                for emotion, (rate, pitch, pitch_range, loud, tremor, mark) in EMOTIONS.items():
                    for k, text in enumerate(share(NEUTRAL, split)[:sentences]):
                        rng = _rng("cremad", variant, emotion, k)
                        # How far the feeling moves the voice from neutral differs by speaker and take.
                        strength = force * rng.uniform(0.8, 1.15)
                        neutral = EMOTIONS["NEU"]

                        def moved(
                            value: float, rest: float, by: float, strength: float = strength
                        ) -> float:
                            return rest + strength * (value - rest) + by

                        parameters = {
                            "text": text[:-1] + mark,
                            "voice": name,
                            "rate": int(
                                np.clip(moved(rate, neutral[0], pace + rng.normal(0, 6)), 90, 300)
                            ),
                            "pitch": int(
                                np.clip(moved(pitch, neutral[1], height + rng.normal(0, 3)), 0, 99)
                            ),
                            "pitch_range": int(
                                np.clip(moved(pitch_range, neutral[2], rng.normal(0, 5)), 0, 99)
                            ),
                            "tremor": round(tremor * strength, 3),
                            "room": _seed("cremad", variant, "room"),
                            "level": round(
                                0.35 * 10 ** ((strength * loud + rng.normal(0, 1)) / 20), 4
                            ),
                            **STUDIO,
                        }
                        label = emotion if labels == "emotion" else gender
                        file_name = f"{variant}_{k}_{emotion}.flac"
                        clips.append(Clip(file_name, label, split, name, "speech", parameters))
    return clips


_PLANS: dict[str, tuple[str, Callable[[], list[Clip]]]] = {  # task -> (audio set, plan)
    "esc50": ("esc50", lambda: _plan_events("esc50", ESC50, ESC50_SOURCES, STUDIO)),
    "gise51": ("gise51", lambda: _plan_events("gise51", GISE51, GISE51_SOURCES, FIELD)),
    "voxforge": ("voxforge", _plan_voxforge),
    "vc1_gender": ("vc1", lambda: _plan_vc1("gender")),
    "vc1_country": ("vc1", lambda: _plan_vc1("country")),
    "cremad": ("cremad", lambda: _plan_cremad("emotion")),
    "cremad_gender": ("cremad", lambda: _plan_cremad("gender")),
    "gtzan": ("gtzan", _plan_gtzan),
    "nspitch": ("nspitch", lambda: _plan_pitch("nspitch", ACOUSTIC, {})),
    "surge": ("surge", lambda: _plan_pitch("surge", SYNTHESISERS, PATCHES)),
}
TASKS = tuple(_PLANS)


def plan(task: str) -> list[Clip]:
    """Every clip of a task, without rendering anything. Raises ValueError for an unknown task."""
    if task not in _PLANS:
        raise ValueError(f"expected a task of {', '.join(TASKS)}; found {task!r}")
    return _PLANS[task][1]()


def audio_set(task: str) -> str:
    """The folder of audio that a task reads; vc1_* share one, cremad and cremad_gender another."""
    if task not in _PLANS:
        raise ValueError(f"expected a task of {', '.join(TASKS)}; found {task!r}")
    return _PLANS[task][0]


# --- rendering and cache ---


def default_cache() -> Path:
    """Where rendered tasks are kept: $AAPE_CACHE/miniature, else .cache/miniature in the repository."""
    root = os.environ.get("AAPE_CACHE")
    return (Path(root) if root else Path(__file__).resolve().parent.parent / ".cache") / "miniature"


# Modules whose text decides how a renderer sounds; a change of one renders anew what uses it
_MODULES = {
    "note": ("events", "midi"),
    "phrase": ("events", "midi"),
    "patch": ("events",),
    "event": ("events",),
    "piece": ("events", "midi", "pieces"),
    "speech": ("events", "speech"),
}


@functools.cache
def _text_hash(module: str) -> str:
    text = (Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8")
    return hashlib.sha256(ast.dump(ast.parse(text)).encode()).hexdigest()[
        :16
    ]  # not of comments and layout


@functools.cache
def _packages() -> dict[str, str]:
    names = (
        "espeakng-loader",
        "midirenderer",
        "mido",
        "numpy",
        "pretty_midi",
        "scipy",
        "soundfile",
        "soxr",
    )
    return {name: importlib.metadata.version(name) for name in names}


def _key(clips: Sequence[Clip]) -> dict[str, Any]:
    """What the bytes of a rendered set depend on."""
    # Labels are not part of it: two tasks may share the audio.
    text = json.dumps(
        [[c.file_name, c.split, c.renderer, c.parameters] for c in clips], sort_keys=True
    )
    return {
        "format": 1,
        "plan": hashlib.sha256(text.encode()).hexdigest()[:16],
        "code": {
            module: _text_hash(module)
            for module in sorted({m for c in clips for m in _MODULES[c.renderer]})
        },
        "packages": _packages(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def whole(folder: Path, clips: Sequence[Clip]) -> str | None:
    """Why a rendered folder cannot be used, or None if it is whole: key, file names and sizes (not the hashes)."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return (
            "it is not there"
            if not folder.exists()
            else "it has no manifest.json: rendering was cut off"
        )
    except (OSError, ValueError) as error:
        return f"its manifest.json cannot be read ({error})"
    wanted = _key(clips)
    changed = [
        name
        for name in wanted
        if not isinstance(manifest, dict) or manifest.get(name) != wanted[name]
    ]
    if changed:
        return f"it was rendered with another {', '.join(changed)}"
    files = manifest.get("files", {})
    if set(files) != {clip.file_name for clip in clips}:
        return "its list of files is not that of the plan"
    for name, (size, _) in files.items():
        try:
            found = (folder / "audio" / name).stat().st_size
        except FileNotFoundError:
            return f"audio/{name} is missing"
        if found != size:
            return f"audio/{name} has {found} bytes instead of {size}"
    return None


def build(
    folder: Path, clips: Sequence[Clip], tables: Mapping[str, Sequence[Clip]], workers: int = 2
) -> None:
    """Render ``clips`` into ``folder`` unless it is whole: audio/*.flac, a CSV per entry of ``tables``, manifest.json.

    Everything is made in a temporary folder, under a lock, which is renamed when it is complete. Worker processes are started
    afresh (the speech library keeps global state), so that this may be called from anywhere.

    Raises:
        FolderBusy: another process is rendering the same folder.
        RuntimeError: with a worker's message, if one fails.
    """
    if whole(folder, clips) is None:
        return
    work = folder.parent / ".rendering" / folder.name
    with folder_lock(work):
        reason = whole(folder, clips)
        if reason is None:  # another process was faster
            return
        if folder.exists():
            log.warning("rendering %s again: %s", folder, reason)
        partial, old = work / "partial", work / "old"
        for left in (partial, old):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        (partial / "audio").mkdir(parents=True)
        try:
            write_json(partial / "plan.json", [asdict(clip) for clip in clips])
            _work_all(partial, len(clips), workers, folder.name)
            files: dict[str, tuple[int, str]] = {}
            for part in sorted(partial.glob("part-*.json")):
                files |= json.loads(part.read_text(encoding="utf-8"))
                part.unlink()
            (partial / "plan.json").unlink()
            for name, rows in tables.items():
                with (partial / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    writer.writerow(("file_name", "label", "split", "group"))
                    writer.writerows(
                        (clip.file_name, clip.label, clip.split, clip.group) for clip in rows
                    )
            write_json(
                partial / "manifest.json",
                _key(clips) | {"files": {c.file_name: files[c.file_name] for c in clips}},
            )
            if folder.exists():
                os.replace(folder, old)
            os.replace(partial, folder)
        finally:
            for left in (partial, old):
                shutil.rmtree(left, ignore_errors=True)


def _work_all(partial: Path, clips: int, workers: int, title: str) -> None:
    """Run the worker processes on the plan in ``partial`` and wait for them."""
    workers = max(1, min(workers, clips))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    root = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(
        [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    running = []
    try:
        for part in range(workers):
            command = [
                sys.executable,
                "-m",
                "miniature.tasks",
                "work",
                str(partial),
                str(part),
                str(workers),
            ]
            errors = (partial / f"errors-{part}.txt").open("w+", encoding="utf-8")
            running.append((subprocess.Popen(command, env=environment, stderr=errors), errors))
        with tqdm(
            total=clips, desc=f"rendering {title}", unit="clip", leave=False, disable=None
        ) as bar:
            while any(process.poll() is None for process, _ in running):
                time.sleep(0.05)
                bar.update(len(os.listdir(partial / "audio")) - bar.n)
                failed = next((r for r in running if r[0].poll() not in (None, 0)), None)
                if failed is not None:
                    break
        for process, errors in running:
            if process.poll() not in (None, 0):
                errors.seek(0)
                raise RuntimeError(
                    f"rendering {title} failed (exit {process.returncode}):\n{errors.read()[-3000:]}"
                )
    finally:
        for process, errors in running:
            if process.poll() is None:
                process.terminate()
                process.wait()
            errors.close()
            Path(errors.name).unlink(missing_ok=True)


def _work(partial: Path, part: int, parts: int) -> None:
    """A worker's share: every ``parts``-th clip of the plan."""
    clips = [Clip(**row) for row in json.loads((partial / "plan.json").read_text(encoding="utf-8"))]
    files = {}
    parent = os.getppid()
    for clip in clips[part::parts]:
        if os.getppid() != parent:  # killed: nobody would use what is made here
            sys.exit("the process that started this worker is gone")
        path = partial / "audio" / clip.file_name
        soundfile.write(path, sound(clip), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        data = path.read_bytes()
        files[clip.file_name] = (len(data), hashlib.sha256(data).hexdigest())
    (partial / f"part-{part}.json").write_text(json.dumps(files), encoding="utf-8")


def render(task: str, cache_dir: str | Path | None = None, workers: int = 2) -> Path:
    """Render a task's audio set unless it is in the cache, whole and current.

    Returns the folder: audio/, <task>.csv (columns file_name, label, split, group), manifest.json.
    """
    folder = (Path(cache_dir) if cache_dir is not None else default_cache()) / audio_set(task)
    tables = {name: plan(name) for name in TASKS if audio_set(name) == audio_set(task)}
    build(folder, tables[task], tables, workers)
    return folder


def load(task: str, cache_dir: str | Path | None = None) -> Task:
    """A synthetic task, rendered first if it has to be. Raises ValueError for an unknown name."""
    from aape.sounds.loading import from_metadata

    folder = render(task, cache_dir)
    return from_metadata(
        folder / f"{task}.csv", folder / "audio", clip_seconds=CLIP_SECONDS, name=task
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m miniature.tasks", description=(__doc__ or "").split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    rendering = commands.add_parser("render", help="render tasks into the cache")
    rendering.add_argument("tasks", nargs="*", help=f"of {', '.join(TASKS)}; all if none is named")
    rendering.add_argument("--cache", type=Path, default=None)
    rendering.add_argument("--workers", type=int, default=2)
    work = commands.add_parser("work")  # what render starts
    work.add_argument("partial", type=Path)
    work.add_argument("part", type=int)
    work.add_argument("parts", type=int)
    options = parser.parse_args(arguments)
    if options.command == "work":
        _work(options.partial, options.part, options.parts)
        return
    begin = time.perf_counter()
    for task in options.tasks or TASKS:
        start = time.perf_counter()
        folder = render(task, options.cache, options.workers)
        clips = plan(task)
        classes = len({clip.label for clip in clips})
        print(
            f"{task:14} {len(clips):5} clips {classes:3} classes {time.perf_counter() - start:6.1f} s  {folder}"
        )
    print(f"all: {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()
