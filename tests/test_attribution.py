"""Attribution: against finite differences written by hand, resumable, and with classifiers that have not seen the clip."""

from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_task, make_toy

from aape.causal import attribution
from aape.causal.attribution import attribute, attributed
from aape.causal.classifier import cross_folds, fit, folds
from aape.collecting.passing import collect
from aape.encoders.encoder import hooked


@pytest.fixture
def collected(tmp_path):
    """A toy that takes the wave in two chunks, its task of five folds, and its artifacts."""
    encoder = make_toy()
    module = encoder.module
    encoder = replace(
        encoder,
        embed=lambda w: (module(w[:, :600]) + 2 * module(w[:, 600:])) / 3,
        padding_masks=None,
    )
    task = make_task(tmp_path / "data", clips=30)
    return encoder, task, collect(encoder, task, tmp_path / "out")


def slopes(encoder, waves, labels, classifiers, layer, neuron, value, step=0.002):
    """d ln p of each clip's class when the neuron moves from its activations towards a value, by central differences."""

    def log_p(share):
        def see(_place, output):
            moved = output.clone()
            moved[..., neuron] += share * (value - output[..., neuron])
            return moved

        with hooked(encoder, [encoder.layers[layer]], see), torch.no_grad():
            embeddings = encoder.embed(waves).numpy()
        rows = zip(classifiers, embeddings[:, None], labels, strict=True)
        return np.array(
            [classifier.log_probabilities(one)[0, label] for classifier, one, label in rows]
        )

    return (log_p(step) - log_p(-step)) / (2 * step)


@pytest.mark.parametrize("replace_by", ["zero", "mean"])
def test_equals_finite_differences_clip_by_clip(collected, replace_by):
    encoder, task, artifacts = collected
    found = attribute(encoder, task, artifacts, replace_by=replace_by, batch_size=7, progress=False)
    assert found.shape == artifacts.over_zero.shape and artifacts.files.tolist() == list(task.files)
    labels, means, tokens = artifacts.labels, np.zeros((3, 8)), np.zeros(3)

    def see(place, output):
        means[place] += output.double().sum(dim=(0, 1)).numpy()
        tokens[place] += output.shape[0] * output.shape[1]

    waves = torch.from_numpy(
        np.stack([task.read(i, encoder.sample_rate)[0] for i in range(len(task.files))])
    )
    with hooked(encoder, encoder.layers, see), torch.no_grad():
        encoder.embed(waves)
    classifiers = [None] * 30
    for part in folds(artifacts.splits, labels, artifacts.classes):
        fitted = fit(artifacts.embeddings(), labels, artifacts.classes, part)
        for clip in part.test:
            classifiers[clip] = fitted
    for layer, neuron in [(0, 1), (0, 6), (1, 3), (2, 0), (2, 5)]:
        value = means[layer, neuron] / tokens[layer] if replace_by == "mean" else 0.0
        moved = slopes(encoder, waves, labels, classifiers, layer, neuron, value)
        for c in range(3):
            assert found[layer, neuron, c] == pytest.approx(
                moved[labels == c].mean(), rel=0.01, abs=5e-5
            )
    assert np.abs(found).max() > 1e-3


def test_one_pass_serves_both_and_an_interrupted_one_resumes(collected, monkeypatch):
    encoder, task, artifacts = collected
    monkeypatch.setattr(attribution, "BLOCK", 8)
    settings = {"batch_size": 5, "split": ["fold1", "fold2", "fold3"], "progress": False}
    passes = Mock(wraps=attribution.one_pass)
    monkeypatch.setattr(attribution, "one_pass", passes)
    whole = attribute(encoder, task, artifacts, **settings | {"batch_size": 4})
    assert [len(call.args[2]) for call in passes.call_args_list] == [
        4,
        4,
        4,
        4,
        2,
    ]  # 18 clips in blocks of 8
    attributions = iter(range(3))

    def dies(*arguments):
        if next(attributions, None) is None:
            raise KeyboardInterrupt
        return passes(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(attribution, "one_pass", dies)
        attribute(encoder, task, artifacts, **settings)
    passes.reset_mock()
    resumed = attribute(encoder, task, artifacts, **settings)
    assert [len(call.args[2]) for call in passes.call_args_list] == [
        5,
        3,
        2,
    ]  # the first block was kept
    assert resumed == pytest.approx(whole, abs=1e-7)
    attribute(encoder, task, artifacts, replace_by="mean", **settings)
    assert passes.call_count == 3


def test_what_is_left_on_disk_is_read_without_the_sounds(collected):
    encoder, task, artifacts = collected
    assert attributed(encoder, artifacts) is None
    zero = attribute(encoder, task, artifacts, progress=False)
    kept = attributed(encoder, artifacts)
    np.testing.assert_array_equal(kept["zero"], zero)
    np.testing.assert_array_equal(
        kept["mean"], attribute(encoder, task, artifacts, replace_by="mean", progress=False)
    )


def test_a_front_end_without_gradients_is_fine_and_an_encoder_without_is_refused(collected):
    encoder, task, artifacts = collected
    expected = attribute(encoder, task, artifacts, batch_size=9, progress=False)
    first = encoder.module.layers[0].fc.forward

    def without_gradient(x):
        with torch.no_grad():
            return first(x)

    encoder.module.layers[0].fc.forward = without_gradient
    found = attribute(encoder, task, artifacts, batch_size=10, progress=False)
    assert found == pytest.approx(expected, abs=1e-7)
    assert (
        all(p.requires_grad for p in encoder.module.parameters())
        and not encoder.module.layers[1].act._forward_hooks
    )
    del encoder.module.layers[0].fc.forward
    closed = torch.no_grad()(encoder.embed)
    cut = lambda wave: encoder.embed(wave).detach() + 0 * next(encoder.module.parameters()).sum()  # noqa: E731
    for size, embed in ((11, closed), (12, cut)):
        with pytest.raises(ValueError, match="gradient"):
            attribute(
                replace(encoder, embed=embed), task, artifacts, batch_size=size, progress=False
            )


def test_a_model_that_goes_on_in_place_and_other_audio(collected, tmp_path):
    encoder, task, artifacts = collected
    expected = attribute(encoder, task, artifacts, batch_size=9, progress=False)
    module, doubled = encoder.module, Mock(wraps=encoder.module.layers[1].fc.forward)
    module.layers[1].fc.forward = lambda x: doubled(x.mul_(2) / 2)
    assert attribute(encoder, task, artifacts, batch_size=10, progress=False) == pytest.approx(
        expected, abs=1e-7
    )
    assert doubled.called
    soundfile.write(task.audio_dir / task.files[3], np.full(1000, 0.1), 1000, subtype="FLOAT")
    for _ in range(2):  # nothing of it is kept
        with pytest.raises(ValueError, match="differ from features.pt"):
            attribute(encoder, task, artifacts, batch_size=11, progress=False)


def test_folds_keep_groups_whole_and_every_class_on_both_sides(collected):
    _, _, artifacts = collected
    rows = np.arange(30)
    assert (
        cross_folds(artifacts, rows)
        == artifacts.labels * 0 + [int(s[4:]) - 1 for s in artifacts.splits]
    ).all()
    some = np.flatnonzero(
        np.isin(artifacts.splits, ["fold1", "fold2"])
    )  # two folds: dealt by group
    fold = cross_folds(artifacts, some)
    for group in set(artifacts.groups):
        assert len(set(fold[artifacts.groups[some] == group])) <= 1
    alone = some[(artifacts.labels[some] != 0) | (artifacts.groups[some] == "g0")]
    with pytest.raises(ValueError, match="'class0' are in 1 fold or group"):
        cross_folds(artifacts, alone)


def test_bad_arguments_are_named(collected):
    encoder, task, artifacts = collected
    with pytest.raises(ValueError, match="'zero' or 'mean'"):
        attribute(encoder, task, artifacts, replace_by="none")
    with pytest.raises(ValueError, match="before its activation functions"):
        attribute(replace(encoder, preactivation=True), task, artifacts)
