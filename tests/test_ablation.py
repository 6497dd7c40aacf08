"""The deactivation experiment on a toy whose neurons are planted, so that the right answer is known."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from conftest import write_sounds
from torch import nn

from aape.artifacts.belonging import check_embedded
from aape.artifacts.folder import load_artifacts
from aape.causal import runner
from aape.causal.classifier import fit, folds
from aape.causal.controls import activity_matched, can_be_disjoint, disjoint_matched, overlap
from aape.causal.intervals import paired_interval, possible
from aape.causal.runner import Intervention, Runner
from aape.causal.silencing import silenced
from aape.collecting.passing import collect
from aape.encoders.encoder import Encoder
from aape.encoders.module import from_module
from aape.figures import ablation as figures_ablation
from aape.figures.style import save
from aape.files import FolderBusy, folder_lock
from aape.neurons.pvalues import one_sided_p
from aape.neurons.selection import select
from aape.sounds.loading import from_metadata
from aape.sounds.task import Task
from aape.study.ablation import ablate
from aape.study.ablation_result import AblationResult, load_result, read_text_table
from aape.study.effects import AT, against_controls
from aape.study.experiment import TABLES
from aape.study.loading import load_encoder, load_task
from aape.study.study import AblationTarget, Study
from aape.study.targets import target_neurons

RATE, SAMPLES, CLASSES = 400, 400, ("high", "low", "middle")
TONES = {"low": 20, "middle": 60, "high": 120}  # Hz
NEURONS = 40


class Tuned(nn.Module):
    """One layer of 40 neurons: the first 4 hear 20 Hz, the next 4 60 Hz, the next 4 120 Hz, the others noise."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        time = torch.arange(50) / RATE
        self.kernel = nn.Parameter(
            torch.randn(2, NEURONS, 50, generator=generator) * 0.1, requires_grad=False
        )
        for i, tone in enumerate(TONES.values()):
            for k in range(4):
                self.kernel[:, 4 * i + k] = torch.cos(2 * torch.pi * (tone * time + k / 4)) / 5
        self.act = nn.ReLU()

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        x = nn.functional.conv1d(wave[:, None], self.kernel[0][:, None], stride=10)
        return self.act(x.transpose(1, 2) - 0.2).mean(dim=1)  # [batch, 40]


def tuned(seed: int = 0) -> Encoder:
    module = Tuned(seed)
    how = {"sample_rate": RATE, "clip_seconds": 1.0, "name": f"tuned {seed}"}
    return from_module(module, activations="act", embed=module, **how)  # type: ignore[arg-type]


def tones(folder: str, folds: bool = False) -> Task:
    """Tones in noise: 30 clips a class, in groups of two."""
    root = Path(folder)
    if not (root / "clips.csv").exists():
        rng, time, waves, rows = np.random.default_rng(0), np.arange(SAMPLES) / RATE, [], []
        for i in range(90):
            label, part = sorted(TONES)[i % 3], (i // 3) % 5
            noise = 0.3 * rng.normal(size=SAMPLES)
            waves.append(0.3 * (noise + np.cos(2 * np.pi * (TONES[label] * time + rng.uniform()))))
            split = part + 1 if folds else ("train", "train", "valid", "test", "test")[part]
            rows.append((label, split, f"g{i % 3}-{i // 30}-{part}"))
        write_sounds(root, waves, RATE, rows, ["label", "fold" if folds else "split", "group"])
    return from_metadata(root / "clips.csv", root / "audio", clip_seconds=1.0, name="tones")


def make_study(root: Path, folds: bool = False, **settings: object) -> Study:
    ablation_settings: dict = {
        "targets": [{"task": "tones", "classes": ["low"], "mode": "specific"}], "controls": 39,
        "other_modes": 5, "disjoint": 6, "panel": 4, "bootstrap": 200, "gains": [0.0, 0.5, 1.0, 2.0],
    } | settings  # fmt: skip
    task = {
        "loader": f"{__name__}:tones",
        "options": {"folder": str(root / "audio"), "folds": folds},
        "rate": 0.3,
    }
    ssl = {"loader": f"{__name__}:tuned", "folder": "analysis"}
    other = {"loader": f"{__name__}:tuned", "options": {"seed": 1}, "folder": "untrained"}
    content = {
        "models": {"ssl": ssl, "untrained": other},
        "tasks": {"tones": task},
        "selection": {"quantile": 0.7},
    }
    return Study(name="toy", substitute=True, base=root, ablation=ablation_settings, **content)  # type: ignore[arg-type]


def collected(study: Study) -> Study:
    for model in study.models:
        out = study.artifacts_directory("tones", model)
        collect(load_encoder(study, model), load_task(study, "tones"), out, device="cpu")
    return study


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread runs the experiments in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return collected(make_study(tmp_path_factory.mktemp("ablation")))


@pytest.fixture(scope="module")
def result(study: Study) -> AblationResult:
    return ablate(study, device="cpu")


def test_controls_have_the_targets_numbers_by_layer_and_stratum_and_may_overlap_with_it() -> None:
    rates = np.random.default_rng(1).uniform(size=(3, 8))  # a layer of 8 is one stratum
    target = np.array([[0, 1], [0, 2], [2, 5]])
    drawn = [activity_matched(target, rates, np.random.default_rng(i)) for i in range(200)]
    for control in drawn:
        assert control[:, 0].tolist() == [0, 0, 2]
        assert len({tuple(row) for row in control.tolist()}) == 3
    assert {int(n) for c in drawn for n in c[:2, 1]} == set(
        range(8)
    )  # every neuron turns up, the target's too
    assert np.array_equal(drawn[3], activity_matched(target, rates, np.random.default_rng(3)))

    rates = np.random.default_rng(0).uniform(size=(2, 500))
    busiest, middle = np.argsort(rates[0])[-15:], np.argsort(rates[1])[250]
    target = np.array([[0, int(n)] for n in busiest] + [[1, int(middle)]])
    for i in range(20):
        control = activity_matched(target, rates, np.random.default_rng(i))
        assert (
            control[:, 0].tolist() == [0] * 15 + [1]
            and len({tuple(row) for row in control.tolist()}) == 16
        )
        assert set(control[:15, 1]) <= set(
            np.argsort(rates[0])[-20:]
        )  # the stratum of the 20 busiest
        assert abs(rates[1, control[15, 1]] - rates[1, middle]) < 0.1


def test_disjoint_sets_have_none_of_the_targets_neurons_and_are_near_in_activity() -> None:
    rates = np.sort(np.random.default_rng(0).uniform(size=(2, 100)))
    target = np.array([[0, n] for n in range(40, 60, 2)] + [[1, 7]])
    for i in range(20):
        control = disjoint_matched(target, rates, np.random.default_rng(i))
        assert control[:, 0].tolist() == target[:, 0].tolist() and overlap(target, control) == 0
        assert len({tuple(row) for row in control.tolist()}) == 11
        assert abs(rates[tuple(control.T)].mean() - rates[tuple(target.T)].mean()) < 0.08
    assert overlap(target, target[:3]) == pytest.approx(3 / 11)
    assert not can_be_disjoint(np.array([[0, n] for n in range(51)]), 100)
    with pytest.raises(ValueError, match="more than half of a layer"):
        disjoint_matched(np.array([[0, n] for n in range(51)]), rates, np.random.default_rng(0))


@pytest.mark.parametrize("strata", [1, 3])
def test_targets_drawn_by_the_controls_own_rule_have_uniform_p(strata: int) -> None:
    """Also where the target is 30 % of its layer: leaving its neurons out of the controls would give 0.145 below 0.05."""
    rng = np.random.default_rng(0)
    width = 20 * strata
    rates = rng.uniform(size=(1, width))
    weights = rng.pareto(1.5, width)  # what a set does is not the sum of its parts
    does = lambda neurons: -np.sqrt(weights[neurons[:, 1]].sum()) * weights[neurons[:, 1]].max()  # noqa: E731
    base = np.array([[0, n] for n in rng.choice(width, 3 * width // 10, replace=False)])
    p = []
    for _ in range(600):
        target = activity_matched(base, rates, rng)
        p.append(
            one_sided_p(
                does(target),
                np.array([does(activity_matched(target, rates, rng)) for _ in range(39)]),
            )
        )
    for level in (0.05, 0.25, 0.5, 0.75):  # within three standard errors
        assert np.mean(np.array(p) <= level) == pytest.approx(
            level, abs=3 * np.sqrt(level * (1 - level) / 600) + 0.01
        )


@pytest.mark.parametrize(
    ("mode", "classes", "exclusive", "expected"),
    [
        ("specific", "a", False, [0, 2]),
        ("specific", "a", True, [0]),
        ("specific", "c", False, []),
        ("shared", "ab", False, [2]),
        ("all", "ab", False, [0, 1, 2]),
        ("all", "", False, [0, 1, 2]),
        *(("specific", "ab", False, None), ("shared", "a", False, None), ("all", "", True, None)),
        ("shared", "ad", False, None),  # no class d
    ],
)
def test_targets(mode: str, classes: str, exclusive: bool, expected: list | None) -> None:
    p = np.full((1, 6, 3), 0.01)
    p[0, 0, 0] = p[0, 1, 1] = p[0, 2, :2] = 0.9
    selection = select(p, rate=0.5, quantile=14 / 18, classes=["a", "b", "c"])
    target = AblationTarget(task="t", classes=list(classes), mode=mode, exclusive=exclusive)  # type: ignore[arg-type]
    with (
        contextlib.nullcontext()
        if expected is not None
        else pytest.raises(ValueError, match="target")
    ):
        assert sorted(target_neurons(selection, target)[:, 1].tolist()) == expected


def test_the_interval_is_paired_by_groups_and_honest_with_eight_of_them() -> None:
    rng = np.random.default_rng(0)
    difference = np.repeat(rng.normal(size=40), 10)  # ten clips of a group move together
    grouped = paired_interval(difference, np.repeat(np.arange(40), 10), count=2000, rng=rng)
    single = paired_interval(difference, np.arange(400), count=2000, rng=rng)
    assert grouped[0] < difference.mean() < grouped[1]
    assert (grouped[1] - grouped[0]) > 2 * (single[1] - single[0])
    assert grouped[1] - grouped[0] == pytest.approx(
        2 * 2.02 * difference[::10].std() / np.sqrt(39), rel=0.15
    )
    assert np.isnan(paired_interval(difference, np.arange(400) % 2, count=100, rng=rng)).all()
    assert np.isnan(paired_interval(np.zeros(400), np.arange(400), count=100, rng=rng)).all()
    assert paired_interval(np.ones(400), np.arange(400), count=100, rng=rng) == (1.0, 1.0)

    covered, covered_minus = [], []
    for _ in range(400):  # percentiles of the mean cover 88.5 % here
        sizes = rng.integers(2, 9, 8)
        groups = np.repeat(np.arange(8), sizes)
        values = np.repeat(rng.normal(size=8), sizes) + rng.normal(size=sizes.sum())
        low, high = paired_interval(values, groups, count=400, rng=rng)
        covered.append(low <= 0 <= high)
        others = rng.normal(0.5, 1, 40), np.arange(100, 140)
        low, high = paired_interval(values, groups, *others, count=400, rng=rng)
        covered_minus.append(low <= -0.5 <= high)
    assert 0.92 <= np.mean(covered) <= 0.98 and 0.92 <= np.mean(covered_minus) <= 0.98


def test_a_target_may_not_stand_twice(study: Study) -> None:
    with pytest.raises(ValueError, match=r"target low of tones \(specific\) is stated twice"):
        ablate(study, targets=[{"task": "tones", "classes": ["low"], "mode": "specific"}] * 2)


@pytest.mark.parametrize(("groups", "clips", "share"), [(8, 5, 0.05), (265, 1, 0.004)])
def test_the_interval_of_accuracy_holds_the_truth_where_few_clips_change(
    groups: int, clips: int, share: float
) -> None:
    rng, covered, wide = np.random.default_rng(0), [], []
    for _ in range(300):
        points = -100.0 * (rng.random(groups * clips) < share)
        if points.any():
            low, high = paired_interval(
                points, np.arange(len(points)) // clips, count=300, rng=rng, step=100.0
            )
            covered.append(low <= -100 * share <= high)
            wide.append(high - low)
            assert (
                low < points.mean() < high
            )  # without the half clip it ends at the mean, and covers 68 and 42 %
    assert np.mean(covered) > 0.9 and np.median(wide) < 1000 * max(share, 1 / len(points))


def test_no_interval_goes_beyond_what_a_class_can_lose_or_gain() -> None:
    assert possible((-114.5, 40.0), "accuracy", 79.2) == pytest.approx((-79.2, 20.8))
    assert possible((-9.0, 2.0), "log_probability", -0.5) == (-9.0, 0.5)
    assert possible((-150.0, 80.0), "accuracy", 80.0, 90.0) == (
        -90.0,
        80.0,
    )  # it loses 80, the others gain 10
    assert possible((-9.0, 9.0), "log_probability", -0.5, -2.0) == (-9.0, 9.0)
    assert np.isnan(possible((np.nan, np.nan), "accuracy", 50.0)).all()


def test_p_on_both_sides_and_q_by_hand() -> None:
    at = dict(zip(AT, ("t", "m", "x", "specific"), strict=True)) | {
        "kind": "mean",
        "measure": "log_probability",
    }
    own = pd.DataFrame(
        [at | {"class": "falls", "effect": -2.0}, at | {"class": "rises", "effect": 2.0}]
    )
    likeness = {"overlap": 0.5, "activity": 0.1}
    sets = [at | likeness | {"class": c, "control": "activity-matched"} for c in ("falls", "rises")]
    values = np.linspace(-1, 1, 39)
    table = against_controls(
        own, pd.DataFrame([row | {"effect": v} for row in sets for v in values])
    )
    assert table.active_p.tolist() == [1 / 40, 1.0] and table.active_p_two_sided.tolist() == [
        2 / 40,
        2 / 40,
    ]
    assert table.active_q.tolist() == [2 / 40, 1.0] and table.active_mean.tolist() == pytest.approx(
        [0, 0]
    )
    assert table.active_controls.tolist() == [39, 39] and table.disjoint_controls.tolist() == [0, 0]
    assert table.at_floor.tolist() == [True, False] and table.overlap.tolist() == [0.5, 0.5]
    # two tests: an effect 1.96 standard deviations below the mean would have reached q < 0.05 alone
    assert table.detectable.tolist() == pytest.approx([-1.95996 * values.std(ddof=1)] * 2, rel=1e-4)


def test_planted_neurons_matter(study: Study, result: AblationResult) -> None:
    summary = result.summary()
    ours = summary[summary.model == "ssl"].iloc[0]
    assert ours["class"] == "low" and ours.neurons >= 2
    assert ours.active_p == ours.active_q == 1 / 40 and ours.active_p_two_sided == 2 / 40
    assert ours.effect < ours.active_low and ours["rank"] == 1
    assert (
        ours.low <= ours.difference <= ours.high
        and ours.effect_low <= ours.effect <= ours.effect_high
    )
    assert set(result.neurons[result.neurons.model == "ssl"].neuron) <= {0, 1, 2, 3}
    assert "1 of 1 (ssl, detectable: -" in result.verdict() and "at chance" not in result.verdict()
    assert (
        len(result.table().columns) == 8
        and "0.025 *" in result.table().q.tolist()
        and len(repr(result)) < 2000
    )
    for name in TABLES:  # without the models
        pd.testing.assert_frame_equal(
            getattr(load_result(study), name), getattr(result, name), check_dtype=False
        )


def test_numbers_by_hand(study: Study, result: AblationResult) -> None:
    """Effects recomputed by the plain way: change the neurons, embed everything, classify, take the panel off."""
    encoder, task = tuned(), load_task(study, "tones")
    artifacts = load_artifacts(study.artifacts_directory("tones", "ssl"))
    (fold,) = folds(artifacts.splits, artifacts.labels, artifacts.classes, artifacts.groups)
    classifier = fit(artifacts.embeddings(), artifacts.labels, artifacts.classes, fold)
    waves = lambda clips: torch.from_numpy(np.stack([task.read(int(i), RATE)[0] for i in clips]))  # noqa: E731
    wave, truth = waves(fold.test), task.labels[fold.test]
    neurons = result.neurons[result.neurons.model == "ssl"][["layer", "neuron"]].to_numpy()
    panel_of = Runner(encoder, task, artifacts, study.directory / "by_hand").panel
    kept: list[torch.Tensor] = []
    with encoder.module.act.register_forward_hook(lambda _module, _inputs, out: kept.append(out)):
        encoder.embed(waves(fold.fit))
    means = kept[0].mean(dim=(0, 1)).numpy()
    found = {}
    with silenced(encoder, neurons):
        found["zero"] = encoder.embed(wave)
    with silenced(encoder, neurons, replace_by=means[neurons[:, 1]]):
        found["mean"] = encoder.embed(wave)
    with silenced(encoder, (neurons + [0, 1]) % NEURONS):
        found["zero, index plus one"] = encoder.embed(wave)

    before = classifier.log_probabilities(artifacts.embeddings()[fold.test])
    low, panel = (
        truth == CLASSES.index("low"),
        panel_of(4)[fold.test] & (truth != CLASSES.index("low")),
    )
    assert panel.sum() == 8
    for kind, embedded in found.items():
        after = classifier.log_probabilities(embedded.numpy())
        rows = result.effects.query(
            f"model == 'ssl' and kind == {kind!r} and `class` == 'low'"
        ).set_index("measure")
        assert rows.after["accuracy"] == pytest.approx(
            100 * (after.argmax(axis=1) == 1)[low].mean()
        )
        assert rows.after["log_probability"] == pytest.approx(
            after[low, 1].mean(), abs=1e-3
        )  # float16 means
        moved = (after - before)[np.arange(len(truth)), truth]
        assert rows.effect["log_probability"] == pytest.approx(
            moved[low].mean() - moved[panel].mean(), abs=2e-3
        )


def test_the_other_tables(result: AblationResult) -> None:
    effects, controls = result.effects, result.controls
    assert set(effects.kind) == {"mean", "zero", "zero, index plus one"}
    ours = controls[(controls.model == "ssl") & (controls.measure == "accuracy")]
    drawn = ours.groupby(["kind", "control"]).size().to_dict()
    disjoint = "activity-matched, disjoint"
    assert drawn == {
        ("mean", "activity-matched"): 39,
        ("zero", "activity-matched"): 5,
        ("mean", disjoint): 6,
    }
    assert (ours[ours.control == disjoint].overlap == 0).all() and ours.overlap.between(0, 1).all()
    assert ours.overlap[ours.control != disjoint].mean() > 0
    assert set(ours["class"]) == {"low"} and ours.effect.notna().all()
    gains = result.gains.query(
        "model == 'ssl' and `class` == 'low' and measure == 'log_probability'"
    ).set_index("gain")
    assert gains.difference[1.0] == 0 > gains.difference[0.5] > gains.difference[0.0]
    matrix = result.off_target.query("model == 'ssl' and measure == 'log_probability'")
    for name, row in matrix.groupby("silenced"):
        assert (
            row.loc[row.difference.idxmin(), "class"] == name
        )  # planted neurons hurt their own class most
    mean = effects.query("kind == 'mean' and measure == 'log_probability'")
    assert mean.clips.tolist() == [12] * 6
    assert not effects[~effects.targeted].active_q.notna().any()


def test_controls_end_early_where_more_cannot_matter(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every set does the same random things: ten controls on either side come long before 2,000."""
    rng = np.random.default_rng(0)

    def noise(
        runner: Runner, interventions: list[Intervention], clips: np.ndarray, bar: object = None
    ) -> np.ndarray:
        scores = rng.integers(0, 2, (len(interventions), 1, 2, len(runner.labels))) * [
            [100.0],
            [1.0],
        ]
        return np.where(clips, scores, np.nan)

    artifacts, task = (
        load_artifacts(study.artifacts_directory("tones", "ssl")),
        load_task(study, "tones"),
    )
    monkeypatch.setattr(Runner, "run", noise)
    settings = {
        "controls": 2000,
        "other_modes": 0,
        "disjoint": 0,
        "gains": [],
        "off_target": False,
        "bootstrap": 0,
    }
    many = ablate(
        tuned(), task, artifacts, targets=["low"], rate=0.3, quantile=0.7, device="cpu", **settings
    )
    row = many.summary().iloc[0]
    assert 20 <= row.active_controls < 2000 and row.active_p >= 11 / 2001
    assert (many.controls.groupby(["kind", "control", "number"]).size() == 2).all()  # two measures


def test_by_default_all_test_clips_of_other_classes_count_and_q_can_be_reached(
    study: Study,
) -> None:
    artifacts, task = (
        load_artifacts(study.artifacts_directory("tones", "ssl")),
        load_task(study, "tones"),
    )
    few = {"modes": ["zero"], "disjoint": 0, "gains": [], "off_target": False, "bootstrap": 0}
    result = ablate(
        tuned(), task, artifacts, targets=["low"], rate=0.3, quantile=0.7, device="cpu", **few
    )
    rows = result.effects.query("kind == 'zero' and measure == 'log_probability'").set_index(
        "class"
    )
    assert rows.off_target["low"] == pytest.approx(
        rows.difference[["high", "middle"]].mean()
    )  # 12 clips each
    assert rows.active_q["low"] < 0.05


def test_without_a_study_file(
    study: Study, result: AblationResult, capsys: pytest.CaptureFixture
) -> None:
    artifacts, task = (
        load_artifacts(study.artifacts_directory("tones", "ssl")),
        load_task(study, "tones"),
    )
    settings = study.ablation.model_dump(exclude={"targets", "models", "controls"})
    options = {"rate": 0.3, "quantile": 0.7, "device": "cpu", "controls": 39} | settings
    alone = ablate(tuned(), task, artifacts, targets=["low"], **options)
    theirs = result.effects[result.effects.model == "ssl"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone.effects.drop(columns="model"), theirs.drop(columns="model"))
    assert "passes of a clip" in (said := capsys.readouterr().out) and "at best" not in said
    two = ablate(
        tuned(),
        task,
        artifacts,
        targets=["low", {"classes": ["low", "middle"], "mode": "all"}],
        **options,
    )
    assert (
        "q = 0.075 at best. q < 0.05 needs 60 controls" in capsys.readouterr().out
    )  # 3 classes, 39 controls
    assert set(two.effects.target) == {"low", "all of low, middle"}
    with pytest.raises(
        ValueError, match=r"no model has a neuron for the target 'low & middle' of tones \(shared\)"
    ):
        ablate(tuned(), task, artifacts, targets=[("low", "middle")], **options)
    with pytest.raises(ValueError, match="needs all four"):
        ablate(tuned(), task, artifacts)


def test_tables_that_a_study_leaves_empty(tmp_path: Path) -> None:
    nothing = {"controls": 0, "other_modes": 0, "disjoint": 0, "gains": [], "off_target": False}
    study = collected(make_study(tmp_path, **nothing))
    ablate(study, device="cpu")
    again = load_result(study)
    assert again.controls.empty and again.off_target.empty and again.gains.empty
    assert again.summary().active_p.isna().all() and "0 of 0 (ssl)" in again.verdict()
    assert figures_ablation.all_figures(again)


def test_names_are_read_back_as_they_are_and_no_figure_takes_anothers_file(
    tmp_path: Path, result
) -> None:
    names = ["None", "NA", "nan", "01", "low"]
    pd.DataFrame({"class": names, "task": names, "low": [1.5, None, 2, 3, 4]}).to_csv(
        tmp_path / "x.csv", index=False
    )
    read = read_text_table(tmp_path / "x.csv")
    assert (
        read["class"].tolist() == read.task.tolist() == names
        and read.low.isna().tolist() == [False, True] + [False] * 3
    )
    rows = result.effects[result.effects.model == "ssl"]
    twice = pd.concat([rows.assign(target=name) for name in ("US$ & A$", "a_us")])
    found = figures_ablation.all_figures(replace(result, effects=twice.replace({"a_us": "us & a"})))
    for name in ("ablation_tones-us_a-specific", "ablation_tones-us_a2-specific"):
        assert save(found[name], tmp_path, name).stat().st_size > 5000


def test_a_second_run_computes_nothing_and_more_controls_only_what_is_new(
    study: Study, result: AblationResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Mock(wraps=runner.embed_with_sets)
    monkeypatch.setattr(runner, "embed_with_sets", counted)
    pd.testing.assert_frame_equal(ablate(study, device="cpu").effects, result.effects)
    counted.assert_not_called()
    ablate(study, other_modes=10, device="cpu")
    passes = [
        len(wave) * len(sets) for _, wave, sets in (call.args for call in counted.call_args_list)
    ]
    # ten sets and, to check the clips, none; twelve clips of the class and eight of the panel; two models
    assert sum(passes) == 11 * (12 + 8) * 2
    ablate(study, device="cpu")  # leaves the CSVs as they were
    with folder_lock(study.directory / "ablations"), pytest.raises(FolderBusy, match="Wait for it"):
        ablate(study, device="cpu")


def test_an_interrupted_run_resumes_and_processes_change_no_number(
    tmp_path: Path, result: AblationResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = collected(make_study(tmp_path))
    original, calls = runner.embed_with_sets, iter(range(4))

    def dies(*arguments: object) -> object:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "embed_with_sets", dies)
        ablate(study, device="cpu")
    assert list((study.directory / "ablations").rglob("*.npz"))
    torch.set_num_threads(2)
    try:
        again = ablate(study, device="cpu")
    finally:
        torch.set_num_threads(1)
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(again, name), getattr(result, name))


def test_five_folds(tmp_path: Path) -> None:
    """Each clip tested once, neurons chosen anew for each fold."""
    quick = {"controls": 3, "other_modes": 0, "disjoint": 0}
    study = collected(make_study(tmp_path, True, **quick))
    result = ablate(study, device="cpu")
    row = result.effects.query(
        "model == 'ssl' and kind == 'mean' and `class` == 'low' and measure == 'accuracy'"
    )
    assert row.clips.item() == 30
    assert sorted(result.neurons[result.neurons.model == "ssl"].fold.unique()) == [
        f"fold{i}" for i in range(1, 6)
    ]
    every = result.classifier[result.classifier["class"] == "all classes"]
    assert every.clips.tolist() == [90, 90]


def test_what_does_not_belong_together_is_refused(study: Study, tmp_path: Path) -> None:
    artifacts, task = (
        load_artifacts(study.artifacts_directory("tones", "ssl")),
        tones(str(tmp_path)),
    )
    table = pd.read_csv(tmp_path / "clips.csv")
    for name in ("over_zero.pt", "classes.txt"):
        (tmp_path / name).write_bytes((artifacts.path / name).read_bytes())
    for encoder, rows, theirs, message in (
        (tuned(1), table, artifacts, "SHA-256"),
        (tuned(), table[table.label != "high"], artifacts, "3 classes .*task other has 2"),
        (tuned(), table.replace({"high": "low", "low": "high"}), artifacts, "other labels"),
        (tuned(), table[5:], artifacts, r"5 clip\(s\) that .* does not list, e.g. 000.wav"),
        (tuned(), table, load_artifacts(tmp_path), "no manifest.json with clips"),
    ):
        rows.to_csv(tmp_path / "other.csv", index=False)
        other = from_metadata(
            tmp_path / "other.csv", tmp_path / "audio", clip_seconds=1.0, name="other"
        )
        with pytest.raises(ValueError, match=message):
            Runner(encoder, other, theirs, tmp_path / "x")
    with pytest.raises(ValueError, match="clips of 1 s, task tones has 0.5 s"):
        Runner(tuned(), replace(task, clip_seconds=0.5), artifacts, tmp_path / "x")
    known = Runner(tuned(), task, artifacts, tmp_path / "x").intact
    for path in (tmp_path / "audio").iterdir():  # other audio than was collected
        wave, rate = soundfile.read(path)
        soundfile.write(path, 2 * wave, rate, subtype="FLOAT")
    again = Runner(tuned(), task, artifacts, tmp_path / "x")
    np.testing.assert_array_equal(again.intact, known)  # kept, and of the right audio
    silent = Intervention(dict.fromkeys(again.classifiers, np.array([[0, 0]])))
    for folder in ("x", "y"):  # with and without kept results
        other_audio = Runner(tuned(), task, artifacts, tmp_path / folder)
        with pytest.raises(ValueError, match=r"differ from features.pt"):
            other_audio.run([silent], other_audio.tested)
    small = 1e-4 * artifacts.embeddings()[:3]
    check_embedded(artifacts, np.arange(3), small * 1.0001, small)
    with pytest.raises(ValueError, match="differ from features.pt"):
        check_embedded(artifacts, np.arange(3), small * 1.01, small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": []}, "states no ablation targets"),
        (
            {"targets": [{"task": "tones", "classes": ["deep"], "mode": "specific"}]},
            "no class 'deep'",
        ),
        ({"models": ["sl"]}, "no model 'sl'"),
    ],
)
def test_bad_studies(study: Study, change: dict, message: str) -> None:
    content = study.model_dump()
    content["ablation"] |= {"models": ["ssl"]} | change
    with pytest.raises(ValueError, match=message):
        ablate(Study(**content, base=study.base), device="cpu")
