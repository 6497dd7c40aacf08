"""A folder of artifacts, read back: damage and questions that cannot be answered are told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from aape.artifacts import manifest
from aape.artifacts.folder import load_artifacts
from aape.collecting.passing import collect


@pytest.fixture
def folder(tmp_path: Path, toy, task) -> Path:
    return collect(toy, task, tmp_path / "out", batch_size=8).path


def test_edited_or_missing_files(folder: Path):
    for name in manifest.REQUIRED:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{name} is not the file its manifest describes"):
            load_artifacts(folder)
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            load_artifacts(folder)
        (folder / name).write_bytes(content)
    assert load_artifacts(folder).has_counts


def test_a_manifest_that_does_not_fit(folder: Path):
    path = folder / "manifest.json"
    whole = json.loads(path.read_text())
    changes = [
        {"extra": 1}, {"neurons": "8"}, {"neurons": 9}, {"layers": ["a", "a", "b"]}, {"layers": whole["layers"][:2]},
        {"classes": ["class0", "class1"]}, {"classes": ["class1", "class0", "class2"]}, {"format": 3}, {"clips": []},
        {"padding": "none"}, {"means": False}, {"clip_seconds": float("nan")}, {"identity": None}, {"checksums": {}},
        {"checksums": whole["checksums"] | {"../x": "0" * 64}},
    ]  # fmt: skip
    first = {"file": whole["clips"]["file"][1], "tokens": 0, "label": 3, "sha256": "0"}
    for column, value in first.items():
        changes.append({"clips": whole["clips"] | {column: [value, *whole["clips"][column][1:]]}})
    changes.append({"clips": whole["clips"] | {"split": []}})
    texts = [json.dumps(whole | change) for change in changes]
    for text in [*texts, "{", "[]", "", "null", "[" * 100_000, "\xff"]:
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match="manifest"):
            load_artifacts(folder)


def test_artifacts_of_another_tool_and_questions_that_cannot_be_answered(
    folder: Path, tmp_path: Path
):
    ours, foreign = load_artifacts(folder), tmp_path / "foreign"
    foreign.mkdir()
    for name in ("over_zero.pt", "classes.txt", "features.pt", "gts.pt"):  # the authors' layout
        shutil.copy(folder / name, foreign)
    theirs = load_artifacts(foreign)
    assert theirs.over_zero.shape == (3, 8, 3) and not theirs.has_counts
    assert theirs.gts["fold1"].tolist() == ours.gts["fold1"].tolist() and len(theirs.features) == 5
    assert "of another tool" in repr(theirs) and "mean activation" in theirs._repr_html_()
    for ask, words in (
        (lambda: theirs.counts, "no clip_counts.npy"),
        (theirs.probabilities, "no manifest.json"),
        (lambda: ours.probabilities(split="train"), "no split 'train'; it has fold1"),
        (lambda: ours.probabilities(classes={"high": ["class9"]}), "'high' unites 'class9'"),
        (
            lambda: ours.probabilities(clips=np.array([0])),
            "class 'class1' has no clip among the 1 chosen",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            ask()
    (foreign / "classes.txt").write_text("a\nb\n")
    torch.save(torch.full((3, 8, 2), 1.5), tmp_path / "large.pt")
    for content, words in (
        ((foreign / "over_zero.pt").read_bytes(), r"\(3, 8, 3\), expected \[layers, neurons, 2\]"),
        ((tmp_path / "large.pt").read_bytes(), "outside"),
        (b"junk", "not a complete file of tensors"),
    ):
        (foreign / "over_zero.pt").write_bytes(content)
        with pytest.raises(ValueError, match=words):
            load_artifacts(foreign)
