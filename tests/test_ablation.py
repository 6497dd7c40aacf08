"""The deactivation experiment on a toy whose neurons are planted, so that the right answer is known."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from torch import nn

from aape import ablation, trials
from aape.ablation import ablate, index_plus_one, load_result, matched, paired_interval, target_neurons
from aape.artifacts import load_artifacts
from aape.collecting import collect
from aape.encoder import Encoder, from_module
from aape.figures import ablation as figures_ablation
from aape.selection import select
from aape.study import AblationTarget, Study, load_encoder, load_task
from aape.task import Task, from_metadata

RATE, SAMPLES, CLASSES = 400, 400, ("high", "low", "middle")
TONES = {"low": 20, "middle": 60, "high": 120}  # Hz
NEURONS = 40


class Tuned(nn.Module):
    """One layer of 40 neurons: the first 4 hear 20 Hz, the next 4 60 Hz, the next 4 120 Hz, the others noise."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        time = torch.arange(50) / RATE
        self.kernel = nn.Parameter(torch.randn(2, NEURONS, 50, generator=generator) * 0.1, requires_grad=False)
        for i, tone in enumerate(TONES.values()):
            for k in range(4):
                self.kernel[:, 4 * i + k] = torch.cos(2 * torch.pi * (tone * time + k / 4)) / 5
        self.act = nn.ReLU()

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        x = nn.functional.conv1d(wave[:, None], self.kernel[0][:, None], stride=10)
        return self.act(x.transpose(1, 2) - 0.2).mean(dim=1)  # [batch, 40]


def tuned(seed: int = 0) -> Encoder:
    module = Tuned(seed)
    digest = hashlib.sha256(module.kernel.numpy().tobytes()).hexdigest()
    return from_module(
        module,
        activations="act",
        embed=module,
        sample_rate=RATE,
        clip_seconds=1.0,
        name=f"tuned {seed}",
        weights={"source": "test", "sha256": digest},
    )


def tones(folder: str, folds: bool = False) -> Task:
    """Tones in noise: 30 clips a class, in groups of two."""
    root = Path(folder)
    if not (root / "meta.csv").exists():
        rng = np.random.default_rng(0)
        root.mkdir(parents=True, exist_ok=True)
        rows = []
        for i in range(90):
            label = sorted(TONES)[i % 3]
            time = np.arange(SAMPLES) / RATE
            wave = 0.3 * rng.normal(size=SAMPLES) + np.cos(2 * np.pi * (TONES[label] * time + rng.uniform()))
            soundfile.write(root / f"{i}.wav", 0.3 * wave, RATE, subtype="FLOAT")
            split = f"{1 + (i // 3) % 5}" if folds else ("train", "train", "valid", "test", "test")[(i // 3) % 5]
            rows.append((f"{i}.wav", label, split, f"g{i % 3}-{i // 30}-{(i // 3) % 5}"))
        columns = ["file_name", "label", "fold" if folds else "split", "group"]
        pd.DataFrame(rows, columns=columns).to_csv(root / "meta.csv", index=False)
    return from_metadata(root / "meta.csv", root, clip_seconds=1.0, name="tones")


def make_study(root: Path, *, folds: bool = False, targets: list[dict] | None = None, **settings: object) -> Study:
    here = f"{__name__}"
    ablation_settings: dict = {
        "targets": targets or [{"task": "tones", "classes": ["low"], "mode": "specific"}],
        "controls": 39,
        "controls_elsewhere": 5,
        "rate_matched": 3,
        "refits": 3,
        "bootstrap": 200,
        "gains": [0.0, 0.5, 1.0, 2.0],
    } | settings
    return Study(
        name="toy",
        description="",
        stand_in=True,
        base=root,
        models={
            "ssl": {"loader": f"{here}:tuned", "label": "tuned", "folder": "analysis"},
            "untrained": {"loader": f"{here}:tuned", "options": {"seed": 1}, "label": "other", "folder": "untrained"},
        },
        tasks={
            "tones": {
                "loader": f"{here}:tones",
                "options": {"folder": str(root / "audio"), "folds": folds},
                "title": "Tones",
                "rate": 0.3,
            }
        },
        selection={"quantile": 0.7},
        ablation=ablation_settings,
    )


def hearing(study: Study, splits: list[str]) -> Study:
    """The study with M2D's encoder trained on some splits."""
    model = study.models["ssl"].model_copy(update={"heard": {"tones": splits}})
    return study.model_copy(update={"models": study.models | {"ssl": model}})


def collected(study: Study) -> Study:
    for model in study.models:
        out = study.artifacts_directory("tones", model)
        collect(load_encoder(study, model), load_task(study, "tones"), out, device="cpu")
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return collected(make_study(tmp_path_factory.mktemp("ablation")))


@pytest.fixture(scope="module")
def result(study: Study) -> ablation.AblationResult:
    return ablate(study, device="cpu")


# -- the pieces -------------------------------------------------------------------------------------------------


def test_layer_matched_controls() -> None:
    target = np.array([[0, 1], [0, 2], [2, 5]])
    drawn = [matched(target, 8, np.random.default_rng(i)) for i in range(200)]
    for control in drawn:
        assert control[:, 0].tolist() == [0, 0, 2]
        assert len({tuple(row) for row in control.tolist()}) == 3
        assert not {tuple(r) for r in control.tolist()} & {tuple(r) for r in target.tolist()}
    assert {int(n) for c in drawn for n in c[:2, 1]} == {0, 3, 4, 5, 6, 7}  # every other neuron turns up
    assert np.array_equal(drawn[3], matched(target, 8, np.random.default_rng(3)))


def test_rate_matched_controls_have_like_rates() -> None:
    rng = np.random.default_rng(0)
    rates = rng.uniform(size=(2, 500))
    target = np.array([[0, int(n)] for n in np.argsort(rates[0])[-20:]] + [[1, 3]])
    control = matched(target, 500, rng, rates)
    assert control[:, 0].tolist() == [0] * 20 + [1]
    assert len({tuple(row) for row in control.tolist()}) == 21
    assert not {tuple(r) for r in control.tolist()} & {tuple(r) for r in target.tolist()}
    assert rates[0, control[:20, 1]].min() > 0.85  # random ones have 0.5 on average
    assert abs(rates[1, control[20, 1]] - rates[1, 3]) < 0.05


@pytest.mark.parametrize("draw", [matched, lambda t, w, r: matched(t, w, r, np.zeros((1, w)))])
def test_too_few_candidates(draw: object) -> None:
    target = np.array([[0, n] for n in range(5)])
    with pytest.raises(ValueError, match="needs 5 neurons outside the target, but only 4 of its 9"):
        draw(target, 9, np.random.default_rng(0))  # type: ignore[operator]
    assert len(draw(target, 10, np.random.default_rng(0))) == 5  # type: ignore[operator]


def test_index_plus_one() -> None:
    assert index_plus_one(np.array([[0, 1], [3, 9]]), 10).tolist() == [[0, 2], [3, 0]]


def test_targets() -> None:
    p = np.full((1, 6, 3), 0.01)
    p[0, 0, 0] = p[0, 1, 1] = p[0, 2, :2] = 0.9
    selection = select(p, rate=0.5, quantile=14 / 18, classes=["a", "b", "c"])
    assert selection.per_class.tolist() == [2, 2, 0]

    def of(mode: str, *classes: str) -> list:
        target = AblationTarget(task="t", classes=list(classes), mode=mode)  # type: ignore[arg-type]
        return target_neurons(selection, target)[:, 1].tolist()

    assert of("specific", "a") == [0, 2]
    assert of("shared", "a", "b") == [2]
    assert of("all", "a", "b") == of("all") == [0, 1, 2]
    assert of("specific", "c") == []
    for mode, classes, message in (
        ("specific", ["a", "b"], "takes one class"),
        ("shared", ["a"], "two classes or more"),
        ("shared", ["a", "d"], "no class 'd'"),
    ):
        with pytest.raises(ValueError, match=message):
            of(mode, *classes)


def test_the_interval_is_paired_and_by_groups() -> None:
    rng = np.random.default_rng(0)
    difference = np.repeat(rng.normal(size=20), 10)  # ten clips of a group move together
    grouped = paired_interval(difference, np.repeat(np.arange(20), 10), count=2000, rng=rng)
    single = paired_interval(difference, np.arange(200), count=2000, rng=rng)
    assert grouped[0] < difference.mean() < grouped[1]
    assert (grouped[1] - grouped[0]) > 2 * (single[1] - single[0])
    # the standard error of a mean of 20 numbers, within what the bootstrap's own noise and bias allow
    expected = 2 * 1.96 * difference[::10].std() / np.sqrt(20)
    assert grouped[1] - grouped[0] == pytest.approx(expected, rel=0.15)
    assert np.isnan(paired_interval(difference, np.zeros(200), count=100, rng=rng)).all()


# -- the whole ---------------------------------------------------------------------------------------------------


def test_planted_neurons_matter(study: Study, result: ablation.AblationResult) -> None:
    summary = result.summary()
    ours = summary[summary.model == "ssl"].iloc[0]
    assert ours["class"] == "low" and ours.neurons >= 2
    assert ours.layer_p == 1 / 40 and ours.layer_q == 1 / 40
    assert ours.difference < ours.layer_low < 0.2
    assert ours.low <= ours.difference <= ours.high
    silenced = result.neurons[result.neurons.model == "ssl"].neuron.tolist()
    assert set(silenced) <= {0, 1, 2, 3}
    assert "1 of 1 targeted classes fall below" in result.verdict()
    for name in ablation.TABLES:
        assert (study.directory / f"ablation_{name}.csv").is_file()


def test_numbers_by_hand(study: Study, result: ablation.AblationResult) -> None:
    """Effects recomputed by the plain way: silence, embed everything, classify."""
    from aape.classifier import fit, folds
    from aape.silencing import silenced

    encoder, task = tuned(), load_task(study, "tones")
    artifacts = load_artifacts(study.artifacts_directory("tones", "ssl"))
    (fold,) = folds(artifacts.splits, artifacts.labels, artifacts.classes)
    classifier = fit(artifacts.embeddings(), artifacts.labels, artifacts.classes, fold)
    wave = torch.from_numpy(np.stack([task.read(int(i), RATE)[0] for i in fold.test]))
    neurons = result.neurons[result.neurons.model == "ssl"][["layer", "neuron"]].to_numpy()
    with silenced(encoder, neurons):
        log_p = classifier.log_probabilities(encoder.embed(wave).numpy())
    low = task.labels[fold.test] == CLASSES.index("low")
    rows = result.effects.query("model == 'ssl' and kind == 'silenced' and `class` == 'low'").set_index("measure")
    assert rows.after["accuracy"] == pytest.approx(100 * (log_p.argmax(axis=1) == 1)[low].mean())
    assert rows.after["log_probability"] == pytest.approx(log_p[low, 1].mean(), abs=1e-5)
    intact = classifier.log_probabilities(artifacts.embeddings()[fold.test])
    assert rows.before["log_probability"] == pytest.approx(intact[low, 1].mean(), abs=1e-5)


def test_the_other_tables(result: ablation.AblationResult) -> None:
    effects, controls = result.effects, result.controls
    assert set(effects.kind) == {"silenced", "index plus one", "replaced by mean", "silenced, chosen on all clips"}
    ours = controls[(controls.model == "ssl") & (controls.measure == "accuracy")]
    of_low = ours[ours["class"] == "low"].control.value_counts()
    assert of_low.to_dict() == {"layer-matched": 39, "rate-matched": 3, "rate-matched in the classes": 1}
    assert ours[ours["class"] == "high"].control.value_counts().to_dict() == {"layer-matched": 5}
    gains = result.gains.query("model == 'ssl' and `class` == 'low' and measure == 'log_probability'").set_index("gain")
    assert gains.difference[1.0] == 0
    assert gains.difference[0.0] < gains.difference[0.5] < 0
    matrix = result.off_target.query("model == 'ssl' and measure == 'log_probability'")
    for name, row in matrix.groupby("silenced"):
        assert row.loc[row.difference.idxmin(), "class"] == name  # planted neurons hurt their own class most
    silenced = effects.query("kind == 'silenced' and measure == 'log_probability'")
    assert silenced.refit_sd.notna().all() and silenced.clips.tolist() == [12] * 6
    assert not effects[~effects.targeted].layer_q.notna().any()


def test_loads_without_the_models(study: Study, result: ablation.AblationResult) -> None:
    again = load_result(study)
    for name in ablation.TABLES:
        pd.testing.assert_frame_equal(getattr(again, name), getattr(result, name), check_dtype=False)


def test_tables_that_a_study_leaves_empty(tmp_path: Path) -> None:
    nothing = {"controls": 0, "rate_matched": 0, "target_rate_matched": 0, "gains": [], "off_target": False}
    study = collected(make_study(tmp_path, refits=0, **nothing))
    result = ablate(study, device="cpu")
    again = load_result(study)
    for name in ("controls", "off_target", "gains"):
        assert len(getattr(result, name)) == len(getattr(again, name)) == 0
        assert {"task", "model", "class", "measure"} <= set(getattr(again, name).columns)
    assert again.summary().layer_p.isna().all() and "nothing to test" in again.verdict()
    assert figures_ablation.all_figures(again)


def test_a_second_run_computes_nothing_and_more_controls_only_what_is_new(
    study: Study, result: ablation.AblationResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    original = trials.embed_with_sets

    def counted(encoder: Encoder, waves: list, sets: list) -> object:
        passes.append(len(waves[0]) * (len(sets) - 1))
        return original(encoder, waves, sets)

    monkeypatch.setattr(trials, "embed_with_sets", counted)
    pd.testing.assert_frame_equal(ablate(study, device="cpu").effects, result.effects)
    assert passes == []
    more = study.model_copy(update={"ablation": study.ablation.model_copy(update={"controls": 41})})
    ablate(more, device="cpu")
    assert sum(passes) == 2 * 12 * 2  # two sets, twelve clips of the class, two models
    ablate(study, device="cpu")  # leaves the CSVs as they were


def test_a_sweep_that_is_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = collected(make_study(tmp_path, controls=5, rate_matched=0, refits=2))
    original = trials.embed_with_sets
    calls = [0]

    def dies(encoder: Encoder, waves: list, sets: list) -> object:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return original(encoder, waves, sets)

    monkeypatch.setattr(trials, "embed_with_sets", dies)
    with pytest.raises(KeyboardInterrupt):
        ablate(study, device="cpu")
    stored = sorted((study.directory / "ablations").rglob("*.npz"))
    assert len([p for p in stored if "means" not in p.name]) == 2
    cut = calls[0]
    effects = ablate(study, device="cpu").effects
    resumed = calls[0] - cut
    next(p for p in stored if "means" not in p.name).write_bytes(b"half a file")
    with pytest.warns(UserWarning, match="computed anew"):
        again = ablate(study, device="cpu")
    pd.testing.assert_frame_equal(again.effects, effects)
    monkeypatch.undo()
    elsewhere = make_study(tmp_path / "fresh", controls=5, rate_matched=0, refits=2)
    fresh = ablate(collected(elsewhere), device="cpu")
    pd.testing.assert_frame_equal(fresh.effects, effects)
    assert resumed == 2 * 3 - 2  # two models of three batches, two done before


def test_five_folds(tmp_path: Path) -> None:
    """Each clip tested once, neurons chosen anew for each fold, clips that the encoder knows marked."""
    study = hearing(make_study(tmp_path, folds=True, controls=3, rate_matched=1, refits=0), ["fold1", "fold2"])
    result = ablate(collected(study), device="cpu")
    row = result.effects.query("model == 'ssl' and kind == 'silenced' and `class` == 'low' and measure == 'accuracy'")
    assert row.clips.item() == 30 and row.in_sample.item() == 12
    assert sorted(result.neurons[result.neurons.model == "ssl"].fold.unique()) == [f"fold{i}" for i in range(1, 6)]
    ours = result.classifier[result.classifier.model == "ssl"]
    parts = ours[ours["class"] == "all classes"].set_index("part")
    assert parts.clips.to_dict() == {"all": 90, "unseen by the encoder": 54}
    theirs = result.classifier[result.classifier.model == "untrained"]
    assert (theirs.in_sample == 0).all()
    with pytest.raises(ValueError, match="no split 'fold9'"):
        ablate(hearing(study, ["fold9"]), device="cpu")


# -- bad input ---------------------------------------------------------------------------------------------------


def test_artifacts_of_another_model(study: Study) -> None:
    task = load_task(study, "tones")
    artifacts = load_artifacts(study.artifacts_directory("tones", "ssl"))
    with pytest.raises(ValueError, match="SHA-256"):
        trials.Bench(tuned(1), task, artifacts, study.directory / "x")


def test_artifacts_of_another_task(study: Study, tmp_path: Path) -> None:
    artifacts = load_artifacts(study.artifacts_directory("tones", "ssl"))
    tones(str(tmp_path))
    table = pd.read_csv(tmp_path / "meta.csv")
    table[table.label != "high"].to_csv(tmp_path / "two.csv", index=False)
    table.assign(label=table.label.map({"high": "low", "low": "high", "middle": "middle"})).to_csv(
        tmp_path / "swapped.csv", index=False
    )
    two, swapped = (
        from_metadata(tmp_path / f"{name}.csv", tmp_path, clip_seconds=1.0, name=name) for name in ("two", "swapped")
    )
    with pytest.raises(ValueError, match="3 classes .*task two has 2"):
        trials.Bench(tuned(), two, artifacts, tmp_path / "x")
    with pytest.raises(ValueError, match="other labels"):
        trials.Bench(tuned(), swapped, artifacts, tmp_path / "x")


def test_artifacts_without_clips(study: Study, tmp_path: Path) -> None:
    artifacts = load_artifacts(study.artifacts_directory("tones", "ssl"))
    for name in ("over_zero.pt", "classes.txt"):
        (tmp_path / name).write_bytes((artifacts.path / name).read_bytes())
    with pytest.raises(ValueError, match=r"needs manifest.json and features.pt"):
        trials.Bench(tuned(), load_task(study, "tones"), load_artifacts(tmp_path), tmp_path / "x")


def test_other_audio_than_was_collected(study: Study, tmp_path: Path) -> None:
    artifacts = load_artifacts(study.artifacts_directory("tones", "ssl"))
    task = tones(str(tmp_path))
    for path in tmp_path.glob("*.wav"):
        wave, rate = soundfile.read(path)
        soundfile.write(path, 2 * wave, rate, subtype="FLOAT")
    bench = trials.Bench(tuned(), task, artifacts, tmp_path / "x")
    with pytest.raises(ValueError, match=r"away from features.pt"):
        bench.run([trials.Trial(None, bench.tested)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": []}, "states no ablation targets"),
        ({"targets": [{"task": "tones", "classes": ["deep"], "mode": "specific"}]}, "no class 'deep'"),
        ({"targets": [{"task": "tones", "classes": ["low", "high", "middle"], "mode": "shared"}]}, "set is empty"),
        ({"models": ["sl"]}, "no model 'sl'"),
    ],
)
def test_bad_studies(study: Study, change: dict, message: str) -> None:
    content = study.model_dump()
    content["ablation"] |= change | ({} if "models" in change else {"models": ["ssl"]})
    content["selection"]["quantile"] = 0.9 if message == "set is empty" else content["selection"]["quantile"]
    with pytest.raises(ValueError, match=message):
        ablate(Study(**content, base=study.base), device="cpu")


def test_nothing_was_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run Ablations.ipynb"):
        load_result(make_study(tmp_path))
    with pytest.raises(FileNotFoundError):
        ablate(make_study(tmp_path), device="cpu")
