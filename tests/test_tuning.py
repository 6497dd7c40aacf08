"""Tuning: planted neurons of known filters, hand-written hooks, receptive fields, and all families of encoders."""

import itertools
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_task, make_toy
from scipy import signal
from tiny_models import TINY, write_model
from torch import Tensor, nn

import aape
from aape.encoders import m2d
from aape.encoders.hub import from_hub
from aape.encoders.module import from_module
from aape.tuning import peaks, stimuli
from aape.tuning.battery import KINDS, battery, waveform
from aape.tuning.curves import contrast, curve
from aape.tuning.receptive_fields import ReceptiveFields, receptive_fields
from aape.tuning.relevance import tuned_among
from aape.tuning.responses import record, respond, tokens_in_window
from aape.tuning.ridge import Sums, cross_fit
from aape.tuning.sentences import hertz, sentence
from aape.tuning.spectrogram import BANDS, LAGS, local, log_mel
from aape.tuning.tuning import Tuning, tune
from benchmarks.planted import FREQUENCIES, MODULATIONS, RATE, STEP, THRESHOLDS, planted, section

pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")


@pytest.fixture(scope="module")
def tuning() -> Tuning:
    return tune(planted())


# --- planted neurons ---------------------------------------------------------------------------------------------


def test_planted_band_pass_neurons_have_their_best_frequency(tuning: Tuning):
    found = section(tuning, "band")
    assert found.frequency_tuned.all()
    assert np.abs(np.log2(found.best_frequency_hz / FREQUENCIES)).max() < 0.25
    assert (found.bandwidth_octaves < 1.5).all()
    centred = found.iloc[
        [FREQUENCIES.index(240), FREQUENCIES.index(1900)]
    ]  # where a noise band has its centre
    assert (centred.tone_tuned & (centred.tone_index > 0)).all()


def test_planted_modulation_filters_have_their_best_rate(tuning: Tuning):
    found = section(tuning, "modulation")
    assert found.modulation_tuned.all()
    assert np.abs(np.log2(found.best_modulation_hz / MODULATIONS)).max() < 0.5


def test_planted_sweep_detectors_have_their_direction(tuning: Tuning):
    up, down = section(tuning, "up").iloc[0], section(tuning, "down").iloc[0]
    assert up.sweep_tuned and up.sweep_index > 0
    assert down.sweep_tuned and down.sweep_index < 0
    assert "upward" in up.sentence and "downward" in down.sentence


def test_planted_level_detectors_have_their_threshold(tuning: Tuning):
    found = section(tuning, "level")
    assert found.level_tuned.all()
    assert not found.frequency_tuned.any()
    first = np.array(THRESHOLDS) + 3  # dB, where the detectors begin to respond
    np.testing.assert_allclose(
        found.threshold_db, first + 0.2 * (-20 - first), atol=7.5
    )  # half a step of the levels
    assert found.threshold_db.is_monotonic_increasing


def test_planted_onset_detector_is_found(tuning: Tuning):
    found = section(tuning, "onset").iloc[0]
    assert found.onset_tuned and found.onset_index > 0


def test_at_most_five_percent_of_random_neurons_are_tuned(tuning: Tuning):
    found = section(tuning, "random").filter(like="_tuned")
    assert found.mean().max() <= 0.05
    reliable_or_not = section(tuning, "random").filter(like="_q") <= 0.05
    assert reliable_or_not.mean().max() <= 0.05
    assert (section(tuning, "random").sentence == "No reliable tuning.").mean() >= 0.9


def test_p_values_of_random_responses_are_uniform_enough():
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(4, 20, 1000)).astype(np.float32)
    sparse = (rng.random((4, 20, 1000)) < 0.02).astype(np.float32)
    for values in (dense, sparse, np.concatenate([dense, sparse], axis=2)):
        assert (curve(values[:, None], 0.0).p <= 0.05).mean() < 0.07
        assert (contrast(values - values[:, ::-1], 0.0).p <= 0.05).mean() < 0.07


def test_constant_neurons_are_not_tuned():
    effect = curve(np.ones((4, 2, 8, 3), np.float32), 0.0)
    assert not effect.tuned.any() and (effect.reliability == 0).all()


# --- the result --------------------------------------------------------------------------------------------------


def test_table_has_the_stated_columns(tuning: Tuning):
    stated = [
        "layer",
        "neuron",
        "best_frequency_hz",
        "frequency_reliability",
        "frequency_tuned",
        "bandwidth_octaves",
        "threshold_db",
        "dynamic_range_db",
        "best_modulation_hz",
        "modulation_reliability",
        "modulation_tuned",
        "sweep_index",
        "sweep_tuned",
        "tone_index",
        "tone_tuned",
        "periodicity_index",
        "periodicity_tuned",
        "onset_index",
        "onset_tuned",
        "sentence",
    ]
    assert {*stated} <= {*tuning.table()}
    assert tuning.table().frequency_tuned.dtype == bool
    assert "tuned" in repr(tuning) and "<table>" in tuning._repr_html_()
    assert {*tuning.evidence.measure} == {"share", "mean"} == {*tuning.shares.measure}


def test_save_and_load(tuning: Tuning, tmp_path: Path):
    again = Tuning.load(tuning.save(tmp_path / "out"))
    pd.testing.assert_frame_equal(again.table(), tuning.table())
    assert again.curve(0, 3).equals(tuning.curve(0, 3)) and repr(again) == repr(tuning)
    with pytest.raises(KeyError, match="no neuron"):
        tuning.curve(1, 0)


def test_a_second_call_plays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    encoder = make_toy()
    first = tune(encoder, out_dir=tmp_path)
    monkeypatch.setattr(
        "aape.tuning.responses.respond", lambda *_: pytest.fail("a sound was played again")
    )
    pd.testing.assert_frame_equal(tune(encoder, out_dir=tmp_path).table(), first.table())
    with pytest.raises(pytest.fail.Exception):
        tune(make_toy(seed=1), out_dir=tmp_path)


# --- responses ---------------------------------------------------------------------------------------------------


def test_responses_equal_hand_written_hooks():
    encoder = make_toy(
        samples_per_token=None,
        token_grid=lambda n: [torch.tensor([[0, i] for i in range(n // 100)])],
    )
    sounds = battery(encoder.sample_rate, 1.0)
    rows = sounds[sounds.kind.isin(["tone", "noise"])].iloc[[0, 5, -1]]
    found = respond(encoder, rows)
    waves = torch.from_numpy(np.stack([waveform(row, 1000, 1000) for _, row in rows.iterrows()]))
    seen = []
    handles = [
        layer.act.register_forward_hook(lambda *a: seen.append(a[2]))
        for layer in encoder.module.layers
    ]
    with torch.no_grad():
        encoder.module(waves)
    [handle.remove() for handle in handles]
    values = torch.cat(seen, dim=2)[:, 1:]  # the window begins at 0.1 s, with the second token
    np.testing.assert_allclose(found["share"], (values > 0).float().mean(dim=1), atol=1e-6)
    np.testing.assert_allclose(found["mean"], values.mean(dim=1), atol=1e-6)
    np.testing.assert_allclose(found["square"], values.square().mean(dim=(0, 1)), atol=1e-6)


def test_batches_do_not_matter():
    encoder = make_toy()
    one, many = record(encoder, batch_size=7), record(encoder, batch_size=64)
    np.testing.assert_allclose(one.share, many.share, atol=1e-6)
    np.testing.assert_allclose(one.mean, many.mean, rtol=1e-4, atol=1e-5)


def test_window_holds_tokens_by_their_centre():
    encoder = planted()
    assert tokens_in_window(encoder, 16_000, 0.5, 0.6)[0].tolist() == [25, 26, 27, 28, 29]
    assert tokens_in_window(encoder, 16_000, 0.501, 0.505)[0].tolist() == [25]


# --- stimuli -----------------------------------------------------------------------------------------------------


def test_battery_is_complete_repeatable_and_does_not_clip():
    sounds = battery(RATE, 1.0)
    assert {*sounds.kind} == {*KINDS}
    for kind, rows in sounds.groupby("kind"):
        for _, row in rows.iloc[:: max(1, len(rows) // 12)].iterrows():
            wave = waveform(row, RATE, RATE)
            assert wave.dtype == np.float32 and np.abs(wave).max() < 1
            assert np.array_equal(wave, waveform(row, RATE, RATE))
            if kind not in ("clicks", "onset", "offset", "silence"):
                assert abs(20 * np.log10(wave.std()) - row.level) < 0.3
                assert abs(wave[0]) < 1e-4 and abs(wave[-1]) < 1e-4


def test_realisations_differ():
    sounds = battery(RATE, 1.0)
    for _, rows in sounds[sounds.start < 0.2].groupby(["kind", "frequency", "level", "rate"]):
        a, b = (waveform(row, RATE, RATE) for _, row in rows.iloc[:2].iterrows())
        assert not np.allclose(a, b, atol=1e-6)
        break


@pytest.mark.parametrize("frequency", [60, 440, 7000])
def test_tone_is_at_its_frequency(frequency: float):
    spectrum = np.abs(np.fft.rfft(stimuli.tone(RATE, RATE, frequency, np.random.default_rng(0))))
    assert spectrum.argmax() == frequency


def test_band_noise_is_in_its_octave():
    power = np.abs(np.fft.rfft(stimuli.band_noise(RATE, RATE, 1000, np.random.default_rng(0)))) ** 2
    assert power[707:1414].sum() / power.sum() > 0.9


def test_modulation_is_at_its_rate():
    rng = np.random.default_rng(0)
    sound = stimuli.modulated(stimuli.tone(RATE, RATE, 1000, rng), RATE, 8, rng)
    envelope = np.abs(signal.hilbert(sound))
    assert np.abs(np.fft.rfft(envelope - envelope.mean())).argmax() == 8


def test_downward_sweeps_are_upward_ones_in_reverse():
    up, down = (
        stimuli.sweeps(RATE, RATE, 16, upward, np.random.default_rng(3)) for upward in (True, False)
    )
    np.testing.assert_array_equal(up, down[::-1])
    frequencies, _, spectrogram = signal.spectrogram(up, RATE, nperseg=512, noverlap=256)
    peak = np.log2(frequencies[spectrogram.argmax(axis=0)].clip(50))
    assert np.median(np.diff(peak)) > 0


def test_missing_fundamental_has_no_energy_there_but_its_period():
    sound = stimuli.harmonic_complex(RATE, RATE, 200, np.random.default_rng(0), lowest=4)
    power = np.abs(np.fft.rfft(sound)) ** 2
    assert power[190:210].sum() / power.sum() < 1e-6
    np.testing.assert_allclose(sound[80:160], sound[:80], atol=1e-9)
    shifted = stimuli.harmonic_complex(
        RATE, RATE, 200, np.random.default_rng(0), lowest=4, inharmonic=True
    )
    assert not np.allclose(shifted[80:160], shifted[:80], atol=0.1)


def test_short_encoders_get_what_fits():
    sounds = battery(1000, 0.2)
    assert sounds.frequency.max() <= 450
    assert sounds[sounds.kind == "modulated noise"].rate.min() * 0.2 >= 2


# --- curves ------------------------------------------------------------------------------------------------------


def test_peak_and_width_of_a_known_curve():
    frequencies = 60 * 2 ** (np.arange(28) / 4)
    curves = np.exp(
        -(np.log2(frequencies[:, None] / np.array([300, 1000, 2500])) ** 2) / (2 * 0.5**2)
    )
    np.testing.assert_allclose(peaks.best(curves, frequencies), [300, 1000, 2500], rtol=0.03)
    np.testing.assert_allclose(peaks.bandwidth(curves, frequencies), 2.355 * 0.5, rtol=0.05)


def test_threshold_of_a_known_level_function():
    levels = np.array([-65.0, -50, -35, -20])
    by_level = np.array([[0, 0.2], [0.5, 0.2], [1, 0.2], [1, 1.0]])
    threshold, dynamic_range = peaks.threshold_and_range(by_level, np.array([0, 0.0]), levels)
    np.testing.assert_allclose(threshold, [-59, -65], atol=1e-6)
    np.testing.assert_allclose(dynamic_range[0], -41 + 59, atol=1e-6)


def test_sentence_follows_its_grammar():
    row = {"frequency_tuned": True, "best_frequency_hz": 1210.0, "bandwidth_octaves": 0.6}
    row |= {
        "tone_tuned": True,
        "tone_index": 0.4,
        "modulation_tuned": True,
        "best_modulation_hz": 8.1,
        "level_tuned": False,
    }
    expected = "Tuned to 1.2 kHz (0.6 octaves); prefers tones to noise; responds to modulation around 8.1 Hz"
    assert sentence(row) == f"{expected}."
    assert sentence(row, "rain") == f"{expected}; on natural sound most active in rain."
    assert sentence({"frequency_tuned": False}) == "No reliable tuning."
    assert [hertz(f) for f in (7.96, 64, 121, 999, 6400)] == [
        "8 Hz",
        "64 Hz",
        "120 Hz",
        "1000 Hz",
        "6.4 kHz",
    ]


# --- receptive fields --------------------------------------------------------------------------------------------


class LinearActivation(nn.Identity):
    """Passes for an activation function, by its name."""


class Linear(nn.Module):
    """Neurons that are linear in the local spectrogram, and one of noise, with a token every 20 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.act = LinearActivation()
        lags, bands = np.meshgrid(np.arange(LAGS), np.arange(BANDS), indexing="ij")
        fields = [
            np.exp(-((lags - a) ** 2) / 18 - (bands - b) ** 2 / 8)
            for a, b in [(15, 8), (10, 20), (20, 26)]
        ]
        self.fields = torch.tensor(np.stack(fields), dtype=torch.float32)  # [neurons, lags, bands]

    def forward(self, wave: Tensor) -> Tensor:
        tokens = wave.shape[1] // STEP
        centres = (torch.arange(tokens) + 0.5) * STEP / RATE
        x = local(log_mel(wave, RATE), centres)
        values = x @ self.fields.flatten(1).T
        seeds = [zlib.crc32(clip.tobytes()) for clip in wave.numpy()]
        random = np.stack([np.random.default_rng(seed).normal(size=(tokens, 1)) for seed in seeds])
        return self.act(torch.cat([values, torch.from_numpy(random).float()], dim=2)).mean(dim=1)


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReceptiveFields, Linear]:
    task = make_task(tmp_path_factory.mktemp("linear"), clips=60, rate=RATE)
    module = Linear()
    encoder = from_module(
        module,
        activations="act",
        embed=module,
        sample_rate=RATE,
        clip_seconds=1.0,
        name="linear",
        samples_per_token=STEP,
    )
    return receptive_fields(encoder, task, folds=3), module


def test_planted_linear_field_is_recovered(fields: tuple[ReceptiveFields, Linear]):
    found, module = fields
    for neuron in range(3):
        truth = module.fields[neuron].numpy()
        assert np.corrcoef(found.field(0, neuron).to_numpy().ravel(), truth.ravel())[0, 1] > 0.95
    assert found.correlation[:3].min() > 0.95
    assert abs(found.correlation[3]) < 0.1


def test_fields_are_saved_and_loaded(fields: tuple[ReceptiveFields, Linear], tmp_path: Path):
    again = ReceptiveFields.load(fields[0].save(tmp_path / "fields.npz"))
    assert repr(again) == repr(fields[0])
    pd.testing.assert_frame_equal(again.table(), fields[0].table())


def test_sums_give_what_scikit_learn_gives():
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    parts = [Sums(5, 3) for _ in range(3)]
    x = rng.normal(size=(3, 200, 5)).astype(np.float32) + 2
    y = (x @ rng.normal(size=(5, 3)) + rng.normal(size=(3, 200, 3)) - 4).astype(np.float32)
    for part, features, responses in zip(parts, x, y, strict=True):
        for rows in np.split(np.arange(200), 4):
            part.add(features[rows], responses[rows], np.ones(3, np.float32))
    found, strength = cross_fit(parts)
    flat = [np.concatenate([x[i] for i in kept]) for kept in ((1, 2), (2, 0), (0, 1))]
    responses = [np.concatenate([y[i] for i in kept]) for kept in ((1, 2), (2, 0), (0, 1))]
    expected = []
    for fold in range(3):
        penalty = strength * flat[fold].var(axis=0).mean() * len(flat[fold])
        predicted = Ridge(penalty).fit(flat[fold], responses[fold]).predict(x[fold])
        expected.append([np.corrcoef(predicted[:, k], y[fold][:, k])[0, 1] for k in range(3)])
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=2e-3)


def test_copies_of_a_clip_stay_in_one_fold_when_they_are_a_group(tmp_path: Path):
    """Random responses to copied clips are predictable across folds, unless the copies form one group."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 40, 60)).astype(np.float32)  # clips, tokens, features
    y = rng.normal(size=(30, 40, 20)).astype(np.float32)

    def correlation(fold_of_copy: int) -> float:
        folds = [Sums(60, 20) for _ in range(3)]
        for clip, copy in itertools.product(range(30), (0, 1)):
            folds[(clip + copy * fold_of_copy) % 3].add(x[clip], y[clip], np.zeros(20, np.float32))
        return float(cross_fit(folds)[0].mean())

    assert correlation(1) > 0.1  # a copy in another fold
    assert abs(correlation(0)) < 0.05


def test_groups_are_not_split_over_folds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    task = make_task(tmp_path, clips=24)
    encoder = make_toy(token_grid=lambda n: [torch.tensor([[0, i] for i in range(n // 100)])])
    fold_of: dict[str, set] = {}
    seen = []
    monkeypatch.setattr(Sums, "add", lambda self, *_: seen.append(id(self)))
    monkeypatch.setattr("aape.tuning.receptive_fields.cross_fit", lambda folds: (np.zeros(24), 1.0))
    monkeypatch.setattr(
        "aape.tuning.receptive_fields.weights", lambda *_: [np.zeros((LAGS * BANDS, 24))]
    )
    read = type(task).read

    def remember(self, index, rate):
        fold_of.setdefault(self.groups[index], set()).add(index)
        return read(self, index, rate)

    monkeypatch.setattr(type(task), "read", remember)
    receptive_fields(encoder, task, folds=3, batch_size=100)
    assert len(seen) == 3 and len(fold_of) == 6
    with pytest.raises(ValueError, match="groups"):
        receptive_fields(encoder, task, clips=[0, 1], folds=3)


# --- does it matter ----------------------------------------------------------------------------------------------


def test_tuned_among_finds_an_excess_and_no_false_one(tuning: Tuning):
    rng = np.random.default_rng(0)
    layer = np.repeat([0, 1], 200)
    table = pd.DataFrame(
        {
            "layer": layer,
            "neuron": np.tile(np.arange(200), 2),
            "frequency_tuned": rng.random(400) < 0.3,
        }
    )
    members = np.zeros((2, 200), bool)
    members[:, :40] = True
    row = tuned_among(table, members, "frequency_tuned")
    assert row["p"] > 0.05 and row["neurons"] == 80
    table.loc[table.neuron < 40, "frequency_tuned"] = True
    row = tuned_among(table, members, "frequency_tuned")
    assert row["p"] < 0.001 and row["share"] == 1 and row["expected"] < 0.6


# --- encoders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(TINY))
def test_all_families_of_the_hub(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    few_sounds(monkeypatch)
    found = tune(from_hub(write_model(tmp_path / "model", kind)))
    check(found)


def test_m2d_and_a_module_without_a_grid(monkeypatch: pytest.MonkeyPatch):
    few_sounds(monkeypatch)
    check(tune(m2d.load("random", input_size=(80, 208), width=64, depth=2)))
    check(aape.tune(make_toy()))


def few_sounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A battery with two realisations instead of four and a tenth of the tones."""
    monkeypatch.setattr("aape.tuning.battery.LEVELS_DB", (-50.0, -20.0))
    monkeypatch.setattr("aape.tuning.battery.STEPS_PER_OCTAVE", 1)
    monkeypatch.setattr("aape.tuning.battery.MODULATIONS_HZ", (4.0, 16.0))
    monkeypatch.setattr(
        "aape.tuning.responses.battery",
        lambda rate, seconds: battery(rate, seconds, realisations=2),
    )


def check(found: Tuning) -> None:
    table = found.table()
    assert len(table) == len(table.drop_duplicates(["layer", "neuron"]))
    assert table.best_frequency_hz.between(59, 8000).all()
    assert np.isfinite(
        table.drop(columns=["sentence", "threshold_db", "dynamic_range_db"]).to_numpy(float)
    ).all()
