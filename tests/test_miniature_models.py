"""The miniature's models: their training script on tiny synthetic data, and the weights that ship."""

import functools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import one_thread, write_sounds
from safetensors.torch import load_file

from aape.encoders import m2d
from miniature import encoders, probe, train


@pytest.fixture(autouse=True)
def quiet():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def crops() -> train.Crops:
    """Twelve clips of four classes: a class is a pair of steady bands over noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(12) % 4
    logmels = rng.normal(-9.0, 0.5, (12, 80, 260))
    for clip, label in enumerate(labels):
        logmels[clip, 18 * label : 18 * label + 6] += 6.0
        logmels[clip, 18 * label + 10 : 18 * label + 12, ::4] += 4.0
    return train.Crops.from_logmels(logmels.astype(np.float16), labels, digest="synthetic")


def tiny(kind: str, steps: int, **options) -> train.Settings:
    defaults = dict(
        batch_size=8, width=64, depth=2, heads=1, decoder_width=32, decoder_depth=1, folds=(1,)
    )
    return train.Settings(kind=kind, steps=steps, **{**defaults, **options})


@pytest.mark.parametrize("kind", ["ssl", "sl"])
def test_killed_run_ends_with_the_same_weights(kind, crops, tmp_path):
    settings, every = tiny(kind, steps=7), {"checkpoint_every": 2, "record_every": 3}
    whole, cut = train.train(settings, crops, tmp_path / "whole", **every), tmp_path / "cut"
    for _ in range(2):  # stopped after step 3, one step past its last checkpoint, twice
        assert train.train(settings, crops, cut, **every, stop_after=3) is None
    assert not (cut / f"{kind}.safetensors").exists()
    with pytest.raises(ValueError, match=r"belongs to another run.*another --out"):
        train.train(tiny(kind, steps=7, seed=5), crops, cut)
    resumed = train.train(settings, crops, cut, **every)
    first, second = load_file(whole), load_file(resumed)
    assert list(first) == list(second) and all(
        torch.equal(first[key], second[key]) for key in first
    )


def test_trained_encoder_loads_and_the_training_pass_is_the_encoders(crops, tmp_path):
    """The pass used in training, with every patch kept, gives what the public encoder computes."""
    settings = tiny("ssl", steps=2)
    weights = train.train(settings, crops, tmp_path)
    encoder = m2d.load(weights, name="tiny")
    assert tuple(encoder.activations) == ("blocks.0.mlp.act", "blocks.1.mlp.act")
    assert encoder.clip_seconds == pytest.approx(2.08)
    model, _ = train._build(settings, crops)
    model.encoder.load_state_dict(encoder.module.vit.state_dict())
    spectrograms = torch.randn(2, *train.INPUT_SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.encode(spectrograms, torch.arange(65).expand(2, -1))
        vit = encoder.module.vit
        theirs = vit.norm(vit.blocks(vit.tokens(spectrograms[:, None])))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(encoder.module.vit.norm_stats, torch.tensor([-7.1, 4.2]))


def test_crops_avoid_silence():
    logmels = np.full((1, 80, 501), train.FLOOR, np.float16)
    logmels[0, :, 100:150] = -3.0  # half a second of sound
    crops = train.Crops.from_logmels(logmels, np.zeros(1, np.int64), "x")
    assert crops.starts[0].min() == 0 and crops.starts[0].max() == 149
    drawn = crops.draw(np.zeros(50, int), np.random.default_rng(0), gain_db=0.0)
    assert (drawn.max(axis=(1, 2)) > -4.0).all()


def test_training_takes_the_folds_given_and_never_the_test_fold(tmp_path, monkeypatch):
    rng, esc50 = np.random.default_rng(1), tmp_path / "esc50"
    waves = [rng.normal(0, 0.05 * (1 + i % 2), 48_000) for i in range(6)]
    rows = [(i % 3 + 1, i % 2, f"class{i % 2}", False, i, "A") for i in range(6)]
    table = write_sounds(
        esc50, waves, 16_000, rows, ["fold", "target", "category", "esc10", "src_file", "take"]
    )
    (esc50 / "meta").mkdir()
    (esc50 / "meta" / "esc50.csv").write_text(table.read_text().replace("file_name", "filename"))
    first = train.load_crops(esc50, (1, 2), tmp_path / "cache")
    assert first.logmels.shape == (4, 80, 501) and first.labels.tolist() == [0, 1, 1, 0]
    monkeypatch.setattr(
        train, "Settings", functools.partial(train.Settings, width=64, depth=1, heads=1)
    )
    command = [
        "sl",
        "--esc50",
        str(esc50),
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "2",
        "--batch-size",
        "4",
    ]
    train.main([*command, "--folds", "1", "2"])
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"].startswith(
        "ESC-50 folds 1, 2, 4 clips"
    )
    with pytest.raises(SystemExit):
        train.main([*command, "--folds", "4", "5"])


def test_shipped_models_have_one_shape_and_differ():
    models = [encoders.load_ssl(), encoders.load_sl(), encoders.load_untrained(seed=0)]
    wave = 0.1 * torch.randn(1, 80_000, generator=torch.Generator().manual_seed(0))
    outputs = []
    for model in models:
        assert len(model.activations) == 6 and model.sample_rate == 16_000
        assert sum(block.mlp.fc1.out_features for block in model.module.vit.blocks) == 4608
        with torch.inference_mode():
            outputs.append(model.embed(wave))
        assert outputs[-1].shape == (1, 960) and torch.isfinite(outputs[-1]).all()
    assert not torch.allclose(outputs[0], outputs[1]) and not torch.allclose(outputs[1], outputs[2])


def test_damaged_weights_fail_by_their_hash(tmp_path):
    copy = tmp_path / "weights"
    shutil.copytree(encoders.WEIGHTS, copy)
    content = bytearray((copy / "sl.safetensors").read_bytes())
    content[-5] ^= 1  # one bit of one weight
    (copy / "sl.safetensors").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"sl\.safetensors is damaged.*expected SHA-256.*git checkout"
    ):
        encoders.load_sl(copy)


def test_model_card_states_the_run_and_the_probes_of_the_weights():
    card, sums = (
        (encoders.WEIGHTS.parent / "README.md").read_text(),
        (encoders.WEIGHTS / "SHA256SUMS").read_text(),
    )
    table = pd.read_csv(encoders.WEIGHTS / "probes.csv")
    for name in ("ssl", "sl"):
        report = json.loads((encoders.WEIGHTS / f"{name}.json").read_text())
        assert (
            report["sha256"] in card
            and report["sha256"] in sums
            and 5 not in report["settings"]["folds"]
        )
        assert set(table.weights_sha256[table.model == name]) == {report["sha256"][:16]}
    assert probe.markdown(table) in card
    fold5 = table[table.data == "ESC-50, fold 5"].set_index("model")
    assert (fold5.above_low[["ssl", "sl"]] > 0.05).all()  # training pays, beyond the interval


def test_probe_finds_what_is_there_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    splits = np.array(["train"] * 60 + ["valid"] * 20 + ["test"] * 40)
    noise = rng.normal(size=(120, 10)).astype(np.float32)
    told = noise + 4.0 * np.eye(10, dtype=np.float32)[labels]
    right = probe.linear_probe(told, labels, splits, "test")
    assert right.shape == (40,) and right.mean() > 0.9
    assert probe.linear_probe(noise, labels, splits, "test").mean() < 0.6


def test_bootstrap_resamples_groups_not_clips():
    correct = np.tile(np.array([True, False]), 50)[None]  # accuracy 0.5
    single = probe.group_bootstrap(correct, np.arange(100))
    assert single.mean() == pytest.approx(0.5, abs=0.01) and single.std() == pytest.approx(
        0.05, rel=0.15
    )
    # ten groups of ten clips that are all right or all wrong: the interval must widen to that of ten
    blocks = np.repeat(np.arange(10), 10)
    grouped = probe.group_bootstrap((blocks % 2 == 0)[None], blocks)
    assert grouped.std() == pytest.approx(0.158, rel=0.15)
