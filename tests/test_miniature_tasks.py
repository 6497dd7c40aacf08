"""The miniature's synthetic tasks: plans without leaks, sounds that are what they say, a cache that repairs itself."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import replace

import librosa
import numpy as np
import pytest

pytest.importorskip("midirenderer")
pytest.importorskip("espeakng_loader")

from aape.files import FolderBusy, folder_lock
from aape.sounds.loading import from_metadata
from miniature import midi, speech, tasks
from miniature.sentences import NEUTRAL, SENTENCES, share

RATE = midi.SAMPLE_RATE


@pytest.fixture(scope="module")
def plans():
    return {task: tasks.plan(task) for task in tasks.TASKS}


def test_plans_are_complete_and_repeatable(plans):
    for task, clips in plans.items():
        assert clips == tasks.plan(task) and len({clip.file_name for clip in clips}) == len(clips)
        assert min(Counter(clip.label for clip in clips).values()) >= 24
    for first, second in (
        ("vc1_gender", "vc1_country"),
        ("cremad", "cremad_gender"),
    ):  # one audio, other labels
        assert tasks.audio_set(first) == tasks.audio_set(second)
        assert [replace(c, label="") for c in plans[first]] == [
            replace(c, label="") for c in plans[second]
        ]
    for sentences in (*SENTENCES.values(), NEUTRAL):  # splits have sentences of their own
        parts = [set(share(sentences, split)) for split in tasks.SPLITS]
        assert sum(map(len, parts)) == len(set.union(*parts)) == len(sentences)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_nothing_of_the_test_split_is_heard_before(plans, task):
    clips = plans[task]
    groups, samples, seeds, voices, texts = (defaultdict(set) for _ in range(5))
    for clip in clips:
        groups[clip.split].add(clip.group)
        samples[clip.split] |= midi.samples_played(tasks.parts_of(clip))
        if "seed" in clip.parameters:
            seeds[clip.split].add(clip.parameters["seed"])
        if "voice" in clip.parameters:
            voices[clip.split].add(clip.parameters["voice"].split("+")[1])
            texts[clip.split].add(clip.parameters["text"].rstrip("!?.,"))
    assert not groups["train"] & groups["valid"]
    for heard in (groups, samples, seeds, voices, texts):
        assert not heard["test"] & (heard["train"] | heard["valid"])
    for label in {clip.label for clip in clips}:
        for split in ("train", "test"):
            assert len({c.group for c in clips if c.label == label and c.split == split}) >= 4


def test_every_note_of_a_plan_has_a_recorded_sample(plans):
    # The soundfont's alto saxophone has no E4, for example.
    for clips in plans.values():
        for clip in clips:
            for part in tasks.parts_of(clip):
                silent = [
                    n
                    for n in part.notes
                    if not midi.samples_played([midi.Part(part.program, (n,), part.drums)])
                ]
                assert not silent, (clip.file_name, part.program, silent)


def test_every_clip_sounds_and_comes_out_the_same_twice_in_any_order(plans):
    clips = [clips[k] for clips in plans.values() for k in (0, len(clips) // 2, -1)]
    first = [tasks.sound(clip) for clip in clips]
    again = [tasks.sound(clip) for clip in reversed(clips)][::-1]
    for clip, a, b in zip(clips, first, again, strict=True):
        assert a.dtype == np.float32
        assert 0.2 * RATE < len(a) <= 2 * RATE, clip.file_name
        assert 0.005 < np.abs(a).max() < 1.0, clip.file_name
        np.testing.assert_array_equal(a, b, err_msg=clip.file_name)


@pytest.mark.parametrize("task", ["nspitch", "surge"])
def test_pitch_is_the_label(plans, task):
    groups = sorted({clip.group for clip in plans[task]})
    for k, group in enumerate(groups[::3]):
        pitch = 48 + 5 * (k % 6)
        clip = next(clip for clip in plans[task] if (clip.group, clip.label) == (group, str(pitch)))
        wave = tasks.sound(clip)[1200 : RATE // 2]
        # Energy at the harmonics of the pitch against that of its neighbours a semitone away
        spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 16)) ** 2

        def harmonics(semitones: float, spectrum=spectrum) -> float:
            f = 440 * 2 ** ((semitones - 69) / 12) * np.arange(1, 6)
            return float(
                sum(
                    spectrum[round(h * (1 << 16) / RATE) + d]
                    for h in f[f < 7500]
                    for d in (-3, 0, 3)
                )
            )

        assert harmonics(pitch) > 3 * max(harmonics(pitch - 1), harmonics(pitch + 1)), group


def test_women_speak_higher_than_men():
    waves = {
        s: [speech.speak("We go there again.", f"en-us+{v}") for v in vs]
        for s, vs in tasks.VOICES["test"].items()
    }
    pitch = {
        s: [
            np.median(librosa.yin(w, fmin=64, fmax=400, sr=RATE, frame_length=1024))
            for w in waves[s]
        ]
        for s in waves
    }
    assert min(pitch["female"]) > 150 > 130 > max(pitch["male"])


@pytest.fixture(scope="module")
def rendered(tmp_path_factory, plans):
    """A small mixed set rendered by two worker processes."""
    every = [clip for task in ("esc50", "nspitch", "cremad") for clip in plans[task]]
    clips = [c for c in every if c.split == "train"][::400] + [
        c for c in every if c.split == "test"
    ][::250]
    folder = tmp_path_factory.mktemp("cache") / "mixed"
    tasks.build(folder, clips, {"mixed": clips})
    return folder, clips


def _hashes(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.*"))
    }


def test_rendering_is_complete_and_leaves_nothing_else(rendered):
    folder, clips = rendered
    assert tasks.whole(folder, clips) is None
    assert sorted(p.name for p in folder.iterdir()) == ["audio", "manifest.json", "mixed.csv"]
    hashes = _hashes(folder)
    train, test = (
        {hashes[clip.file_name] for clip in clips if clip.split == split}
        for split in ("train", "test")
    )
    assert not train & test and len(train) + len(test) == len(clips)
    task = from_metadata(
        folder / "mixed.csv", folder / "audio", clip_seconds=tasks.CLIP_SECONDS, name="mixed"
    )
    assert (
        task.groups == tuple(clip.group for clip in clips) and 0 < task.read(0, RATE)[1] <= 2 * RATE
    )


@pytest.mark.parametrize("damage", ["cut off", "shortened", "other plan"])
def test_a_damaged_cache_is_rebuilt_to_the_same_bytes(rendered, damage):
    folder, clips = rendered
    before, manifest = _hashes(folder), folder / "manifest.json"
    victim = folder / "audio" / clips[3].file_name
    if damage == "cut off":
        manifest.unlink()
    elif damage == "shortened":
        victim.write_bytes(victim.read_bytes()[:-1])
    else:
        manifest.write_text(manifest.read_text().replace('"plan": "', '"plan": "0'))
    assert tasks.whole(folder, clips) is not None
    with folder_lock(folder.parent / ".rendering" / folder.name), pytest.raises(FolderBusy):
        tasks.build(folder, clips, {"mixed": clips})
    tasks.build(folder, clips, {"mixed": clips}, workers=1)
    assert _hashes(folder) == before
    stamp = manifest.stat().st_mtime_ns
    tasks.build(folder, clips, {"mixed": clips})  # a whole cache is left alone
    assert manifest.stat().st_mtime_ns == stamp


def test_a_failing_worker_is_reported_and_leaves_nothing(tmp_path, plans):
    bad = tasks.Clip(
        "a.flac",
        "x",
        "train",
        "g",
        "speech",
        {**plans["cremad"][0].parameters, "voice": "xx-no+f1"},
    )
    with pytest.raises(RuntimeError, match="no voice 'xx-no"):
        tasks.build(tmp_path / "bad", [bad], {})
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [".lock"]
