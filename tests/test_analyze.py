"""From artifacts to tables and figures, calibrated selection, and what is refused."""

import os
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from fake_artifacts import TOKENS, planted_counts, write_artifacts, write_study
from matplotlib.figure import Figure

from aape.figures.activity import activity_by_layer
from aape.figures.sharing import _octave_axes, octave_peaks
from aape.figures.style import colours, save, short_file_name
from aape.files import FolderBusy, folder_lock
from aape.study.analysis import check_together
from aape.study.drawing import panels_of
from aape.study.published import published_lists, published_neurons
from aape.study.shared_neurons import pitch_of
from aape.study.study import load_study
from aape.study.tables import spread
from common_analyze import analyze, load_artifacts

EVENTS = ["dog", "rain", "siren", "sea_waves"]
PITCHES = [str(p) for p in range(48, 74)]


def fill(root: Path, models=("analysis", "vit", "untrained")) -> Path:
    """A study of two tasks; the pitch task shares neurons between octaves."""
    sharing = [("within_task-events", "events", "events"), ("cross_task-notes", "notes", "notes")]
    path = write_study(root / "study.yaml", {"events": "event", "notes": "pitch"}, sharing)
    out = root / "outputs" / "fake"
    for seed, folder in enumerate(models):
        each = 0 if folder == "untrained" else 6
        labels = np.repeat(np.arange(4), 36)
        counts = planted_counts(labels, 4, seed=seed, each=each)
        about = {"groups": np.arange(144) // 2, "padded": 20, "weights": folder}
        write_artifacts(out / f"events_{folder}", counts, labels, EVENTS, task="events", **about)
        labels = np.repeat(np.arange(26), 8)
        share = [int(p) % 12 for p in PITCHES]
        counts = planted_counts(labels, 26, seed=seed, each=2 * bool(each), share=share)
        write_artifacts(
            out / f"notes_{folder}", counts, labels, PITCHES, task="notes", weights=folder
        )
    return path


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    return analyze(fill(tmp_path_factory.mktemp("analysis")), progress=False)


def test_every_table_has_every_model(analysis):
    labels = ["SSL ViT", "SL ViT", "untrained"]
    assert (
        analysis.statistics.model.tolist() == ["ssl", "sl", "untrained"] * 2
        and analysis.missing == []
    )
    assert analysis.overview.model.tolist() == analysis.sharing_summary.model.tolist() == labels * 2
    assert len(analysis.sensitivity) == 11 * 3 and set(analysis.sensitivity.model) == set(labels)
    for model, folder in (("ssl", "analysis"), ("sl", "vit"), ("untrained", "untrained")):
        table = pd.read_csv(analysis.study.directory / f"task_level_neuron_statistics_{folder}.csv")
        assert table.task.tolist() == ["events", "notes"] and table.loc[0, "tokens"] == 144 * TOKENS
        found = [
            analysis.results[task, model].members.any(axis=2).sum() for task in ("events", "notes")
        ]
        assert table.filter(regex=r"^layer_\d").sum(axis=1).tolist() == found
        assert (table.q_level == analysis.study.chance.q).all() and (
            table.effect == analysis.study.chance.effect
        ).all()
    assert len(repr(analysis)) < 600 and "SSL ViT" in analysis._repr_html_()


def test_planted_structure_survives_and_noise_does_not(analysis):
    ssl, untrained = (
        analysis.statistics.set_index(["task", "model"]).loc["events", m]
        for m in ("ssl", "untrained")
    )
    assert ssl.calibrated_coverage == 1 and untrained.calibrated_coverage == 0
    assert ssl.mean_aape < ssl.mean_aape_null_low and ssl.p_mean_aape == pytest.approx(
        1 / 41, abs=1e-9
    )
    assert (
        ssl.coverage_null_mean == pytest.approx(1, abs=0.05) and ssl.calibrated_neurons >= 18
    )  # of 24
    assert ssl.permutation.startswith("labels permuted among 72 groups of one class (72 can move)")


def test_neurons_csv_lists_every_class_specific_neuron(analysis):
    result = analysis.results["events", "ssl"]
    assert all(r.drawn is not None for r in analysis.results.values() if "permutations" in r.row)
    table = pd.read_csv(analysis.study.directory / "events_analysis" / "neurons.csv")
    assert table.columns[:4].tolist() == ["layer", "neuron", "class", "rate"]
    assert {"aape", "q_value", "aape_q_value", "rate_outside", "calibrated"} <= set(table)
    assert len(table) == result.members.sum() and table.calibrated.sum() == result.calibrated.sum()
    assert table.auprc.mean() == pytest.approx(result.row["auprc"], rel=1e-4)
    assert table.auprc.mean() > 0.6 > result.row["auprc_permuted"]
    artifacts = load_artifacts(analysis.study.directory / "events_analysis")
    p = artifacts.probabilities()
    index = table["class"].map(EVENTS.index)
    assert table.rate.to_numpy() == pytest.approx(p[table.layer, table.neuron, index], rel=1e-5)
    others = [artifacts.counts[artifacts.labels != c].mean(axis=0) / TOKENS for c in range(4)]
    expected = [
        others[c][layer, n] for c, layer, n in zip(index, table.layer, table.neuron, strict=True)
    ]
    assert table.rate_outside.to_numpy() == pytest.approx(expected, rel=1e-5)


def test_octaves_are_shared_in_the_planted_pitches(analysis):
    curve = analysis.octaves[
        (analysis.octaves.model == "ssl") & analysis.octaves.semitones.isin([11, 12, 13])
    ]
    eleven, twelve, thirteen = curve.mean_jaccard
    assert twelve > 1.5 * max(eleven, thirteen)
    assert curve.chance_high.iloc[1] < twelve
    row = analysis.sharing_summary.set_index(["figure", "model"]).loc["cross_task-notes", "SSL ViT"]
    assert octave_peaks(analysis.octaves[analysis.octaves.model == "ssl"])[:1] == [12]
    assert (
        row["alike"] == "an octave apart"
        and row["alike p"] < 0.001
        and row["alike Jaccard"] > row["other Jaccard"]
    )
    assert [pitch_of(name) for name in ("60", "pitch_021", "C4_060")] == [60, 21, 60]
    with pytest.raises(ValueError, match="'dog' of a pitch task"):
        pitch_of("dog")


def test_figures_are_written_as_pdf_and_png_with_something_on_them(analysis):
    assert {"within_task-events", "cross_task-notes", "neurons_by_layer", "chance"} == set(
        analysis.figures
    )
    for path in analysis.figures.values():
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        pixels = matplotlib.image.imread(path)[..., :3]
        assert pixels.std() > 0.02 and min(pixels.shape[:2]) > 200


def test_a_second_run_computes_nothing_and_gives_the_same(analysis, monkeypatch):
    monkeypatch.setattr("aape.study.analysis.task_result", None)  # it would be called
    again = analyze(analysis.study, draw=False, progress=False)
    for name in ("overview", "classes", "sensitivity", "sharing_summary"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(analysis, name))
    assert np.array_equal(
        again.results["notes", "sl"].members, analysis.results["notes", "sl"].members
    )


def test_sensitivity_varies_filter_rate_quantile_and_padding(analysis):
    table = pd.read_csv(analysis.study.directory / "sensitivity.csv")
    mine = table[(table.task == "events") & (table.model == "ssl")]
    assert mine.setting.tolist() == ["as stated", "filter", "rate", "rate", "quantile", "quantile", "zero padding"] + ["calibrated, least effect"] * 4  # fmt: skip
    assert mine.overlap.iloc[0] == 1 and (mine.overlap.iloc[1:6] < 1).any()
    effects = mine.iloc[7:].set_index("value")
    assert (
        effects.index.tolist() == ["0", "0.05", "0.1 (stated)", "0.2"]
        and effects.overlap["0.1 (stated)"] == 1
    )
    assert effects.per_class_mean.is_monotonic_decreasing
    row = analysis.results["events", "ssl"].row
    assert effects.per_class_mean["0.1 (stated)"] == pytest.approx(
        row["calibrated_per_class_mean"], rel=1e-5
    )
    assert mine.note.iloc[6] == "11.1% of the tokens"  # 20 of 60 in every third clip


def test_published_lists_are_compared_where_shape_and_weights_allow(tmp_path, monkeypatch):
    """Probabilities whose selection is the published set of ANG and HAP, one neuron too many, and one of all classes."""
    path = write_study(
        tmp_path / "s.yaml", {"cremad": "emotion"}, [], substitute=False, reproduces_paper=True,
        selection={"rate": 24 / 36864},
    )  # fmt: skip
    p = np.full((12, 3072, 3), 0.05)
    for layer, neuron in [*published_neurons("cremad", "ANG", "HAP"), (11, 7)]:
        p[layer, neuron] = [0.9, 0.0, 0.9]
    p[11, 8] = [0.9, 0.8, 0.7]
    folder = tmp_path / "outputs" / "fake" / "cremad_analysis"
    folder.mkdir(parents=True)
    torch.save(torch.from_numpy(p.astype(np.float32)), folder / "over_zero.pt")
    (folder / "classes.txt").write_text("ANG\nDIS\nHAP\n")
    found = analyze(path, draw=False, progress=False)
    assert (found.published_lists.remark == "not comparable: weights random or unknown").all()
    assert "no counts per clip" in found.notes[0]
    monkeypatch.setattr("aape.study.published.not_comparable", lambda *_: "")
    lists = published_lists(load_study(path), {("cremad", "ssl"): load_artifacts(folder)})
    assert (
        lists["published"].tolist() == [22] * 4
        and len(published_neurons("gtzan", "jazz", "classical")) == 26
    )
    lists = lists.set_index(["filter", "meaning"])[["ours", "in both"]]
    assert lists.loc["lape", "at least these"].tolist() == [24, 22]
    assert lists.loc["lape", "exactly these"].tolist() == [23, 22]


def test_artifacts_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="run a collecting notebook first"):
        analyze(write_study(tmp_path / "s.yaml", {"events": "event"}, []))
    path, folder = fill(tmp_path, models=("analysis", "vit")), tmp_path / "outputs" / "fake"
    labels = np.repeat(np.arange(4), 36)
    events = planted_counts(labels, 4, seed=0), labels
    write_artifacts(folder / "events_vit", *events, EVENTS[::-1], task="events", weights="vit")
    with pytest.raises(
        ValueError, match="events_vit: expected the classes of .*events_analysis, in the same order"
    ):
        analyze(path)
    write_artifacts(folder / "events_vit", *events, EVENTS, task="events", weights="another")
    with pytest.raises(ValueError, match="their weights differ. Collect the outdated one again"):
        analyze(path)
    write_artifacts(folder / "events_vit", *events, EVENTS, task="events", weights="analysis")
    whole = {
        (task, "ssl"): load_artifacts(folder / f"{task}_analysis") for task in ("events", "notes")
    }
    assert check_together(whole) == []
    whole["notes", "ssl"].manifest["layers"] = ["blocks.1", "blocks.2", "blocks.3"]
    with pytest.raises(ValueError, match="layers or neurons differ"):
        check_together(whole)
    two = {
        ("events", model): load_artifacts(folder / f"events_{model}")
        for model in ("analysis", "vit")
    }
    same = "events: analysis and vit have the same weights"
    assert check_together(two) == [same]
    os.rename(folder / "events_vit", folder / "spare")
    os.rename(folder / "notes_vit", folder / "events_vit")
    with pytest.raises(ValueError, match="artifacts of the task 'notes', expected 'events'"):
        analyze(path)


def test_edges_have_defined_results(tmp_path):
    """One class; a class with one clip; dead neurons; all probabilities equal."""
    sharing = [("within_task-one", "one", "one"), ("cross_task-dead-equal", "dead", "equal")]
    path = write_study(
        tmp_path / "s.yaml", dict.fromkeys(("one", "lone", "dead", "equal"), "event"), sharing
    )
    noise, two = (
        np.random.default_rng(0).integers(0, 30, (40, 2, 60)).astype(np.uint8),
        np.arange(40) % 2,
    )
    for name, counts, labels in (
        ("one", noise, two * 0),
        ("lone", noise, np.minimum(np.arange(40), 1) * (1 + two)),
        ("dead", noise * 0, two),
        ("equal", noise * 0 + 9, two),
    ):
        folder = tmp_path / "outputs" / "fake" / f"{name}_analysis"
        write_artifacts(folder, counts, labels, list("abc"[: labels.max() + 1]), task=name)
    found = analyze(path, progress=False)
    rows = found.statistics.set_index("task")
    assert (rows.calibrated_coverage == 0).all() and (rows.p_task == 1).all()
    assert rows.coverage[["dead", "equal"]].tolist() == [0, 0]
    assert rows.neurons_selected["dead"] == 0 and np.isnan(rows.mean_aape["dead"])
    assert {p.stem for p in found.figures.values()} >= {"within_task-one", "cross_task-dead-equal"}


def test_changed_settings_are_computed_again_and_two_analyses_at_once_are_refused(tmp_path):
    path = fill(tmp_path, models=("analysis",))
    first = analyze(path, draw=False, progress=False)
    path.write_text(path.read_text().replace("rate: 0.1", "rate: 0.05"))
    with (
        folder_lock(tmp_path / "outputs" / "fake" / ".analysis"),
        pytest.raises(FolderBusy, match="in use by process"),
    ):
        analyze(path, progress=False)
    second = analyze(path, draw=False, progress=False)
    kept = [a.results["events", "ssl"].row["neurons_selected"] for a in (first, second)]
    assert kept == [30, 15]


def test_a_model_of_several_seeds_has_one_row_with_its_range(tmp_path):
    never = {"loader": "nowhere:load"}
    models = {"trained": never, "random": never | {"role": "untrained", "seeds": [3, 5]}}
    path = write_study(tmp_path / "s.yaml", {"events": "event"}, [], models=models)
    labels, out = np.repeat(np.arange(4), 36), tmp_path / "outputs" / "fake"
    for seed, folder in ((0, "trained"), (3, "untrained-3"), (5, "untrained-5")):
        counts = planted_counts(labels, 4, seed=seed, each=6 if folder == "trained" else 1)
        write_artifacts(
            out / f"events_{folder}", counts, labels, EVENTS, task="events", weights=folder
        )
    found = analyze(path, draw=False, progress=False)
    table = pd.read_csv(out / "task_level_neuron_statistics_untrained.csv")
    assert table.model.tolist() == ["random-3", "random-5"]
    low, high = sorted(table.per_class_mean)
    trained, random = found.overview.set_index("model").per_class_mean[["trained", "random"]]
    assert low < high and isinstance(trained, float)
    assert random == f"{(low + high) / 2:.1f} ({low:.1f} to {high:.1f})"
    assert panels_of(found.study, found.results) == {
        "trained": "trained",
        "random-3": "random, seed 3",
    }
    later = {place: result for place, result in found.results.items() if place[1] != "random-3"}
    assert panels_of(found.study, later) == {"trained": "trained", "random-5": "random, seed 5"}
    assert spread(pd.Series(["18 and 18", "18 and 18", "20 and 18"])) == "18 and 18; 20 and 18"


def test_octave_lines_go_through_pitches_that_are_octaves_apart():
    white = np.array([p for p in range(48, 85) if p % 12 in (0, 2, 4, 5, 7, 9, 11)])
    axes = Figure().subplots()
    _octave_axes(axes, (white, white), ("a", "b"))
    lines = {
        (int(x), round(float(y), 6))
        for line in axes.lines
        for x, y in zip(*line.get_data(), strict=True)
        if y == y
    }
    y, x = np.nonzero(np.subtract.outer(white, white) % 12 == 0)
    assert set(zip(x.tolist(), y.tolist(), strict=True)) <= lines
    for at, cell in lines:
        assert cell != int(cell) or abs(int(white[int(cell)]) - int(white[at])) % 12 == 0


def test_a_colour_is_the_same_model_in_every_figure_and_untrained_ones_are_grey():
    by_label = colours(["SSL (M2D)", "SL (ViT)", "untrained"])
    by_name = colours(["ssl", "sl", "untrained-0", "untrained-1"])
    assert by_label["SSL (M2D)"] == by_name["ssl"] != by_label["SL (ViT)"] == by_name["sl"]
    assert by_label["untrained"] == by_name["untrained-1"] == "#7F7F7F"


def test_titles_say_what_came_out(analysis):
    artifacts = load_artifacts(analysis.study.directory / "events_analysis")
    median = np.median(artifacts.over_zero.double().mean(dim=2).numpy(), axis=1)
    title = activity_by_layer(artifacts).get_suptitle()
    assert f"{median[0]:.0%} of tokens in layer 0" in title and title.endswith("fake on events")


def test_letters_that_no_font_has_are_named_in_one_warning(tmp_path):
    figure = Figure()
    figure.suptitle("\u10d0\U00012000\U00012001")  # cuneiform
    with pytest.warns(UserWarning, match="Install a font that has them") as caught:
        save(figure, tmp_path, "old")
    assert len(caught) == 1


def test_a_long_name_is_shortened_and_stays_different():
    names = [f"ablation_{'class ' * 60}{i}" for i in range(2)]
    shortened = [short_file_name(name) for name in names]
    assert (
        len(set(shortened)) == 2
        and max(map(len, shortened)) < 200
        and short_file_name("chance") == "chance"
    )
