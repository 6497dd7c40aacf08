"""Study files: what ships is valid, and what is wrong is said with the nearest right thing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

import common
from aape.study import load_study, resolve_path

SHIPPED = sorted((REPOSITORY / "studies").glob("*.yaml"))
TASKS = {
    "esc50", "gise51", "voxforge", "vc1_gender", "vc1_country", "cremad", "cremad_gender", "gtzan", "nspitch", "surge",
}  # fmt: skip


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_studies_are_valid(path: Path):
    study = load_study(path.stem)
    assert study.name == path.stem == load_study(path).name
    assert (study.note != "") == study.stand_in


def test_the_paper_and_the_miniature_are_the_same_study():
    paper, miniature = load_study("paper"), load_study("miniature")
    assert set(paper.tasks) == set(miniature.tasks) == TASKS
    assert paper.sharing == miniature.sharing and paper.ablation.targets == miniature.ablation.targets
    assert list(paper.models) == list(miniature.models) == ["M2D", "ViT", "Untrained"]
    assert [paper.rate(t) for t in ("esc50", "gise51", "cremad")] == [0.02, 0.02, 0.01]
    assert paper.artifacts_directory("gtzan", "ViT").parts[-3:] == ("outputs", "paper", "gtzan_vit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modles": {}}, "unknown key 'modles'; did you mean 'models'"),
        ({"selection": {"quantil": 0.9}}, "unknown key 'selection.quantil'; did you mean 'quantile'"),
        ({"selection": {"weak_filter": "none"}}, "selection.weak_filter"),
        ({"models": {"M3D": {"loader": "a:b", "label": "x", "folder": "vit"}}}, "models.M3D"),
        (
            {"sharing": [{"name": "x", "rows": "esc5", "columns": "esc50", "title": "t"}]},
            "no task 'esc5'; did you mean 'esc50'",
        ),
        ({"ablation": {"targets": [{"task": "no", "classes": ["a"], "mode": "shared"}]}}, "no task 'no'"),
        (
            {"ablation": {"targets": [{"task": "esc50", "clases": ["a"], "mode": "shared"}]}},
            "'ablation.targets.0.clases'; did you mean 'classes'",
        ),
        ({"stand_in": "perhaps"}, "stand_in"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, change: dict, message: str):
    content = yaml.safe_load((REPOSITORY / "studies" / "esc50_base.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content | change))
    with pytest.raises(ValueError, match=message):
        load_study(path)


def test_names_that_are_not_there():
    study = load_study("miniature")
    with pytest.raises(ValueError, match="no task 'esc5O'; did you mean 'esc50'"):
        common.load_task(study, "esc5O")
    with pytest.raises(ValueError, match="no model 'm2d'"):
        common.load_encoder(study, "m2d")
    with pytest.raises(FileNotFoundError, match="no study 'papre' .*shipped: esc50, esc50_base, miniature, paper"):
        load_study("papre")


def test_loaders_that_do_not_load(tmp_path: Path):
    content = yaml.safe_load((REPOSITORY / "studies" / "esc50_base.yaml").read_text())
    path = tmp_path / "mine.yaml"
    for loader, message in (
        ("aape.encoders.m2d:lode", "expected package.module:function"),
        ("no_such_package:load", "expected package.module:function"),
        ("pathlib:Path", "returned a PosixPath, expected an Encoder"),
    ):
        content["models"]["M2D"] |= {"loader": loader, "options": {}}
        path.write_text(yaml.safe_dump(content))
        with pytest.raises(ValueError, match=message):
            common.load_encoder(load_study(path), "M2D")


def test_paths(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOMEWHERE", "/data")
    assert resolve_path("audio_dir", "${SOMEWHERE}/x") == Path("/data/x")
    assert resolve_path("csv_path", "data/x.csv") == REPOSITORY / "data/x.csv"
    assert resolve_path("weights_path", "random") == "random" and resolve_path("name", "data/x") == "data/x"
    monkeypatch.delenv("SOMEWHERE")
    with pytest.raises(ValueError, match="environment variable that is not set"):
        resolve_path("audio_dir", "${SOMEWHERE}/x")


def test_unknown_notebook_parameters():
    known = "study model"
    common.check_parameters({"study": "miniature", "model": "M2D", "_private": 3, "In": [], "common": common}, known)
    with pytest.raises(ValueError, match="unknown parameter 'studdy'; did you mean 'study'"):
        common.check_parameters({"study": "miniature", "studdy": "paper"}, known)
