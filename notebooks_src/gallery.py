"""Write gallery/notebooks/: small executed copies of five notebooks, so that GitHub shows their pictures.

python -m notebooks_src.run whisper                          # collects, analyses and ablates; once
python -m notebooks_src.gallery whisper --sounds FOLDER --pattern "{label}_{group}_{}.wav"

Copies that the runner has made and that are up to date are taken from outputs/<study>/notebooks/. Others are executed
and kept there, so that a second call takes seconds. `sources.json` holds the SHA-256 of the script behind each notebook;
a test compares it with today's scripts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from aape.cli import guarded
from aape.files import folder_lock, sha256_of, write_json, write_text
from aape.study.loading import load_task, resolve
from aape.study.study import ROOT, Study, load_study
from notebooks_src.generate import OTHERS, SOURCES, all_notebooks
from notebooks_src.run import Notebook, collecting_notebooks, execute_missing, final_notebooks
from notebooks_src.shrinking import shrink

FOLDER = ROOT / "gallery" / "notebooks"
SHOWN = ("Collect", "Analyze_ClassSpecificNeurons")
AT_MOST = 3_000_000  # bytes of all notebooks together


def shown() -> list[str]:
    """The notebooks of the gallery that this repository has."""
    return [name for name in SHOWN if name in OTHERS]


def study_notebooks(study: Study, name: str, task: str, model: str) -> dict[str, Notebook]:
    """One collecting notebook, the analysis and the ablations, exactly as the runner executes them."""
    loaded = load_task(study, task)
    sounds = [loaded.audio_dir / file for file in loaded.files]
    found = {}
    for notebook in collecting_notebooks(study, name, task, sounds):
        if notebook.parameters["model"] == model:
            found["Collect"] = notebook
    for notebook in final_notebooks(study, name):
        found[Path(notebook.source).stem] = notebook
    return found


def own_notebooks(
    study: Study, model: str, settings: dict[str, dict[str, Any]]
) -> dict[str, Notebook]:
    """The notebooks that need no study.

    Args:
        study: its folder receives the results.
        model: a name on the Hub, or a folder.
        settings: notebook -> its parameters besides model and folder of results, such as the folder `sounds`.
    """
    found = {}
    for name, chosen in settings.items():
        out = study.directory / name.lower()
        parameters = {"model": model, "out": str(out), **chosen}
        named = (parameters["model"], parameters.get("sounds"))
        folders = [Path(value) for value in named if value]
        inputs = tuple(folder for folder in folders if folder.exists())
        file = f"{name}.ipynb"
        found[name] = Notebook(file, file, parameters, inputs)
    return found


def write_notebooks(study: Study, notebooks: dict[str, Notebook], folder: Path = FOLDER) -> None:
    """Execute what is not up to date, and write small copies and `sources.json`.

    Args:
        study: where the executed copies are.
        notebooks: name of a script in notebooks_src -> its notebook.
        folder: receives the copies; other notebooks there are deleted.

    Raises:
        ValueError: a notebook is not what its script gives, or the copies cannot be made small enough.
    """
    _check_generated(notebooks)
    groups = [[notebook] for notebook in notebooks.values()]
    execute_missing(groups, study, workers=1)
    books = {}
    for name, notebook in notebooks.items():
        path = study.directory / "notebooks" / notebook.executed
        books[name] = nbformat.read(path, as_version=4)
    texts = small_copies(books)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.ipynb"):
        path.unlink()
    for name, text in texts.items():
        write_text(folder / f"{name}.ipynb", text)
        print(f"{name}.ipynb: {len(text.encode()):,} bytes", flush=True)
    hashes = {name: sha256_of(SOURCES / f"{name}.py") for name in notebooks}
    write_json(folder / "sources.json", hashes)


def small_copies(books: dict[str, NotebookNode], at_most: int = AT_MOST) -> dict[str, str]:
    """Texts of notebooks, together of at most so many bytes. What a small one leaves is for the larger ones."""
    sizes = {name: len(nbformat.writes(book)) for name, book in books.items()}
    by_size = sorted(books, key=lambda name: sizes[name])
    texts: dict[str, str] = {}
    free = at_most
    for name in by_size:
        waiting = len(books) - len(texts)
        texts[name] = shrink(books[name], free / waiting)
        free -= len(texts[name].encode())
    return texts


def _check_generated(notebooks: dict[str, Notebook]) -> None:
    today = all_notebooks()
    for notebook in notebooks.values():
        committed = (ROOT / notebook.source).read_text()
        if committed != today[notebook.source]:
            raise ValueError(
                f"{notebook.source}: expected what its script in notebooks_src gives, found another text; run "
                "`make notebooks` first"
            )


def _on_hub(study: Study, model: str) -> str:
    """Name or folder of a study's model that comes from the Hub."""
    found = study.encoder(model).options.get("name_or_folder")
    if found is None:
        raise ValueError(
            f"model {model!r} of the study does not come from the Hub: name one with --hub"
        )
    return str(resolve("name_or_folder", found, study.base))


def _run(options: argparse.Namespace) -> None:
    name = options.study
    if Path(name).suffix in (".yaml", ".yml"):
        name = str(Path(name).resolve())  # kernels start in the repository's folder
    study = load_study(name)
    task = options.task or next(iter(study.tasks))
    model = options.model or next(iter(study.encoders))
    hub = options.hub or _on_hub(study, model)
    if Path(hub).is_dir():
        hub = str(Path(hub).resolve())
    dissecting = {"sounds": str(options.sounds.resolve()), "pattern": options.pattern}
    tuning = {}
    if options.natural:
        tuning["sounds"] = str(options.natural.resolve())
    settings = {"Dissect_Your_Own": dissecting, "Tuning": tuning}
    possible = study_notebooks(study, name, task, model)
    possible |= own_notebooks(study, hub, settings)
    chosen = {title: possible[title] for title in shown() if title in possible}
    with folder_lock(study.directory / "notebooks"):
        write_notebooks(study, chosen)
    print(f"open {FOLDER}")


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", nargs="?", default="whisper")
    parser.add_argument("--task", help="of the collecting notebook (default: the study's first)")
    parser.add_argument("--model", help="of the collecting notebook (default: the study's first)")
    own = parser.add_argument_group("Dissect_Your_Own and Tuning")
    own.add_argument("--sounds", type=Path, required=True, help="folder of sounds to dissect")
    own.add_argument("--pattern", help="of their file names (default: one subfolder per class)")
    own.add_argument(
        "--hub",
        help="model: a name on the Hub, or a folder (default: that of the study's first model)",
    )
    own.add_argument(
        "--natural", type=Path, help="folder of sounds for the receptive fields of Tuning"
    )
    options = parser.parse_args(arguments)
    return guarded("notebooks_src.gallery", lambda: _run(options))


if __name__ == "__main__":
    sys.exit(main())
