"""Loudness and bands taken out of preferences; what is the speaker's."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_sounds
from fake_artifacts import TOKENS, write_artifacts
from torch import nn

from aape.artifacts.folder import load_artifacts
from aape.collecting.passing import collect
from aape.encoders.module import from_module
from aape.neurons.selection import select
from aape.sounds.loading import from_metadata

pytest.importorskip("librosa", reason="librosa is not installed: pip install aape[confounds]")

from aape.criteria.confounds import NAMES, RATE, causal_checks, confounded, describe, explained, within_loudness
from aape.neurons.permuting import share_of_groups


def test_descriptors_of_sounds_that_are_known():
    time = np.arange(RATE) / RATE
    tone = 0.1 * np.sin(2 * np.pi * 700 * time)
    found = dict(zip(NAMES, describe(tone), strict=True))
    assert found["log_rms"] == pytest.approx(np.log10(0.1 / np.sqrt(2)), abs=1e-3)
    assert found["centroid"] == pytest.approx(np.log10(700), abs=0.03)
    assert found["silence"] < 0.05 and found["variation"] < 2
    assert max((n for n in NAMES if n.startswith("band")), key=found.__getitem__) == "band_500_1000"
    louder = dict(zip(NAMES, describe(4 * tone), strict=True))
    assert louder["log_rms"] - found["log_rms"] == pytest.approx(np.log10(4), abs=1e-3)
    for name in NAMES[1:]:
        assert louder[name] == pytest.approx(found[name], abs=0.02)
    half = np.where(time < 0.5, tone, 0)
    assert dict(zip(NAMES, describe(half), strict=True))["silence"] == pytest.approx(0.5, abs=0.05)
    assert np.isfinite(describe(np.zeros(10))).all()


def test_what_descriptors_explain_comes_from_the_other_folds():
    rng = np.random.default_rng(0)
    heard, fold = rng.normal(size=(200, 10)), np.arange(200) % 5
    values = np.stack([heard[:, 2] ** 2 + 0.5 * heard[:, 1], rng.normal(size=200)], axis=1)
    rest = values - explained(heard, values, fold)
    r2 = 1 - (rest**2).sum(axis=0) / ((values - values.mean(axis=0)) ** 2).sum(axis=0)
    assert r2[0] > 0.95 and r2[1] < 0.05  # noise is not explained, however many descriptors there are


def test_a_neuron_of_loudness_loses_its_effect_and_one_of_the_class_keeps_it(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 40)
    loud = rng.normal(size=120) + 1.0 * (labels == 1)  # class 1 is louder
    heard = np.column_stack([loud, rng.normal(size=(120, 9))])
    rate = rng.uniform(0.2, 0.4, (120, 2, 20))
    rate[:, 0, 3] = np.clip(0.4 + 0.12 * loud, 0, 1)  # loudness
    rate[:, 1, 4] = np.where(labels == 1, 0.7, 0.3)  # the class
    counts = rng.binomial(TOKENS, rate)
    write_artifacts(tmp_path, counts, labels, ["a", "b", "c"], task="t", groups=np.arange(120) // 2)
    pairs = pd.DataFrame({"layer": [0, 1], "neuron": [3, 4], "class": ["b", "b"]}, index=[7, 9])
    found = confounded(load_artifacts(tmp_path), heard, pairs)
    with pytest.raises(ValueError, match="has no class 'd'; it has a, b, c"):
        confounded(load_artifacts(tmp_path), heard, pairs.assign(**{"class": ["b", "d"]}))
    assert found.index.tolist() == [7, 9] and found.effect.min() > 0.05
    assert found.adjusted[7] < 0.4 * found.effect[7] and found.adjusted[9] > 0.5 * found.effect[9]
    assert found.r2[7] > 0.6 and found.d_prime[9] > 3 and found.d_prime_adjusted[7] < found.d_prime[7]
    alike = within_loudness(load_artifacts(tmp_path), heard, pairs)
    assert alike.p[7] > 0.05 and alike.p[9] == 0.001 and alike.q[9] == 0.002
    by_hand = counts[labels == 1, 1, 4].mean() - counts[labels != 1, 1, 4].mean()
    assert found.effect[9] == pytest.approx(by_hand / TOKENS)


def test_the_groups_share_is_the_intraclass_correlation():
    """Speakers of unequal size; the variance between them is known."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), rng.integers(2, 9, 300))
    labels = groups % 4  # every speaker is of one class
    speaker = rng.normal(0, 1, (300, 2))[groups] * [1.0, 0.0]
    values = labels[:, None] + speaker + rng.normal(0, 1, (len(groups), 2))
    assert share_of_groups(values, labels, groups) == pytest.approx([0.5, 0.0], abs=0.06)
    crossed = np.arange(len(labels)) % 4  # speakers of every class
    assert share_of_groups(values - labels[:, None], crossed, groups)[0] == pytest.approx(0.5, abs=0.1)
    assert np.isnan(share_of_groups(values, labels, np.arange(len(labels)))).all()


class LoudOrHigh(nn.Module):
    """Two tokens a clip; neuron 0 is active where it is loud, neuron 1 where most energy is high, at any level."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        energy = torch.fft.rfft(wave.unflatten(1, (2, -1))).abs() ** 2  # [clips, tokens, frequencies]
        total, half = energy.sum(dim=2), energy.shape[2] // 2
        high = energy[..., half:].sum(dim=2) / total.clamp(min=1e-9)
        x = torch.stack([total.clamp(min=1e-9).log10() - 4.4, high - 0.5, *[torch.full_like(total, -1.0)] * 38], dim=2)
        return self.act(x).sum(dim=1)


def test_the_preference_for_loud_sounds_goes_with_the_level_and_that_for_high_ones_stays(tmp_path):
    time, waves, rows = np.arange(8000) / 8000, [], []
    for i in range(18):
        label = ("quiet", "loud", "high")[i % 3]
        wave = (0.3 if label == "loud" else 0.03) * np.sin(2 * np.pi * (3000 if label == "high" else 300) * time)
        waves.append(np.where(time < 0.125, 0, wave))
        rows.append((label, "test" if i % 2 else "train"))
    path = write_sounds(tmp_path, waves, 8000, rows, ["label", "split"])
    task = from_metadata(path, tmp_path / "audio", clip_seconds=1.0, name="levels")
    module = LoudOrHigh()
    options = {"sample_rate": 8000, "clip_seconds": 1.0, "name": "ears", "samples_per_token": 4000}
    encoder = from_module(module, activations="act", embed=module, **options)
    artifacts = collect(encoder, task, tmp_path / "run")
    chosen = select(artifacts, rate=0.05)
    assert chosen.neurons("loud").tolist() == [[0, 0]] and chosen.neurons("high").tolist() == [[0, 1]]
    found = causal_checks(encoder, task, artifacts, chosen).set_index("change")
    assert found.pairs.tolist() == [2] * 5 and found.kept["as it is"] == found.kept["silence trimmed"] == 1
    assert found.kept[["12 dB louder", "12 dB quieter"]].tolist() == [0.5, 0.5]  # the high one alone
    assert found.in_order["12 dB quieter"] == 1 and found.in_order["12 dB louder"] == 2 - 1
