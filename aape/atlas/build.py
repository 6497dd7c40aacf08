"""The atlas: a static site from which one hears what neurons listen to. It opens from disk; no server, no network.

    out_dir/index.html, app.js, app.css     the page
    out_dir/index.js                        what there is: models, tasks, classes
    out_dir/<model>-<task>/pair.js          one model on one task: classes, clips, and all neurons for the search
    out_dir/<model>-<task>/L03.js           the records of the neurons of layer 3 that have a page
    out_dir/clips/<hash>.mp3, .png          sounds and spectrograms, shared by all pairs

The `.js` files are classic scripts that hand one JSON value to the page, since browsers block fetch and modules on
file://. Every value has the schema's version.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from aape import attribution
from aape.artifacts import Artifacts, load_artifacts
from aape.atlas.pair import About, Pair, write_script
from aape.atlas.record import SCHEMA, with_pages
from aape.encoder import Encoder, choose_device
from aape.files import folder_lock, write_text
from aape.selection import Selection, select
from aape.study import Study, load_encoder, load_study, load_task
from aape.task import Task

PAGE = ("index.html", "app.js", "app.css")


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
    about: About | None = None,
    attribute: bool = False,
) -> Path:
    """Pages of one model's neurons on one task, added to the atlas in a folder.

    The strongest neurons of each class get a page with sounds; the search knows all neurons. Work that was cut off
    goes on where it stopped, what is up to date is left alone, and only clips that are shown go through the model.

    Args:
        artifacts: of the encoder on the task. q and what is calibrated come from the analysis' neurons.csv beside them.
        encoder: the model that made them. Without a token grid the pages have no maps.
        task: the clips.
        out_dir: folder of the atlas: new, empty, or an atlas of the same study.
        neurons: int [k, 2] of (layer, neuron) that get a page too.
        strongest: neurons of each class that get a page.
        clips: shown of each neuron, 10 to 60: the most active, examples of four quarters, contrasts, random ones.
        selection: made from the artifacts; default `select(artifacts)`.
        about: names; default the encoder's and the task's, and for the study the folder that the artifacts lie in.
        attribute: compute each neuron's attribution, a forward and a backward pass over the training clips, unless
            `aape.attribute` has left it beside the artifacts already: what is there is shown anyway.

    Returns:
        Path of index.html.

    Raises:
        ValueError: the artifacts are of another model or other clips, a neuron that is not there, `out_dir` holds
            something else or another study's atlas.
        FolderBusy: another process is building there.
    """
    if not 10 <= clips <= 60:
        raise ValueError(f"clips: expected 10 to 60 for each neuron, found {clips}")
    about = about or About(artifacts.path.resolve().parent.name, encoder.name, task.name, encoder.name, task.name)
    selection = selection or select(artifacts)
    if selection.classes != artifacts.classes or selection.members.shape != tuple(artifacts.over_zero.shape):
        raise ValueError(f"the selection is not of {artifacts.path}: make it with select() from these artifacts")
    out = Path(out_dir)
    _check_folder(out)
    if attribute:
        attribution.attribute(encoder, task, artifacts)
    with folder_lock(out):
        index = _read_index(out, about)
        write_script(out, "index", index)  # from here on the folder is known as an atlas
        pair = Pair(artifacts, encoder, task, selection, about, out)
        pair.build(index, with_pages(pair.heard, neurons, strongest), clips)
        for name in PAGE:
            write_text(out / name, resources.files("aape.atlas").joinpath(name).read_text())
    return out / "index.html"


def build_study(
    study: Study | str,
    *,
    models: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    strongest: int = 20,
    out_dir: str | Path | None = None,
    attribute: bool = False,
) -> Path:
    """The atlas of a study: `build_atlas` for every model and task that has been collected.

    Args:
        study: by name, or loaded.
        models, tasks: of the study; default all.
        strongest: neurons of each class that get a page.
        out_dir: default `outputs/<study>/atlas`.
        attribute: as `build_atlas`.

    Raises:
        FileNotFoundError: nothing has been collected.
    """
    study = study if isinstance(study, Study) else load_study(study)
    out = study.directory / "atlas" if out_dir is None else Path(out_dir)
    for model in models or study.encoders:
        found = [t for t in tasks or study.tasks if (study.artifacts_directory(t, model) / "over_zero.pt").is_file()]
        if not found:
            continue
        spec, settings = study.encoder(model), study.selection
        encoder = load_encoder(study, model).to(choose_device())
        for name in found:
            artifacts, title = load_artifacts(study.artifacts_directory(name, model)), study.task(name).title
            about = About(study.name, model, name, spec.label, title, spec.role, study.note, study.stand_in)
            rule = settings.model_copy(update={"rate": study.rate(name)}).model_dump()
            selection = select(artifacts, **rule)
            what = artifacts, encoder, load_task(study, name), out
            build_atlas(*what, strongest=strongest, selection=selection, about=about, attribute=attribute)
    if not (out / "index.js").is_file():
        raise FileNotFoundError(f"{study.directory} has no artifacts of study {study.name!r}; collect them first")
    return out / "index.html"


def _check_folder(out: Path) -> None:
    strangers = [p.name for p in out.iterdir() if not p.name.startswith(".")] if out.is_dir() else []
    if strangers and not (out / "index.js").is_file():
        raise ValueError(
            f"{out} holds {sorted(strangers)[0]!r} and is no atlas; give a folder of its own, e.g. {out / 'atlas'}"
        )


def _read_index(out: Path, about: About) -> dict[str, Any]:
    """The atlas that is there, or an empty one, for the same study.

    Raises:
        ValueError: another study's atlas, another version's, or an index.js that is none.
    """
    path = out / "index.js"
    fresh = {"v": SCHEMA, "study": about.study, "note": about.note, "stand_in": about.stand_in, "pairs": []}
    if not path.is_file():
        return fresh
    try:
        index = json.loads(path.read_text().removeprefix('aapeAtlas("index",').removesuffix(");\n"))
        version, study, pairs = index["v"], index["study"], index["pairs"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not the index of an atlas; give another folder, or delete this one") from None
    if version != SCHEMA or study != about.study:
        raise ValueError(
            f"{out} is the atlas of study {study!r} (format {version}), these artifacts are of {about.study!r} "
            f"(format {SCHEMA}); give another folder, or delete this one"
        )
    return fresh | {"pairs": pairs}
