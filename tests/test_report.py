"""What a report says: answers that follow from the numbers, in README, the summary and the page alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from aape.ablation import TABLES
from aape.study import Study
from notebooks_src import report


def effect(model: str, measure: str, difference: float, p: float, q: float, mean: float = -0.01) -> dict:
    tested = np.isfinite(p)
    return {
        "task": "songs",
        "model": model,
        "target": "jazz",
        "mode": "specific",
        "kind": "silenced",
        "class": "jazz",
        "targeted": True,
        "measure": measure,
        "before": 50.0 if measure == "accuracy" else -1.0,
        "difference": difference,
        "clips": 40,
        "in_sample": 0,
        "neurons": 12.0 if tested else 0.0,
        "low": difference - 1,
        "high": difference + 1,
        "refit_sd": 0.1,
        "layer_mean": mean,
        "layer_low": mean - 0.5,
        "layer_high": mean + 0.5,
        "layer_p": p,
        "layer_q": q,
        "target_rate_mean": -7.0 if tested else np.nan,
        "rate_p": np.nan,
    }


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = Study(
        name="songs",
        description="Songs",
        stand_in=True,
        note="Not music.",
        output=str(tmp_path),
        models={
            "ssl": {"loader": "x:y", "label": "one", "folder": "analysis"},
            "sl": {"loader": "x:y", "label": "two", "folder": "vit"},
            "untrained": {"loader": "x:y", "label": "three", "folder": "untrained"},
        },
        tasks={"songs": {"loader": "x:y", "title": "Songs"}},
    )
    for folder, coverage in (("analysis", 1.0), ("vit", 0.5)):
        pd.DataFrame(
            [
                {
                    "task": "songs",
                    "classes": 10,
                    "coverage": coverage,
                    "coverage_null_mean": 0.25,
                    "calibrated_coverage": coverage / 2,
                    "mean_aape": 2.0,
                    "per_class_mean": 7.25,
                    "per_class_mean_null_mean": 3.0,
                    "calibrated_per_class_mean": 1.5,
                }
            ]
        ).to_csv(tmp_path / f"task_level_neuron_statistics_{folder}.csv", index=False)
    (tmp_path / "chance.png").write_bytes(b"picture")
    return made


def write_effects(study: Study, log_p_q: float, untrained: tuple[float, float] | None = None) -> None:
    for name in TABLES:
        pd.DataFrame({"class": [], "silenced": [], "target": []}).to_csv(
            study.directory / f"ablation_{name}.csv", index=False
        )
    rows = [effect("ssl", "accuracy", -5.0, 0.2, 0.4), effect("ssl", "log_probability", -0.2, 0.005, log_p_q)]
    if untrained is None:
        rows += [effect("untrained", m, np.nan, np.nan, np.nan, np.nan) for m in ("accuracy", "log_probability")]
    else:
        rows += [
            effect("untrained", "accuracy", -5.0, 0.2, 0.4),
            effect("untrained", "log_probability", -0.2, *untrained),
        ]
    rows += [row | {"kind": "replaced by mean", "difference": -1.5} for row in rows if row["neurons"]]
    pd.DataFrame(rows).to_csv(study.directory / "ablation_effects.csv", index=False)


def test_coverage_and_table(study: Study):
    (found,) = report.findings(study)
    assert found.answer == "Yes" and "SSL 100% (calibrated 50%)" in found.numbers
    table = report.results_table(study)
    assert table.to_dict("records") == [
        {
            "task": "songs",
            "classes": "10",
            "SSL coverage (permuted)": "100% (25%)",
            "SSL neurons per class (permuted)": "7.2 (3.0)",
            "SSL calibrated per class": "1.5",
            "SL coverage (permuted)": "50% (25%)",
            "SL neurons per class (permuted)": "7.2 (3.0)",
            "SL calibrated per class": "1.5",
        }
    ]


@pytest.mark.parametrize(("q", "answer"), [(0.04, "Yes"), (0.06, "No")])
def test_ablation_answer_follows_q(study: Study, q: float, answer: str):
    write_effects(study, q)
    found = report.findings(study)[-1]
    assert found.answer == f"{answer} for the SSL encoder"
    hits = int(answer == "Yes")
    assert "SSL: -5.0 against +0.0 points of accuracy (0 of 1 targeted" in found.numbers  # no "-0.0"
    assert f"-0.200 against -0.010 nats of log-probability ({hits} of 1); a set as active in the class" in found.numbers
    assert "whatever its AAPE: -7.0 points; the same neurons at their mean in place of 0: -1.5 points." in found.numbers
    assert "untrained: nothing to test" in found.numbers and "as well" not in found.numbers
    assert found.table is not None
    ours, theirs = found.table.to_dict("records")
    assert ours["change (points)"] == "-5.0" and ours["p, q (points)"] == "0.200, 0.400"
    assert ours["as active in the class (points)"] == "-7.0" and ours["at their mean (points)"] == "-1.5"
    assert "p, rate-matched (points)" not in ours  # the study has no such controls
    assert ours["random sets (nats)"] == "-0.010 [-0.510, +0.490]"
    assert theirs["change (nats)"] == "no neurons" and theirs["p, q (nats)"] == ""
    assert report.markdown(found.table).count("\n") == 3


def test_an_untrained_encoder_that_falls_is_said(study: Study):
    write_effects(study, 0.04, untrained=(0.01, 0.02))
    numbers = report.findings(study)[-1].numbers
    assert "untrained: -5.0 against +0.0 points of accuracy (0 of 1" in numbers
    assert "not that training put it there" in numbers


def test_report_gallery_and_readme(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_effects(study, 0.04)
    root = tmp_path / "repository"
    root.mkdir()
    monkeypatch.setattr(report, "ROOT", root)
    monkeypatch.setattr(report, "GALLERY", root / "gallery")
    found = report.write_report(study)
    page = (tmp_path / "index.html").read_text()
    assert "Not music." in page and "chance.png" in page and "no neurons" in page
    report.write_gallery(study)
    assert {p.name for p in (root / "gallery" / "songs").iterdir()} >= {"README.md", "chance.png", "summary.md"}
    readme = root / "README.md"
    readme.write_text("Before\n")
    with pytest.raises(ValueError, match="no place for the results: expected <!-- results of songs -->"):
        report.write_readme_results(study, found)
    readme.write_text("Before\n<!-- results of songs -->\nold\n<!-- end of results of songs -->\nAfter\n")
    report.write_readme_results(study, found)
    text = readme.read_text()
    assert text.startswith("Before\n") and text.endswith("\nAfter\n") and "old" not in text
    assert "![What chance gives](gallery/songs/chance.png)" in text and "Not music." in text
    assert "ablation_controls.png" not in text  # the study has no such figure
    report.write_readme_results(study, found)
    assert readme.read_text() == text
