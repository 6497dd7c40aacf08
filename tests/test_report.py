"""What a report says: answers that follow from the numbers, in the summary, the page and the gallery alike."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aape.study.experiment import TABLES
from aape.study.study import Study
from notebooks_src import findings, report

CLASSES = [f"c{i}" for i in range(10)]


def effect(measure: str, difference: float, p: float, q: float) -> dict:
    return {
        "task": "songs", "model": "one", "target": "jazz", "mode": "specific", "kind": "mean", "class": "jazz",
        "targeted": True, "measure": measure, "before": 50.0 if measure == "accuracy" else -1.0,
        "difference": difference, "off_target": 0.0, "effect": difference, "rank": 1, "clips": 40, "groups": 20,
        "neurons": 12.0, "low": difference - 1, "high": difference + 1,
        "effect_low": difference - 1, "effect_high": difference + 1, "active_controls": 39,
        "active_mean": -0.01, "active_low": -0.51, "active_high": 0.49, "active_p": p, "active_p_two_sided": p,
        "active_q": q, "active_sd": 0.1, "overlap": 0.1, "disjoint_mean": -0.01, "disjoint_sd": 0.1, "at_floor": False, "detectable": -0.15,
    }  # fmt: skip


def write_statistics(
    study: Study, model: str, folder: str, calibrated: int, seeds: tuple[str, ...] = ()
) -> None:
    """Task-level numbers of a model in which the first `calibrated` of ten classes have neurons."""
    row = {
        "task": "songs", "classes": 10, "coverage": 1.0, "coverage_null_mean": 0.25, "aape_share": 0.5,
        "calibrated_coverage": calibrated / 10, "below_ln_classes": 1.15, "below_ln_classes_null_mean": 0.3, "p_mean_aape": 0.01,
        "per_class_mean": 7.25, "per_class_mean_null_mean": 3.0, "classes_per_neuron": 2.0,
        "classes_per_neuron_null_mean": 4.0, "calibrated_per_class_mean": 1.5,
    }  # fmt: skip
    rows = [row | {"model": name, "per_class_mean": 7.25 + i} for i, name in enumerate(seeds)] or [
        row
    ]
    pd.DataFrame(rows).to_csv(
        study.directory / f"task_level_neuron_statistics_{folder}.csv", index=False
    )
    own = pd.DataFrame({"task": "songs", "model": (seeds or (model,))[0], "class": CLASSES})
    own["calibrated"] = (np.arange(10) < calibrated).astype(int)
    path = study.directory / "class_level_neuron_statistics.csv"
    pd.concat([pd.read_csv(path), own] if path.is_file() else [own]).to_csv(path, index=False)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    never = {"loader": "x:y"}
    made = Study(
        name="songs", description="Songs", base=tmp_path, substitute=True, note="Not music.", chance={"q": 0.05},
        models={
            "one": never | {"role": "ssl", "label": "One"},
            "two": never | {"role": "sl", "label": "Two"},
            "dice": never | {"role": "untrained", "seeds": [0, 1]},
        },
        tasks={"songs": never, "tunes": never},
        sharing=[{"name": "cross", "rows": "songs", "columns": "tunes", "title": "genre"}],
    )  # fmt: skip
    made.directory.mkdir(parents=True)
    write_statistics(made, "one", "analysis", 9)
    write_statistics(made, "two", "vit", 2)
    write_statistics(made, "dice", "untrained", 0, seeds=("dice-0", "dice-1"))
    (made.directory / "chance.png").write_bytes(b"picture")
    return made


def test_coverage_is_decided_by_a_test_not_by_a_sign(study: Study):
    (found,) = findings.findings(study)
    assert found.answer == "Yes" and found.figure == "chance"
    assert (
        "7 are covered only by the SSL model and 0 only by the SL model (sign test, p = 0.016)"
        in found.sentence
    )
    said = "\n".join(found.details)
    assert "A selected neuron is specific to 2 classes; its AAPE is 50.0% of ln C" in said
    assert "One: 90% of the classes of a task have a neuron that passes the calibration" in said
    assert "(selected: 100%; with permuted labels: 25%)" in said
    path = study.directory / "class_level_neuron_statistics.csv"
    table = pd.read_csv(path)
    alone = table[table.model == "one"].assign(
        task="tunes"
    )  # the SL model was not collected on them
    pd.concat([table, alone]).to_csv(path, index=False)
    assert "7 are covered only by the SSL model and 0 only" in findings.findings(study)[0].sentence
    path.unlink()
    write_statistics(study, "one", "analysis", 5)
    write_statistics(study, "two", "vit", 2)  # 3 classes more are 3 of 3: p = 0.25
    (found,) = findings.findings(study)
    assert found.answer == "No difference"


def test_tables_have_eight_columns_and_a_range_over_seeds(study: Study):
    tables = report.tables(study)
    assert list(tables) == ["Class-specific neurons", "With permuted labels"]
    rows = tables["Class-specific neurons"]
    assert rows.model.tolist() == ["One", "Two", "dice"] and rows.shape[1] == 8
    assert rows["neurons per class"].tolist() == ["7.25", "7.25", "7.75 (7.25 to 8.25)"]
    assert rows["AAPE / ln C"].tolist() == ["0.500"] * 3
    assert report.markdown(rows).count("\n") == 4


def test_like_classes_are_decided_by_their_test(study: Study):
    row = {
        "figure": "cross",
        "alike": "same name",
        "alike Jaccard": 0.5,
        "other Jaccard": 0.1,
        "least p": 0.001,
    }
    rows = [
        row | {"model": model, "alike p": p}
        for model, p in (("one", 0.01), ("dice-0", 0.01), ("dice-1", 0.2))
    ]
    pd.DataFrame(rows).to_csv(study.directory / "sharing_summary.csv", index=False)
    found = findings.findings(study)[1]
    assert (
        found.answer == "Partly" and "in 1 of 2 models: One." in found.sentence
    )  # one of the two seeds is not enough
    assert "One: mean Jaccard index 0.500, others 0.100 (p = 0.01)" in found.details[0]
    assert (
        "dice (2 seeds): mean Jaccard index 0.500, others 0.100 (p = 0.01, 0.2)" in found.details[1]
    )
    pd.DataFrame([r | {"least p": 0.5} for r in rows]).to_csv(
        study.directory / "sharing_summary.csv", index=False
    )
    found = findings.findings(study)[1]
    assert found.answer == "Undecided" and found.sentence.endswith("p cannot be below 0.5.")


def test_figures_come_in_an_order_of_interest_and_all_have_a_caption(study: Study):
    for name in (
        "ablation_songs-jazz-specific",
        "within_task-songs",
        "ablation_controls",
        "criteria_songs_one",
        "my_own",
    ):
        (study.directory / f"{name}.png").write_bytes(b"picture")
    captions = report.captions(study)
    order = [
        "criteria_songs_one",
        "chance",
        "ablation_controls",
        "within_task-songs",
        "ablation_songs-jazz-specific",
    ]
    order.append("my_own")
    assert list(captions) == order and all(captions.values())


def test_report_and_gallery(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in TABLES:
        pd.DataFrame(columns=list(TABLES[name])).to_csv(
            study.directory / f"ablation_{name}.csv", index=False
        )
    rows = [effect("accuracy", -5.0, 0.2, 0.4), effect("log_probability", -0.2, 0.005, 0.04)]
    pd.DataFrame(rows).to_csv(study.directory / "ablation_effects.csv", index=False)
    found = findings.findings(study)[-1]
    assert (
        found.answer == "Yes"
        and "1 of 1 (One, detectable: -0.15 nats)" in found.sentence
        and found.figure == "ablation_controls"
    )
    report.write_report(study)
    page = (study.directory / "index.html").read_text()
    assert (
        "<strong>Substitute models or sounds.</strong> Not music." in page
        and "7.75 (7.25 to 8.25)" in page
    )
    assert 'src="chance.png"' in page and "Open the atlas" not in page  # there is none
    (study.directory / "atlas").mkdir()
    (study.directory / "atlas" / "index.html").touch()
    report.write_report(study)
    assert 'class="button" href="atlas/index.html"' in (study.directory / "index.html").read_text()
    monkeypatch.setattr(report, "GALLERY", tmp_path / "gallery")
    report.write_gallery(study)
    folder = tmp_path / "gallery" / "songs"
    text = (folder / "README.md").read_text()
    assert text.startswith("# Songs\n\n**Substitute models or sounds.** Not music.")
    assert (
        "## Silenced neurons and activity-matched random neurons" in text and "(chance.png)" in text
    )
    linked = {
        "task_level_neuron_statistics_analysis.csv",
        "class_level_neuron_statistics.csv",
        "ablation_effects.csv",
    }
    assert all(f"({name})" in text and (folder / name).is_file() for name in linked)
