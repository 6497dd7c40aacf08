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

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from aape.artifacts.folder import Artifacts, load_artifacts
from aape.atlas.pair import About, Pair, read_script, write_script
from aape.atlas.record import SCHEMA, with_pages
from aape.causal import attribution
from aape.encoders.encoder import Encoder, alone_with, choose_device, full_precision
from aape.files import folder_lock, write_text
from aape.neurons.selection import Selection, select
from aape.sounds.task import Task
from aape.study.loading import load_encoder, load_task
from aape.study.study import Study, load_study

PAGE = ("index.html", "app.js", "app.css")
PAIRS_AT_ONCE = 2  # a pass, and the making of sounds and pictures, leave one core idle in turns


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
    about = about or About(artifacts.path.resolve().parent.name, encoder.name, task.name, encoder.name, task.name)
    selection = select(artifacts) if selection is None else selection
    with _opened(Path(out_dir), about) as add:
        if attribute:
            attribution.attribute(encoder, task, artifacts)
        add(Pair(artifacts, encoder, task, selection, about, Path(out_dir), clips), neurons, strongest)
    return Path(out_dir) / "index.html"


def build_study(
    study: str | Path | Study,
    *,
    models: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    strongest: int = 20,
    out_dir: str | Path | None = None,
    attribute: bool = False,
) -> Path:
    """The atlas of a study: `build_atlas` for every model and task that has been collected, two at a time.

    Args:
        study: by name, or loaded.
        models, tasks: of the study; default all.
        strongest: neurons of each class that get a page.
        out_dir: default `outputs/<study>/atlas`.
        attribute: as `build_atlas`.

    Raises:
        FileNotFoundError: nothing has been collected.
    """
    study = load_study(study)
    found = {
        model: [t for t in tasks or study.tasks if (study.artifacts_directory(t, model) / "over_zero.pt").is_file()]
        for model in models or study.encoders
    }
    if not any(found.values()):
        raise FileNotFoundError(f"{study.directory} has no artifacts of study {study.name!r}; collect them first")
    sounds = {name: load_task(study, name) for name in dict.fromkeys(chain.from_iterable(found.values()))}
    out = study.directory / "atlas" if out_dir is None else Path(out_dir)
    mine = threading.local()  # a model at a time for each of the threads, since hooks of two passes would mix

    def build(model: str, task: str) -> None:
        if getattr(mine, "model", None) != model:
            mine.model, mine.encoder = model, load_encoder(study, model).to(choose_device())
        spec, artifacts = study.encoder(model), load_artifacts(study.artifacts_directory(task, model))
        title = study.task(task).title
        about = About(study.name, model, task, spec.label, title, spec.role, study.note, study.stand_in)
        with alone_with(mine.encoder):
            selection = select(artifacts, **study.select_by(task))
            if attribute:
                attribution.attribute(mine.encoder, sounds[task], artifacts)
            add(Pair(artifacts, mine.encoder, sounds[task], selection, about, out), None, strongest)

    whole = About(study.name, "", "", "", "", None, study.note, study.stand_in)
    order = [(model, task) for model in study.encoders for task in study.tasks]
    threads = torch.get_num_threads()
    with (
        _opened(out, whole, order) as add,
        full_precision(),
        ThreadPoolExecutor(
            PAIRS_AT_ONCE, initializer=torch.set_num_threads, initargs=(max(1, threads // PAIRS_AT_ONCE),)
        ) as pool,
    ):
        building = [pool.submit(build, model, task) for model, tasks in found.items() for task in tasks]
        try:
            for pair in as_completed(building):
                pair.result()
        finally:
            pool.shutdown(cancel_futures=True)  # after an error the other thread ends with its pair
            torch.set_num_threads(threads)  # of threads to come
    return out / "index.html"


@contextlib.contextmanager
def _opened(out: Path, about: About, order: Sequence[tuple[str, str]] = ()) -> Iterator[Callable[..., None]]:
    """The folder of an atlas, locked; the page is written at its end.

    Args:
        out: the folder. about: of any of its pairs. order: (model, task)s as the index lists them.

    Yields:
        What adds a pair; several threads may.
    """
    strangers = [p.name for p in out.iterdir() if p.name[0] != "."] if out.is_dir() else []
    if strangers and not (out / "index.js").is_file():
        raise ValueError(f"{out} holds {min(strangers)!r} and is no atlas; give a folder of its own: {out / 'atlas'}")
    writing, place = threading.Lock(), {pair: i for i, pair in enumerate(order)}

    def add(pair: Pair, neurons: Any, strongest: int) -> None:
        there = {entry["folder"]: entry for entry in index["pairs"]}.get(pair.about.folder)
        entry = pair.build(there, with_pages(pair.heard, neurons, strongest))
        with writing:
            pairs = {e["folder"]: e for e in index["pairs"]} | {pair.about.folder: entry}
            index["pairs"] = sorted(pairs.values(), key=lambda e: place.get((e["m"], e["t"]), 0))
            write_script(out, "index", index)

    with folder_lock(out):
        index = _read_index(out, about)
        write_script(out, "index", index)  # from here on the folder is known as an atlas
        yield add
        with contextlib.suppress(OSError):  # a pair was cut off, or nothing was begun
            (out / ".partial").rmdir()
        for name in PAGE:
            write_text(out / name, resources.files("aape.atlas").joinpath(name).read_text())


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
        index = read_script(out, "index")
        version, study, pairs = index["v"], index["study"], index["pairs"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not the index of an atlas; give another folder, or delete this one") from None
    if version != SCHEMA or study != about.study:
        raise ValueError(
            f"{out} is the atlas of study {study!r} (format {version}), these artifacts are of {about.study!r} "
            f"(format {SCHEMA}); give another folder, or delete this one"
        )
    return fresh | {"pairs": pairs}
