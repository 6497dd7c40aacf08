"""The atlas: a static site on which one can listen to what neurons respond to. It opens from disk, without a server.

out_dir/index.html, app.js, app.css     the page
out_dir/index.js                        what there is: models, tasks, classes
out_dir/<model>-<task>/pair.js          one model on one task: classes, clips, and all neurons for the search
out_dir/<model>-<task>/L03.js           the records of the neurons of layer 3 that have a page
out_dir/clips/<hash>.mp3, .png          sounds and spectrograms, shared by all models and tasks
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import joblib

from aape.artifacts.folder import Artifacts, load_artifacts
from aape.atlas.pair import build_pair
from aape.atlas.scripts import SCHEMA, read_script, write_script
from aape.atlas.titles import Titles
from aape.causal.attribution import attribute as attribute_neurons
from aape.encoders.encoder import Encoder, choose_device
from aape.files import folder_lock, write_text
from aape.neurons.selection import Selection, select
from aape.sounds.task import Task
from aape.study.loading import load_encoder, load_task
from aape.study.study import Study, load_study

PAGE = ("index.html", "app.js", "app.css")
PROCESSES = 4  # at most; each holds a model


def build_atlas(
    artifacts: Artifacts,
    encoder: Encoder,
    task: Task,
    out_dir: str | Path,
    *,
    neurons: Any = None,
    strongest: int = 20,
    clips: int = 20,
    selection: Selection | None = None,
    titles: Titles | None = None,
    attribute: bool = False,
) -> Path:
    """Make pages of one model's neurons on one task, with sounds, and add them to the atlas in a folder.

    The strongest neurons of each class get a page; the search knows all neurons. Only clips that a page shows go through
    the model. An interrupted build resumes. Earlier pages of the same model and task are replaced.

    Args:
        artifacts: of the encoder on the task. The analysis' neurons.csv next to them gives q and calibration.
        encoder: the model that made them. Without a token grid the pages have no maps.
        task: the clips.
        out_dir: folder of the atlas: new, empty, or an atlas of the same study.
        neurons: int [k, 2] of (layer, neuron) that also get a page.
        strongest: neurons of each class that get a page.
        clips: number of clips per neuron, 10 to 60: the most active, examples of four quarters, contrasts, random ones.
        selection: made from the artifacts; default `select(artifacts)`.
        titles: names that pages show. The default takes the encoder's and the task's, and the name of the folder that
            holds the artifacts for the study.
        attribute: compute each neuron's attribution, a forward and a backward pass over the training clips. What
            `aape.attribute` has left next to the artifacts is shown anyway.

    Returns:
        Path of index.html.

    Raises:
        ValueError: the artifacts are of another model or other clips, a neuron does not exist, or `out_dir` holds
            something else or another study's atlas.
        BadClip: a clip cannot be read.
        FolderBusy: another process is building there.
    """
    titles = titles or default_titles(artifacts, encoder, task)
    selection = select(artifacts) if selection is None else selection
    out = Path(out_dir)
    _refuse_other_content(out)
    with folder_lock(out):
        index = _open_index(out, titles)
        if attribute:
            attribute_neurons(encoder, task, artifacts)
        entry = build_pair(
            artifacts, encoder, task, selection, titles, out, neurons, strongest, clips
        )
        _add_entry(out, index, entry, [])
        _write_page(out)
    return out / "index.html"


def default_titles(artifacts: Artifacts, encoder: Encoder, task: Task) -> Titles:
    """Names of a model on a task without a study."""
    study = artifacts.path.resolve().parent.name
    return Titles(study, encoder.name, task.name, encoder.name, task.name)


def build_study(
    study: str | Path | Study,
    *,
    models: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    strongest: int = 20,
    out_dir: str | Path | None = None,
    attribute: bool = False,
) -> Path:
    """The atlas of a study: `build_atlas` for every model and task that has been collected.

    Models and tasks are independent of each other. On a CPU they are built in several processes with one thread each.

    Args:
        study: the study or its name.
        models, tasks: of the study; default all.
        strongest: neurons of each class that get a page.
        out_dir: default `outputs/<study>/atlas`.
        attribute: as in `build_atlas`.

    Raises:
        FileNotFoundError: nothing has been collected.
    """
    study = load_study(study)
    pairs = []
    for model in models or study.encoders:
        for task in tasks or study.tasks:
            if (study.artifacts_directory(task, model) / "over_zero.pt").is_file():
                pairs.append((model, task))
    if not pairs:
        raise FileNotFoundError(
            f"{study.directory} has no artifacts of study {study.name!r}; collect them first"
        )
    out = study.directory / "atlas" if out_dir is None else Path(out_dir)
    order = [(model, task) for model in study.encoders for task in study.tasks]
    _refuse_other_content(out)
    with folder_lock(out), joblib.parallel_config("loky", inner_max_num_threads=1):
        index = _open_index(out, _titles_of(study, *pairs[0]))
        build = joblib.delayed(_build_study_pair)
        jobs = [build(study, model, task, out, strongest, attribute) for model, task in pairs]
        processes = min(len(pairs), PROCESSES, os.cpu_count() or 1)
        if choose_device().type != "cpu":
            processes = 1
        for entry in joblib.Parallel(processes, return_as="generator")(jobs):
            _add_entry(out, index, entry, order)
        _write_page(out)
    return out / "index.html"


def _titles_of(study: Study, model: str, task: str) -> Titles:
    spec = study.encoder(model)
    title = study.task(task).title
    return Titles(
        study.name, model, task, spec.label, title, spec.role, study.note, study.substitute
    )


def _build_study_pair(
    study: Study, model: str, task_name: str, out: Path, strongest: int, attribute: bool
) -> dict[str, Any]:
    """`build_pair` for one model and task of a study."""
    artifacts = load_artifacts(study.artifacts_directory(task_name, model))
    encoder = load_encoder(study, model).to(choose_device())
    task = load_task(study, task_name)
    selection = select(artifacts, **study.select_by(task_name))
    if attribute:
        attribute_neurons(encoder, task, artifacts)
    titles = _titles_of(study, model, task_name)
    return build_pair(artifacts, encoder, task, selection, titles, out, None, strongest)


def _refuse_other_content(out: Path) -> None:
    """Raise ValueError if a folder holds something that is not an atlas."""
    if not out.is_dir() or (out / "index.js").is_file():
        return
    foreign = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    if foreign:
        raise ValueError(
            f"{out} holds {min(foreign)!r} and is not an atlas; give a folder of its own, such as {out / 'atlas'}"
        )


def _open_index(out: Path, titles: Titles) -> dict[str, Any]:
    """The index of the atlas in a folder, or a new one, which is written: it marks the folder as an atlas.

    Raises:
        ValueError: an atlas of another study or of another version, or an index.js that is not an atlas' index.
    """
    index: dict[str, Any] = {
        "v": SCHEMA,
        "study": titles.study,
        "note": titles.note,
        "substitute": titles.substitute,
        "pairs": [],
    }
    path = out / "index.js"
    if path.is_file():
        try:
            known = read_script(out, "index")
            version, study, index["pairs"] = known["v"], known["study"], known["pairs"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path} is not the index of an atlas; give another folder, or delete this one"
            ) from None
        if version != SCHEMA or study != titles.study:
            raise ValueError(
                f"{out} is the atlas of study {study!r} (format {version}), but these artifacts belong to "
                f"{titles.study!r} (format {SCHEMA}); give another folder, or delete this one"
            )
    write_script(out, "index", index)
    return index


def _add_entry(
    out: Path, index: dict[str, Any], entry: dict[str, Any], order: Sequence[tuple[str, str]]
) -> None:
    """Put an entry into the index in place of an earlier one, in the study's order of models and tasks."""
    place = {pair: i for i, pair in enumerate(order)}
    entries = {known["folder"]: known for known in index["pairs"]}
    entries[entry["folder"]] = entry
    index["pairs"] = sorted(
        entries.values(), key=lambda known: place.get((known["m"], known["t"]), 0)
    )
    write_script(out, "index", index)


def _write_page(out: Path) -> None:
    for name in PAGE:
        write_text(out / name, resources.files("aape.atlas").joinpath(name).read_text())
