"""The atlas: maps on the model's grid, the numbers and clips of a page, and a site that is complete and resumes."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import re
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from conftest import REPOSITORY, make_toy, write_sounds
from fake_artifacts import write_artifacts
from PIL import Image

import aape.atlas.clip_pass as clip_pass
import aape.atlas.sound as sound
from aape.artifacts.folder import Artifacts, load_artifacts
from aape.atlas import Titles, best_neuron, build_atlas, show_neuron, token_maps
from aape.atlas.build import build_study
from aape.atlas.choosing import choose_clips
from aape.atlas.frequency import FrequencyAxis
from aape.atlas.maps import maps_of_pairs, packed, pooled
from aape.atlas.model_on_task import ModelOnTask
from aape.atlas.profiles import chance_bands, nearest, time_profile
from aape.atlas.scripts import SCHEMA, read_script
from aape.atlas.study_tables import effects, task_chance
from aape.causal.attribution import attribute
from aape.collecting.passing import collect
from aape.encoders import m2d
from aape.encoders.encoder import Encoder, hooked
from aape.files import FolderBusy, folder_lock
from aape.neurons.selection import select
from aape.sounds.loading import from_metadata
from aape.sounds.task import BadClip, Task
from aape.study.study import load_study

RATE = 16000
SAMPLES = 6400  # of a clip: three patches of time
rng_of = np.random.default_rng


def decoded(text: str, dtype: str) -> np.ndarray:
    """An array that the page reads in base64."""
    return np.frombuffer(base64.b64decode(text), dtype)


def small_m2d(seed: int = 1, name: str = "small") -> Encoder:
    return m2d.load("random", seed=seed, input_size=(80, 32), width=64, depth=2, name=name)


def seen(encoder: Encoder, wave: torch.Tensor) -> list[list[torch.Tensor]]:
    """Every output of every layer [batch, tokens, neurons], by hooks written by hand."""
    found: list[list[torch.Tensor]] = [[] for _ in encoder.layers]
    with contextlib.ExitStack() as hooks, torch.no_grad():
        for outputs, module in zip(found, encoder.activations.values(), strict=True):
            keep = lambda _m, _i, output, outputs=outputs: outputs.append(output.clone())  # noqa: E731
            hooks.enter_context(module.register_forward_hook(keep))
        encoder.embed(wave)
    return found


def test_maps_of_a_vit_equal_its_hooks_token_by_token_over_chunks():
    encoder, neurons = small_m2d(), [(1, 7), (0, 3), (1, 255), (0, 3)]
    waves = torch.randn(3, 2 * 5120 + 2000, generator=torch.Generator().manual_seed(0))
    maps, chunks = token_maps(encoder, neurons, waves), seen(encoder, waves)
    assert maps.dtype == np.float32 and len(chunks[0]) == 3, "the wave is to need several chunks"
    for k, (layer, neuron) in enumerate(
        neurons
    ):  # the class token comes first, frequency is outermost
        by_hand = [chunk[:, 1:, neuron].reshape(3, 5, -1) for chunk in chunks[layer]]
        assert np.array_equal(maps[:, k], torch.cat(by_hand, dim=2))


def test_some_pairs_of_clip_and_neuron_need_the_model_only_up_to_their_deepest_layer():
    encoder, calls = small_m2d(), []
    waves, neurons = (
        torch.randn(3, 7000, generator=torch.Generator().manual_seed(0)),
        np.array([[0, 9], [0, 200]]),
    )
    with hooked(encoder, encoder.layers, lambda place, _: calls.append(place)):
        maps = maps_of_pairs(encoder, waves, np.array([2, 0]), neurons, stop=True)
    assert calls == [0, 1, 0], "the second chunk ends with the first layer"
    assert np.array_equal(maps, token_maps(encoder, neurons, waves)[[2, 0], [0, 1]])


def time_only(tokens: int) -> Encoder:
    cells = torch.stack([torch.zeros(tokens), torch.arange(tokens)], 1).long()
    return dataclasses.replace(make_toy(), token_grid=lambda samples: [cells])


def test_maps_of_a_model_of_time_only_have_one_row_and_batches_do_not_matter(monkeypatch):
    toy, waves = time_only(10), torch.randn(7, 1000, generator=torch.Generator().manual_seed(0))
    maps, outputs = token_maps(toy, [(2, 5), (0, 0)], waves), seen(toy, waves)
    assert maps.shape == (7, 2, 1, 10)
    assert np.array_equal(
        maps[:, :, 0], np.stack([outputs[2][0][:, :, 5], outputs[0][0][:, :, 0]], 1)
    )
    passes = []
    monkeypatch.setattr("aape.atlas.maps.BATCH", 3)
    with hooked(toy, toy.layers[:1], lambda _, x: passes.append(len(x))):
        assert np.allclose(token_maps(toy, [(2, 5), (0, 0)], waves.numpy()), maps, atol=1e-6)
    assert passes == [3, 3, 1], "one pass over the clips"
    assert len(token_maps(toy, [(2, 5), (0, 0)], waves[:0])) == 0


def test_maps_that_cannot_be_made_say_why():
    for toy, neuron, message in (
        (time_only(10), (0, 8), "no neuron 8 in layer 0"),
        (time_only(10), (-1, 0), "no layer -1"),
        (time_only(9), (0, 0), "make it agree with embed"),
        (make_toy(), (0, 0), "samples_per_token"),
    ):
        with pytest.raises(ValueError, match=message):
            token_maps(toy, [neuron], torch.zeros(1, 1000))


def test_pooled_maps_are_means_of_what_is_active_and_pack_to_half_bytes():
    maps = np.array([[[1.0, -5.0, 2.0, 4.0, 6.0], [0.0, 0.0, -1.0, 0.0, 3.0]]])  # [1, 2, 5]
    assert np.allclose(pooled(maps, 2, 5), np.maximum(maps, 0))
    assert np.allclose(pooled(maps, 2, 2), [[[0.5, 4.0], [0.0, 1.0]]])  # columns 0-1 and 2-4
    assert np.allclose(pooled(maps, 1, 2), [[[0.25, 2.5]]])
    assert levels_of(packed(np.array([0.0, 1.0, 2.0]), 2.0))[:3].tolist() == [0, 8, 15]


def levels_of(maps: str) -> np.ndarray:
    """0 to 15 of a record's maps, by hand."""
    raw = decoded(maps, "u1")
    return np.stack([raw >> 4, raw & 15], 1).reshape(-1)


def test_clips_are_the_extremes_examples_of_each_quarter_and_no_clip_twice():
    rng = rng_of(0)
    for _ in range(50):
        count = int(rng.integers(1, 200))
        groups = rng.integers(0, int(rng.integers(1, 60)), count)
        rates = np.round(rng.random(count) ** 3, 2) * (rng.random(count) > 0.2)
        inside = rng.random(count) < rng.random()
        pool, shown = rng.random(count) < 0.5, rng.random(count) < 0.5
        choice = choose_clips(rates, inside, groups, pool, shown, 20, rng)
        clips = [clip for clip, _ in choice]
        by_role = {role: [clip for clip, r in choice if r == role] for role in range(8)}
        assert len(set(clips)) == len(clips) <= 20
        assert count < 60 or len(clips) >= 18
        assert len(by_role[0]) == min(6, (rates > 0).sum())
        assert all(~inside[by_role[5]]) and all(inside[by_role[6]])
        best = [rates[groups == group].max() for group in np.unique(groups[rates > 0])]
        if len(best) >= 6:  # the most active clip of each of the six most active groups
            assert list(rates[by_role[0]]) == sorted(best, reverse=True)[:6]
        for role, kind in (
            (5, ~inside),
            (6, inside),
        ):  # no second clip of a group where there are enough groups
            others = np.setdiff1d(np.flatnonzero(kind), by_role[0])
            different = len(set(groups[by_role[role]].tolist()))
            assert different >= min(len(by_role[role]), len(np.unique(groups[others])), 2)
        quarter = np.empty(count, int)
        quarter[np.lexsort((~shown, -rates))] = np.arange(count) * 4 // count
        for role in range(1, 5):
            assert all(quarter[by_role[role]] == role - 1)


def counted(path: Path, rates: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> ModelOnTask:
    """One layer of neurons whose rates [clips, neurons] are of 60 tokens."""
    classes = [f"c{i}" for i in range(labels.max() + 1)]
    counts = np.rint(rates * 60).astype(int)[:, None]
    write_artifacts(path, counts, labels, classes, task="t", groups=groups.astype(str))
    artifacts = load_artifacts(path)
    return ModelOnTask.load(artifacts, select(artifacts, rate=0.5, quantile=0.5))


def test_the_band_of_permuted_labels_holds_what_labels_do_not_explain(tmp_path):
    labels, rates = np.arange(240) % 4, rng_of(0).beta(2, 5, (240, 60))
    rates[labels == 2, 0] = 0.9  # one planted neuron
    data = counted(tmp_path, rates, labels, np.arange(240) // 4)
    low, high = chance_bands(data, data.counts(np.arange(60)))
    p = data.p.T  # [classes, neurons]
    outside = (p < low) | (p > high)
    assert outside[2, 0] and np.all(low <= high)
    assert 0.01 < outside[:, 1:].mean() < 0.1  # 5 % by chance


def test_nearest_neurons_are_those_with_the_largest_correlation_over_clips(tmp_path):
    rates = np.rint(rng_of(2).random((80, 30)) * 60) / 60
    rates[:, 7] = rates[:, 3]
    rates[:, 9] = 0.0
    found = nearest(counted(tmp_path, rates, np.arange(80) % 2, np.arange(80)), np.array([3, 9]))
    assert found[0][0][0] == 7 and np.isclose(found[0][0][1], 1, atol=1e-5)
    assert found[1] == []
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.nan_to_num(np.corrcoef(rates.T)[3], nan=-2)
    r[3] = -2
    assert [other for other, _ in found[0]] == np.argsort(-r, kind="stable")[
        : len(found[0])
    ].tolist()


def test_a_time_course_that_every_clip_shares_is_told_from_one_that_follows_the_sound():
    rng = rng_of(3)
    follows = np.maximum(rng.normal(size=(20, 2, 30)), 0)
    shared = np.zeros((20, 2, 30))
    shared[:, :, :10] = 1 + 0.1 * rng.random((20, 2, 10))
    profile, share = time_profile(shared)
    assert share > 0.9 and profile[:10].min() > 0.9 and profile[10:].max() == 0
    assert time_profile(follows)[1] < 0.15  # about 1 / 20
    assert time_profile(np.zeros((3, 2, 5)))[1] == 0


def test_activity_on_padding_is_told_from_activity_on_sound(tmp_path):
    labels, rng = np.arange(60) % 3, rng_of(1)
    counts = rng.integers(0, 60, (60, 1, 8))
    write_artifacts(tmp_path, counts, labels, ["a", "b", "c"], task="t", padded=20)
    artifacts = load_artifacts(tmp_path)
    data = ModelOnTask.load(artifacts, select(artifacts, rate=0.5, quantile=0.5))
    on_padding, on_sound = data.padding_rates(np.array([0, 5]))
    padding = np.load(tmp_path / "padding_counts.npy")[:, 0, [0, 5]].sum(axis=0)
    assert np.allclose(on_padding, padding / (20 * 20))
    assert np.allclose(on_sound, (counts[:, 0, [0, 5]].sum(axis=0) - padding) / (60 * 60 - 20 * 20))


def test_the_best_neuron_detects_its_class_best_among_those_that_are_calibrated(
    site: Site, tmp_path
):
    site = with_tables(site, tmp_path / "study", "sounds_small")
    selection = select(site.artifacts)
    table = selection.table()
    last = len(table) - 1
    assert best_neuron(site.artifacts, selection) == tuple(table.loc[0, ["layer", "neuron"]]), (
        "the strongest"
    )
    table = table.assign(q_value=0.01, calibrated=True, auprc=0.2)
    table.loc[last, "auprc"] = 0.5
    table.to_csv(site.artifacts.path / "neurons.csv", index=False)
    assert best_neuron(site.artifacts, selection) == tuple(table.loc[last, ["layer", "neuron"]])
    table.assign(calibrated=False).to_csv(site.artifacts.path / "neurons.csv", index=False)
    with pytest.raises(ValueError, match="no class-specific neuron passes the calibration"):
        best_neuron(site.artifacts, selection)
    site.build()
    assert site.entry()["best"] is None


def test_a_filtered_clip_holds_the_times_and_frequencies_of_the_map():
    axis = FrequencyAxis(small_m2d())
    mel = [
        f / 200 * 3 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4)
        for f in (50, 250, 1000, 4000, 8000)
    ]
    heights = [(m - mel[0]) / (mel[-1] - mel[0]) for m in mel[1:-1]]  # Slaney's scale
    assert [tick for tick, _ in axis.ticks()] == [250, 1000, 4000]
    assert np.allclose([height for _, height in axis.ticks()], heights, atol=0.02)
    t = np.arange(2 * RATE) / RATE
    low, high = 0.2 * np.sin(2 * np.pi * 300 * t), 0.2 * np.sin(2 * np.pi * 5000 * t)
    levels = np.zeros((5, 20))
    levels[0, :10] = 1.0  # low frequencies, first second
    sound = axis.filtered((low + high).astype(np.float32), RATE, levels, 2.0)
    first, second = sound[2000 : RATE - 2000], sound[RATE + 2000 :]
    assert len(sound) == 2 * RATE and np.abs(sound).max() == pytest.approx(np.abs(low + high).max())
    assert np.corrcoef(first, low[2000 : RATE - 2000])[0, 1] > 0.99 and np.abs(second).max() < 1e-3


@pytest.mark.parametrize("kind", ["mp3", "wav"])
def test_an_encoded_clip_sounds_like_its_source(kind, monkeypatch):
    if kind == "wav":
        monkeypatch.setattr(
            sound.soundfile, "available_formats", lambda: {"WAV": ""}
        )  # libsndfile before 1.1
        sound.sound_format.cache_clear()
    elif sound.sound_format(RATE) != "mp3":
        pytest.skip(f"libsndfile {soundfile.__libsndfile_version__} writes no MP3")
    t = np.arange(RATE) / RATE
    wave = (0.4 * np.sin(2 * np.pi * (300 * t + 600 * t**2))).astype(np.float32)
    data = sound.encoded(wave, RATE)
    sound.sound_format.cache_clear()
    assert len(data) < (8000 if kind == "mp3" else 2 * len(wave) + 100)
    read, rate = soundfile.read(io.BytesIO(data))
    lag = int(np.argmax(np.correlate(read[:10000], wave[2000:8000], "valid"))) - 2000
    assert rate == RATE and abs(lag) < RATE // 100, "the cursor is where the sound is"
    assert np.corrcoef(read[2000 + lag : 14000 + lag], wave[2000:14000])[0, 1] > 0.97


def test_a_picture_is_small_at_any_length_has_low_bands_below_and_does_not_depend_on_gain():
    spectrogram = np.zeros((80, 3000), np.float32)
    spectrogram[:10] = np.linspace(1, 5, 3000)  # the low bands, growing louder
    image = np.asarray(Image.open(io.BytesIO(sound.picture(spectrogram, 30))).convert("L"))
    assert image.shape[0] == 80 and 200 < image.shape[1] <= 256
    assert image[-1, -1] == 255 and image[0].max() == 0 and image[-1, 0] < image[-1, -1]
    assert sound.picture(spectrogram, 30) == sound.picture(3 * spectrogram - 7, 30)


NAMES = ("low", '<b onclick="x">"quoted"</b> & co', "日本語/вода\\")


def make_sounds(
    folder: Path, clips: int = 36, names: Sequence[str] = NAMES, name: str = "sounds"
) -> Task:
    """Rendered tones, noise and clicks of 0.4 s (some shorter), in as many classes as names and in groups of two."""
    rng, waves, rows, t = rng_of(0), [], [], np.arange(SAMPLES) / RATE
    for i in range(clips):
        tone, noise = np.sin(2 * np.pi * (200 + 10 * i) * t), rng.normal(0, 0.3, SAMPLES)
        wave = [tone, noise, np.sign(np.sin(60 * t)) * (t % 0.1 < 0.01)][i % 3]
        waves.append(0.3 * wave[: SAMPLES - 1500 * (i % 5 == 0)])
        c = i % len(names)
        rows.append((names[c], ("train", "test")[i % 4 == 0], f"g{i // 6}{c}"))
    if not folder.exists():  # a second writing has other bytes: libsndfile notes the time
        write_sounds(folder, waves, RATE, rows, ["label", "split", "group"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return from_metadata(
            folder / "clips.csv", folder / "audio", clip_seconds=SAMPLES / RATE, name=name
        )


@dataclasses.dataclass
class Site:
    """Artifacts, and the folder of an atlas of them."""

    artifacts: Artifacts
    encoder: Encoder
    task: Task
    out: Path

    def build(self, **options: Any) -> Path:
        return build_atlas(self.artifacts, self.encoder, self.task, self.out, **options)

    def pair(self) -> dict[str, Any]:
        return read_script(self.out, "small-sounds/pair")

    def entry(self) -> dict[str, Any]:
        return read_script(self.out, "index")["pairs"][0]

    def records(self, folder: str = "small-sounds") -> list[dict[str, Any]]:
        return records_of(self.out, folder)

    def files(self) -> dict[Path, bytes]:
        return {p.relative_to(self.out): p.read_bytes() for p in self.out.rglob("*") if p.is_file()}

    def replace(self, **changes: Any) -> Site:
        return dataclasses.replace(self, **changes)


def records_of(out: Path, folder: str) -> list[dict[str, Any]]:
    records = []
    for path in sorted((out / folder).glob("L*.js")):
        records += read_script(out, f"{folder}/{path.stem}")["records"].values()
    return records


def make_site(folder: Path, **options: Any) -> Site:
    task, encoder = make_sounds(folder / "data", **options), small_m2d()
    return Site(
        collect(encoder, task, folder / "study" / "sounds_small"),
        encoder,
        task,
        folder / "study" / "atlas",
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = make_site(tmp_path_factory.mktemp("site"))
    assert site.build(neurons=[[0, 5]], attribute=True) == site.out / "index.html"
    return site


@pytest.fixture
def site(built: Site, tmp_path: Path) -> Site:
    """Collected, nothing built."""
    return built.replace(out=tmp_path / "atlas")


def check_record(record: dict[str, Any], pair: dict[str, Any]) -> None:
    """References of a record exist, and it is small."""
    assert record["v"] == SCHEMA and {*record["flags"]} <= {"padding", "position"}
    for number, role, share in record["clips"]:
        assert 0 <= number < len(pair["clips"]) and 0 <= role <= 7 and 0 <= share <= 1
    if "maps" in record:
        cells = pair["grid"][0] * pair["grid"][1] * len(record["clips"])
        assert len(decoded(record["maps"], "u1")) == (cells + 1) // 2
    assert len(json.dumps(record, separators=(",", ":"))) <= 8000


def check_site(out: Path) -> None:
    """References exist, records fit their schema, nothing points outside, and names are data in no script or path."""
    index = read_script(out, "index")
    assert index["v"] == SCHEMA and index["pairs"]
    for entry in index["pairs"]:
        pair = read_script(out, f"{entry['folder']}/pair")
        assert len(decoded(pair["aape"], "<f4")) == entry["width"] * entry["layers"]
        assert [c["name"] for c in pair["classes"]] == [c[0] for c in entry["classes"]]
        for sound_file, image, seconds, c, *_ in pair["clips"]:
            assert c < len(pair["classes"]) and seconds <= pair["seconds"]
            assert all((out / "clips" / name).stat().st_size > 0 for name in (sound_file, image))
        filtered = [
            record["filtered"]
            for record in records_of(out, entry["folder"])
            if "filtered" in record
        ]
        assert all((out / "clips" / name).stat().st_size > 0 for name in filtered)
        records = records_of(out, entry["folder"])
        paged = {(int(layer), n) for layer, neurons in pair["pages"].items() for n in neurons}
        assert {(r["l"], r["n"]) for r in records} == paged
        for record in records:
            check_record(record, pair)
    for path in out.rglob("*"):
        assert re.fullmatch(r"[\w.\-/]+", path.relative_to(out).as_posix())
        assert path.suffix != ".js" or path.name == "app.js" or path.read_bytes().isascii()
    for path in [*out.glob("*.*"), *out.glob("*/*.js")]:
        assert not re.search(
            r"(https?:)?//[a-z0-9]+\.[a-z]|\bfetch\(|\bimport\(|type=.module", path.read_text()
        ), path


def test_a_site_is_complete_and_says_what_the_artifacts_say(built: Site):
    check_site(built.out)
    pair, artifacts, selection = built.pair(), built.artifacts, select(built.artifacts)
    assert [c["name"] for c in pair["classes"]] == list(artifacts.classes) == sorted(NAMES)
    assert [c["neurons"] for c in pair["classes"]] == selection.per_class.tolist()
    assert np.allclose(decoded(pair["aape"], "<f4"), selection.entropy.reshape(-1), atol=1e-6)
    p = decoded(pair["p"], "u1").reshape(selection.probabilities.shape) / 255
    assert np.abs(p - selection.probabilities).max() <= 0.5 / 255 + 1e-9
    records = {(r["l"], r["n"]): r for r in built.records()}
    top = {
        tuple(neuron)
        for name in artifacts.classes
        for neuron in selection.neurons(name)[:20].tolist()
    }
    assert set(records) == top | {(0, 5)}
    rates = artifacts.counts / artifacts.tokens[:, None, None]
    files = artifacts.files.tolist()
    attributed = {
        by: attribute(built.encoder, built.task, artifacts, replace_by=by)
        for by in ("zero", "mean")
    }
    zero = attributed["zero"]
    for (layer, neuron), record in records.items():
        for number, _, share in record["clips"]:
            _, _, seconds, *said, file = pair["clips"][number]
            i = files.index(file)
            assert abs(rates[i, layer, neuron] - share) < 1e-3
            assert said == [artifacts.labels[i], artifacts.groups[i], artifacts.splits[i]]
            assert abs(seconds - soundfile.info(built.task.audio_dir / file).duration) < 1e-3
        is_lower = selection.entropy < selection.entropy[layer, neuron]
        passes = selection.probabilities.max(axis=2) > selection.weak_threshold
        rank = [1 + (is_lower & passes).sum(), passes.sum()]
        assert record["eligible"] == (rank if passes[layer, neuron] else None)
        assert sum(map(sum, record["histogram"])) == len(artifacts.labels)
        for by, values in attributed.items():
            said = decoded(record["attribution"][by], "<f4")
            assert np.allclose(said, values[layer, neuron], rtol=1e-6)
        below = [(zero[..., c] < zero[layer, neuron, c]).sum() for c in record["own"]]
        assert record["attribution"]["rank"] == [1 + count for count in below]


def waves_of(site: Site, record: dict[str, Any]) -> tuple[list[int], np.ndarray]:
    """Indices into the task, and waves, of a record's clips."""
    clips = site.pair()["clips"]
    index = [site.task.files.index(clips[number][6]) for number, _, _ in record["clips"]]
    return index, np.stack([site.task.read(i, RATE)[0] for i in index])


def test_maps_of_a_record_are_the_models_and_sounds_are_the_clips(built: Site):
    pair, record = built.pair(), max(built.records(), key=lambda r: r["top"])
    index, waves = waves_of(built, record)
    maps = np.maximum(token_maps(built.encoder, [(record["l"], record["n"])], waves)[:, 0], 0)
    assert list(maps.shape[1:]) == pair["grid"], "this small grid is shown as it is"
    levels = levels_of(record["maps"])[: maps.size].reshape(maps.shape)
    assert np.abs(levels / 15 - maps / record["top"]).max() < 0.5 / 15 + 2e-3
    assert pair["map_seconds"] == pytest.approx(maps.shape[2] * 0.16) and pair["own_picture"]
    for i, (number, _, _) in zip(index, record["clips"], strict=True):
        wave, valid = built.task.read(i, RATE)
        read, rate = soundfile.read(built.out / "clips" / pair["clips"][number][0])
        spectra = []
        for x in (read, wave[:valid]):
            bands = np.array_split(np.abs(np.fft.rfft(x, 16384)[:7000]) ** 2, 14)
            spectra.append(np.log10([band.mean() for band in bands]))
        loud = spectra[1] > spectra[1].max() - 2.5  # within 25 dB
        assert rate == RATE and np.sqrt((read**2).mean()) > 0.01
        assert np.abs(spectra[0] - spectra[1])[loud].max() < 0.2
        image = Image.open(built.out / "clips" / pair["clips"][number][1])
        assert image.size == (-(-(SAMPLES // 160 + 1) // 3), 80)  # at most 40 columns a second


@pytest.mark.filterwarnings("ignore:.* are counted")
def test_artifacts_of_some_layers_show_maps_of_these(built: Site, tmp_path):
    encoder, task = small_m2d(), built.task
    some = collect(encoder, task, tmp_path / "study" / "sounds_some", layers=[encoder.layers[1]])
    site = built.replace(artifacts=some, out=tmp_path / "atlas")
    site.build(neurons=[[0, 5]])
    record = next(record for record in site.records() if record["n"] == 5)
    waves = waves_of(site, record)[1]
    assert record["top"] == pytest.approx(token_maps(encoder, [(1, 5)], waves).max(), rel=2e-3)
    assert record["top"] != pytest.approx(token_maps(encoder, [(0, 5)], waves).max(), rel=0.05)


def test_an_interrupted_build_resumes_and_a_second_build_writes_the_same_bytes(
    site: Site, monkeypatch
):
    monkeypatch.setattr(clip_pass, "BATCH", 4)
    original, calls = clip_pass.maps_of_pairs, []

    def breaks(encoder, waves, *rest, **options):
        calls.append(len(waves))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(encoder, waves, *rest, **options)

    monkeypatch.setattr(clip_pass, "maps_of_pairs", breaks)
    with pytest.raises(KeyboardInterrupt):
        site.build()
    assert read_script(site.out, "index")["pairs"] == []
    site.build()
    batches = -(-len(site.pair()["clips"]) // 4)
    assert len(calls) - 4 == batches - 3, "the three batches that were done are not encoded again"
    assert not list(site.out.rglob(".partial"))
    files = site.files()
    straight = site.replace(out=site.out.parent / "straight")
    straight.build()
    assert files == straight.files(), "the same bytes as without a kill"
    site.build()
    assert site.files() == files


def test_two_builders_and_other_folders_are_refused_and_nothing_is_touched(site: Site, tmp_path):
    with folder_lock(site.out), pytest.raises(FolderBusy):
        site.build()
    site.build()
    before = site.files()
    with pytest.raises(ValueError, match="atlas of study 'study'"):
        site.build(titles=Titles("another", "small", "sounds", "small", "sounds"))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "index.html").write_text("mine")
    for folder in (foreign, site.artifacts.path):
        with pytest.raises(ValueError, match="is not an atlas"):
            site.replace(out=folder).build()
    (foreign / "index.js").write_text("something();")
    with pytest.raises(ValueError, match="not the index of an atlas"):
        site.replace(out=foreign).build()
    assert site.files() == before and (foreign / "index.html").read_text() == "mine"


def test_what_cannot_be_built_is_said_before_a_page_is_written(site: Site):
    for change, options, message in (
        ({}, {"neurons": [[2, 0]]}, r"\(2, 0\) is not among the 2 layers of 256"),
        ({}, {"clips": 5}, "expected 10 to 60"),
        ({}, {"selection": select(np.full((2, 256, 2), 0.5))}, "the selection was not made from"),
        ({"encoder": small_m2d(2)}, {}, "SHA-256"),
    ):
        with pytest.raises(ValueError, match=message):
            site.replace(**change).build(**options)
    assert not list(site.out.glob("*/L*.js"))


def test_a_clip_that_is_gone_damaged_or_changed_stops_the_build_which_then_resumes(
    site: Site, tmp_path
):
    audio = tmp_path / "audio"
    shutil.copytree(site.task.audio_dir, audio)
    broken = site.replace(task=dataclasses.replace(site.task, audio_dir=audio))
    path, content = audio / "003.wav", (audio / "003.wav").read_bytes()
    path.unlink()
    with pytest.raises(BadClip, match="003.wav"):
        broken.build()
    path.write_bytes(b"RIFF")
    with pytest.raises(BadClip, match="003.wav"):
        broken.build()
    soundfile.write(path, np.zeros(6400), RATE)
    with pytest.raises(ValueError, match="003.wav has changed since"):
        broken.build()
    path.write_bytes(content)
    broken.build()
    check_site(broken.out)


def test_without_a_grid_there_are_no_maps_and_without_counts_no_clips(site: Site, tmp_path):
    plain = dataclasses.replace(site.encoder, token_grid=None, log_mel=None, cell_seconds=None)
    site.replace(encoder=plain).build()
    check_site(site.out)
    assert all("maps" not in record and record["clips"] for record in site.records())
    assert not site.pair()["own_picture"]
    (tmp_path / "bare").mkdir()
    for name in ("over_zero.pt", "classes.txt"):
        shutil.copy(site.artifacts.path / name, tmp_path / "bare" / name)
    bare = site.replace(artifacts=load_artifacts(tmp_path / "bare"), out=tmp_path / "again")
    bare.build()
    check_site(bare.out)
    assert bare.records() and all(record["clips"] == [] for record in bare.records())


def test_the_atlas_of_a_study_holds_every_pair_in_the_studys_order(tmp_path, monkeypatch):
    monkeypatch.delenv("AAPE_OUTPUT", raising=False)
    small = {"loader": "test_atlas:small_m2d"}
    models = {"m": small, "n": small | {"options": {"seed": 3, "name": "n"}}}
    sounds = {"loader": "test_atlas:make_sounds", "options": {"folder": str(tmp_path / "data")}}
    (tmp_path / "tiny.yaml").write_text(
        json.dumps({"models": models, "tasks": {"t": sounds, "u": sounds}})
    )
    study, task = load_study(str(tmp_path / "tiny.yaml")), make_sounds(tmp_path / "data")
    for model, encoder in {"m": small_m2d(), "n": small_m2d(3, "n")}.items():
        for name in ("t", "u"):
            collect(encoder, task, study.artifacts_directory(name, model))
    alone = build_study(study, models=["n"], tasks=["u"], out_dir=tmp_path / "alone")
    page = build_study(study, models=["n", "m"])
    check_site(page.parent)
    pairs = [(entry["m"], entry["t"]) for entry in read_script(page.parent, "index")["pairs"]]
    assert pairs == [("m", "t"), ("m", "u"), ("n", "t"), ("n", "u")]
    assert records_of(page.parent, "n-u") == records_of(alone.parent, "n-u")


@pytest.mark.parametrize("classes", [3, 1251])
def test_one_clip_per_class_very_many_classes_and_nothing_selected(tmp_path, classes):
    toy, rng = make_toy(), rng_of(0)
    waves, rows = (
        rng.normal(0, 0.2, (classes, 300)),
        [(f"class {i}", "train") for i in range(classes)],
    )
    path = write_sounds(tmp_path, waves, 1000, rows, ["label", "split"])
    task = from_metadata(path, tmp_path / "audio", clip_seconds=0.3, name="many")
    site = Site(
        collect(toy, task, tmp_path / "study" / "made", batch_size=128),
        toy,
        task,
        tmp_path / "atlas",
    )
    site.build(selection=select(site.artifacts, rate=0.5, quantile=0.5))
    check_site(site.out)
    records = site.records("toy-many")
    assert records and all(len(record["clips"]) >= min(classes, 18) for record in records)
    if classes == 3:
        none = site.replace(out=tmp_path / "none")
        none.build(selection=select(site.artifacts, quantile=1.0))
        assert none.entry()["best"] is None


def with_tables(site: Site, study: Path, name: str) -> Site:
    """The site with a copy of its artifacts in a study of its own."""
    shutil.copytree(site.artifacts.path, study / name)
    return site.replace(artifacts=load_artifacts(study / name))


def test_the_studys_tables_bring_q_and_effects_and_tables_of_other_artifacts_are_not_used(
    site: Site, tmp_path
):
    study = tmp_path / "study"
    site = with_tables(site, study, "sounds_small")
    selection, neurons = select(site.artifacts), site.artifacts.path / "neurons.csv"
    table = selection.table().assign(q_value=0.01, auprc=0.4)
    table["calibrated"] = np.arange(len(table)) % 2 == 0
    table.to_csv(neurons, index=False)
    first, name = table.iloc[0], selection.classes[0]
    where = {"task": "sounds", "model": "small", "target": name, "mode": "specific"}
    change = {
        "class": name,
        "targeted": True,
        "measure": "accuracy",
        "before": 50,
        "effect": -12.5,
        "kind": "mean",
    }
    silenced = {"layer": first.layer, "neuron": first.neuron}
    changes = [where | change | {"kind": kind} for kind in ("mean", "zero", "zero, index plus one")]
    pd.DataFrame(changes).to_csv(study / "ablation_effects.csv", index=False)
    pd.DataFrame([where | silenced]).to_csv(study / "ablation_neurons.csv", index=False)
    site.build()
    pair = site.pair()
    rows = [[name, "accuracy", 50.0, -12.5, None, None, None, None, None]]
    neurons_of_set = {"neurons": [[first.layer, first.neuron]], "size": None}
    mean = {"target": name, "mode": "specific", "kind": "mean", **neurons_of_set, "rows": rows}
    assert pair["effects"] == [mean, mean | {"kind": "zero"}]
    assert np.allclose(decoded(pair["members"]["auprc"], "<f4"), 0.4)
    assert np.isnan(decoded(pair["members"]["f1"], "<f4")).all()
    assert sum(c["calibrated"] for c in pair["classes"]) == table.calibrated.sum()
    table.assign(rate=table.rate + 0.01).to_csv(neurons, index=False)
    with pytest.warns(UserWarning, match=r"neurons.csv was made from other artifacts"):
        site.build()
    assert all(c["calibrated"] is None for c in site.pair()["classes"])


def test_chance_is_that_of_the_seed_and_calibrated_neurons_are_known_from_neurons_csv_alone(
    site: Site, tmp_path
):
    study = tmp_path / "study"
    site = with_tables(site, study, "sounds_untrained-2")
    seeded, statistics = site.artifacts, study / "task_level_neuron_statistics_untrained.csv"
    rows = [
        {"task": "sounds", "model": f"random-{seed}", "coverage_null_mean": 0.1 * seed}
        for seed in (1, 2)
    ]
    rows = [row | {"calibrated_neurons": 9, "effect": 0.0, "q_level": 0.01} for row in rows]
    pd.DataFrame(rows).to_csv(statistics, index=False)
    chance = task_chance(seeded, "sounds", "random-2")
    assert chance["coverage_null_mean"] == 0.2 and (chance["effect"], chance["q_level"]) == (
        0.0,
        0.01,
    )
    alone = pd.DataFrame(rows[:1]).drop(
        columns="model"
    )  # of a model of its own whose folder ends otherwise
    alone.to_csv(statistics, index=False)
    assert task_chance(seeded, "sounds", "random-2") == {}
    table = select(seeded).table()
    table = table.assign(q_value=0.01, calibrated=table.neuron % 2 == 0)
    table.to_csv(
        seeded.path / "neurons.csv", index=False
    )  # all that `dissect` leaves on single neurons
    site.build()
    above = table[table.calibrated][["layer", "neuron"]].drop_duplicates()
    assert site.entry()["chance"] == {"calibrated_neurons": len(above)}
    assert site.entry()["layer_names"] == list(seeded.layers)


def test_neurons_that_are_replaced_together_are_those_of_a_fold(built: Site, tmp_path):
    where = {"task": "t", "model": "m", "target": "dog", "mode": "specific"}
    chosen = [
        where | {"fold": f"fold{i}", "layer": 1, "neuron": n} for i in range(5) for n in (7, 10 + i)
    ]
    pd.DataFrame(chosen).to_csv(tmp_path / "ablation_neurons.csv", index=False)
    change = {
        "class": "dog",
        "measure": "accuracy",
        "kind": "mean",
        "targeted": True,
        "neurons": 2.0,
        "effect": -3,
    }
    pd.DataFrame([where | change]).to_csv(tmp_path / "ablation_effects.csv", index=False)
    (found,) = effects(dataclasses.replace(built.artifacts, path=tmp_path / "t_m"), "t", "m")
    assert found["size"] == 2 and found["folds"] == 5 and len(found["neurons"]) == 6
    times = dict(zip(map(tuple, found["neurons"]), found["chosen"], strict=True))
    assert times == {(1, 7): 5} | {(1, 10 + i): 1 for i in range(5)}


def test_a_neurons_page_in_a_notebook_needs_no_other_file(built: Site):
    view = show_neuron(built.artifacts, built.encoder, built.task, 0, 5)
    assert "Layer 0, neuron 5" in repr(view)
    assert len(view.record["clips"]) > 10 and view.page.count("data:audio/") > 10
    assert 'src="' not in view.page and "<b onclick" not in view.page
    assert view._repr_html_().startswith("<iframe") and "<script" not in view._repr_html_()
    plain = dataclasses.replace(built.encoder, token_grid=None, log_mel=None, cell_seconds=None)
    assert "maps" not in show_neuron(built.artifacts, plain, built.task, 0, 5).record
    with pytest.raises(ValueError, match="not among"):
        show_neuron(built.artifacts, built.encoder, built.task, 0, 256)


def test_the_gallerys_atlas_is_complete_small_and_todays_page():
    """Rendered sounds only: python -m aape atlas miniature --models ssl untrained --tasks esc50 cremad --strongest 2
    --attribute -o gallery/atlas, after make demo."""
    gallery = REPOSITORY / "gallery" / "atlas"
    check_site(gallery)
    assert sum(p.stat().st_size for p in gallery.rglob("*")) <= 6e6
    assert read_script(gallery, "index")["study"] == "miniature"
    for name in ("index.html", "app.js", "app.css"):
        assert (gallery / name).read_text() == (REPOSITORY / "aape" / "atlas" / name).read_text()
