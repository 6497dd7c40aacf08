"""Study files: what ships is valid, the short form is enough, and what is wrong is said with the nearest right thing."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from aape.study.loading import load_encoder, load_task, prepare, resolve
from aape.study.study import load_study

SHIPPED = sorted((REPOSITORY / "studies").glob("*.yaml"))
SHORT = """
models:
  whisper: {hub: openai/whisper-tiny}
  random:  {loader: "my_models:whisper", options: {width: 8}, role: untrained, seeds: [0, 1, 2]}
tasks:
  digits: {folder: recordings, pattern: "{label}_{group}_{take}.wav", clip_seconds: 1.0}
  words: {metadata: lists/words.csv, clip_seconds: 2.5, options: {group: speaker}}
"""


def written(folder: Path, text: str | None = None, **changes) -> Path:
    path = folder / "mine.yaml"
    path.write_text(
        text
        if text is not None
        else yaml.safe_dump(yaml.safe_load(SHORT) | changes, sort_keys=False)
    )
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_studies_are_valid(path: Path):
    study = load_study(path.stem)
    assert study.name == path.stem == load_study(path).name
    assert study.note or not study.substitute
    assert study.reproduces_paper == (study.name == "paper")
    assert study.directory == REPOSITORY / "outputs" / path.stem
    for spec in study.models.values():  # random weights are not called anything else
        random = "random" in spec.options.values() or bool(spec.seeds) or "untrained" in spec.loader
        assert (spec.role == "untrained") == random and ("untrained" in spec.label) == random


def test_the_paper_and_the_miniature_are_the_same_study():
    paper, miniature = load_study("paper"), load_study("miniature")
    views = {"nsoctave", "surge_octave", "nsfamily"}  # of a pass over pitches
    assert len(set(paper.tasks) - views) == 10 and set(paper.tasks) - {"nsfamily"} == set(
        miniature.tasks
    )
    targets = [
        [(t.task, t.classes, t.mode) for t in study.ablation.targets]
        for study in (paper, miniature)
    ]
    assert paper.sharing == miniature.sharing and targets[0] == targets[1]
    assert [t.exclusive for t in paper.ablation.targets] == [True, True, False, False]
    assert [paper.rate(t) for t in ("esc50", "gise51", "cremad")] == [0.02, 0.02, 0.01]
    folders = [
        paper.artifacts_directory("gtzan", m).relative_to(REPOSITORY).as_posix()
        for m in paper.models
    ]
    assert folders == [f"outputs/paper/gtzan_{f}" for f in ("analysis", "vit", "untrained")]


def test_the_short_form_fills_in_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AAPE_OUTPUT", raising=False)
    study = load_study(written(tmp_path, SHORT))
    assert (study.name, study.description, study.substitute, study.output) == (
        "mine",
        "mine",
        False,
        "mine",
    )
    assert (
        study.artifacts_directory("digits", "whisper")
        == tmp_path / "outputs" / "mine" / "digits_whisper"
    )
    assert (study.models["whisper"].label, study.tasks["digits"].title) == ("whisper", "digits")
    specs = (study.models["whisper"], study.tasks["digits"], study.tasks["words"])
    assert [(spec.loader, spec.options) for spec in specs] == [
        ("aape.encoders.hub:from_hub", {"name_or_folder": "openai/whisper-tiny"}),
        ("aape.sounds.loading:from_folder",
         {"folder": "recordings", "pattern": "{label}_{group}_{take}.wav", "name": "digits", "clip_seconds": 1.0}),
        ("aape.sounds.loading:from_metadata",
         {"csv_path": "lists/words.csv", "audio_dir": "lists", "name": "words", "clip_seconds": 2.5, "group": "speaker"}),
    ]  # fmt: skip
    assert len(repr(study)) < 300 and "digits" in repr(study) and "whisper" in repr(study)
    shown = load_study(written(tmp_path, note="<b>bold</b>"))._repr_html_()
    assert "&lt;b&gt;bold" in shown and shown.count("<tr>") == 4


def test_a_model_of_several_seeds(tmp_path: Path):
    study = load_study(written(tmp_path, SHORT))
    assert list(study.encoders) == ["whisper", "random-0", "random-1", "random-2"]
    assert study.copies("random") == ["random-0", "random-1", "random-2"] and study.copies(
        "whisper"
    ) == ["whisper"]
    one = study.encoder("random-1")
    assert (one.options, one.folder, one.label) == (
        {"width": 8, "seed": 1},
        "untrained-1",
        "random, seed 1",
    )
    assert study.artifacts_directory("digits", "random-2").name == "digits_untrained-2"
    with pytest.raises(ValueError, match="no model 'random'; did you mean 'random-.'"):
        study.artifacts_directory("digits", "random")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modles": {}}, "'modles' is not a valid key here; did you mean 'models'"),
        (
            {"selection": {"quantil": 0.9}},
            "selection: 'quantil' is not a valid key here; did you mean 'quantile'",
        ),
        (
            {"models": {"x": {"loader": "a:b", "hub": "c/d"}}},
            "models.x: expected one of loader, hub; found loader and",
        ),
        (
            {"models": {"x": {"hub": "a"}, "y": {"hub": "b", "folder": "x"}}},
            r"share a folder \(x, x\)",
        ),
        (
            {"models": {"x": {"hub": "a", "label": "y"}, "y": {"hub": "b"}}},
            r"share a label \(y, y\)",
        ),
        (
            {"models": {"x": {"hub": "a", "seeds": [1, 1]}}},
            "models.x: seeds: expected different seeds",
        ),
        (
            {"tasks": {"x": {"folder": "f", "patern": "p"}}},
            "tasks.x: 'patern' is not a valid key here; did you mean 'pattern'",
        ),
        (
            {"tasks": {"x": {"loader": "a:b", "pattern": "p"}}},
            "tasks.x: 'pattern' is not a valid key here",
        ),
        (
            {"sharing": [{"name": "x", "rows": "digit", "columns": "digits", "title": "t"}]},
            "did you mean 'digits'",
        ),
        (
            {"ablation": {"targets": [{"task": "no", "classes": ["a"], "mode": "shared"}]}},
            "no task 'no'",
        ),
        ({"ablation": {"models": ["whisprr"]}}, "no model 'whisprr'; did you mean 'whisper'"),
        ({"output": ".."}, "output: expected a name that has no slash"),
        (
            {"output": "../elsewhere"},
            r"output: expected a name that has no slash .* found '../elsewhere'",
        ),
        (
            {"tasks": {"a\nb": {"folder": "f", "clip_seconds": 1}}},
            "expected a name that has no slash",
        ),
        ({"selection": {"rate": 5}}, "selection.rate"),
        ({"selection": {"quantile": 3}}, "selection.quantile"),
        ({"chance": {"q": 7}}, "chance.q"),
        ({"chance": {"permutations": -5}}, "chance.permutations"),
        ({"collect": {"batch_size": 0}}, "collect.batch_size"),
        (
            {"models": {"x": "openai/whisper-tiny"}},
            "models.x: Input should be .*, found 'openai/whisper-tiny'",
        ),
        (
            {"ablation": {"targets": [{"task": "digits", "classes": [True]}]}},
            "found 'True'; put it in quotes",
        ),
        ({"tasks": {60: {"folder": "f"}}}, "found '60'; put it in quotes"),
        ({"base": "/tmp"}, "'base' is not a valid study key"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, change: dict, message: str):
    path = written(tmp_path, **change)
    with pytest.raises(ValueError, match=message) as caught:
        load_study(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("models: {", "cannot be read as YAML"),
        ("just words", "expected the keys of a study"),
    ],
)
def test_files_that_are_no_study(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        load_study(written(tmp_path, text))


def test_names_that_are_not_there_and_loaders_that_do_not_load(tmp_path: Path):
    study = load_study("miniature")
    for load, name, words in (
        (load_task, "esc5O", "no task 'esc5O'; did you mean 'esc50'"),
        (load_encoder, "m2d", "no model 'm2d'; known: ssl, sl, untrained"),
        (
            lambda _, name: load_study(name),
            "papre",
            "no study 'papre' .*shipped: esc50, esc50_base, miniature, paper",
        ),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            load(study, name)
    for loader, words in (
        ("aape.encoders.m2d:lode", "expected package.module:function"),
        ("no_such_package:load", "expected package.module:function"),
        ("json:", "expected package.module:function .*not a callable"),
        ("pathlib:Path", "returned a PosixPath, expected Encoder"),
    ):
        with pytest.raises(ValueError, match=words):
            load_encoder(load_study(written(tmp_path, models={"x": {"loader": loader}})), "x")


def test_a_module_beside_the_study_is_found_and_not_taken_for_another_of_its_name(
    tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    studies = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "model_of_mine.py").write_text(f"def load():\n    return {number}\n")
        studies.append(load_study(written(folder, models={"x": {"loader": "model_of_mine:load"}})))
    assert prepare(studies[0], "x", studies[0].encoder("x"))[0]() == 1
    with pytest.raises(
        ValueError,
        match=r"expected .*2/model_of_mine.py, but a module .* was imported from .*1/model_of_mine.py",
    ):
        prepare(studies[1], "x", studies[1].encoder("x"))


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOMEWHERE", "/data")
    assert resolve("audio_dir", "${SOMEWHERE}/x", tmp_path) == Path("/data/x")
    assert resolve("csv_path", "data/x.csv", tmp_path) == tmp_path / "data/x.csv"
    assert (
        resolve("weights_path", "random", tmp_path) == "random"
        and resolve("name", "data/x", tmp_path) == "data/x"
    )
    default = "${AAPE_ELSEWHERE:-openai/whisper-tiny}"
    monkeypatch.delenv("AAPE_ELSEWHERE", raising=False)
    assert resolve("name_or_folder", default, tmp_path) == "openai/whisper-tiny"
    study = load_study(
        written(
            tmp_path, tasks={"x": {"metadata": "${AAPE_ELSEWHERE:-a/b.csv}", "clip_seconds": 1}}
        )
    )
    assert prepare(study, "x", study.task("x"))[1]["audio_dir"] == tmp_path / "a"
    monkeypatch.setenv("AAPE_ELSEWHERE", str(tmp_path))
    assert resolve("name_or_folder", default, Path("/")) == tmp_path
    monkeypatch.delenv("SOMEWHERE")
    with pytest.raises(
        ValueError,
        match=re.escape("'${SOMEWHERE}/x' needs an environment variable that is not set"),
    ):
        resolve("audio_dir", "${SOMEWHERE}/x", tmp_path)


def test_a_decimal_comma_is_named(tmp_path: Path):
    study = load_study(written(tmp_path, tasks={"x": {"folder": "f", "clip_seconds": "2,5"}}))
    with pytest.raises(ValueError, match=r"clip_seconds: expected a number .*'2,5'; write 2\.5"):
        load_task(study, "x")


def test_a_task_can_have_the_clips_of_another_one(tmp_path: Path):
    speakers = {"metadata": "s.csv", "clip_seconds": 1, "same_clips_as": "digits"}
    tasks = {"digits": {"folder": "f", "clip_seconds": 1}, "speakers": speakers}
    assert load_study(written(tmp_path, tasks=tasks)).task("speakers").same_clips_as == "digits"
    for wrong, message in (
        (
            {"speakers": speakers | {"same_clips_as": "digit"}},
            "no task 'digit'; did you mean 'digits'",
        ),
        (
            {"speakers": speakers | {"same_clips_as": "speakers"}},
            "expected a task that has a pass of its own",
        ),
        (
            {"rooms": speakers | {"same_clips_as": "speakers"}},
            "expected a task that has a pass of its own",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            load_study(written(tmp_path, tasks=tasks | wrong))
