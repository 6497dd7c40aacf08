"""Execute the notebooks of a study in the order of their dependencies: python -m notebooks_src.run miniature

Every task of the study goes through every model: in the paper's own notebooks where it has one for the two, in
Collect.ipynb otherwise; then come the analysis and the ablations. Executed copies go to `outputs/<study>/notebooks/`.
A notebook is executed again only if the notebook, the study, the code, the weights, the sounds or the artifacts changed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from joblib import Parallel, delayed
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager

from aape.cli import guarded
from aape.files import folder_lock, write_text
from aape.study.loading import load_task, resolve
from aape.study.study import ROOT, Study, load_study
from notebooks_src.generate import collecting_notebook

# Of glibc: memory that is freed stays with the process, so that every batch does not ask the system for it again.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
MATPLOTLIB = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline"
}  # executed copies hold their pictures


@dataclass(frozen=True)
class Notebook:
    """A notebook of a study.

    Attributes:
        source: file name.
        executed: file name of the executed copy.
        parameters: as papermill sets them.
        inputs: files and folders that the result depends on, besides the code and the study.
        result: file that must be there when it is done; None: only the executed copy.
    """

    source: str
    executed: str
    parameters: dict[str, Any]
    inputs: tuple[Path, ...]
    result: Path | None = None


def collecting_notebooks(
    study: Study, name: str, task: str, sounds: Iterable[Path] = ()
) -> list[Notebook]:
    """The notebooks that collect every model on one task; `sounds` are the files of its clips."""
    notebooks = []
    for model in study.encoders:
        source = collecting_notebook(model, task)
        executed = f"Collect.{task}.{model}.ipynb" if source == "Collect.ipynb" else source
        parameters = {"study": name, "model": model, "task": task}
        inputs = (*_weights(study, model), *sounds)
        manifest = study.artifacts_directory(task, model) / "manifest.json"
        notebooks.append(Notebook(source, executed, parameters, inputs, manifest))
    return notebooks


def final_notebooks(study: Study, name: str) -> list[Notebook]:
    """The analysis, and the ablations where the study has targets."""
    manifests = tuple(sorted(study.directory.glob("*/manifest.json")))
    sources = ["Analyze_ClassSpecificNeurons.ipynb"]
    if study.ablation.targets:
        sources.append("Ablations.ipynb")
    else:
        print(f"{name}: no ablations, because the study has no ablation.targets", flush=True)
    return [Notebook(source, source, {"study": name}, manifests) for source in sources]


def _weights(study: Study, model: str) -> list[Path]:
    """The paths among a model's options."""
    options = study.encoder(model).options
    values = [resolve(key, value, study.base) for key, value in options.items()]
    return [value for value in values if isinstance(value, Path)]


@contextlib.contextmanager
def kernel(threads: int | None = None) -> Iterator[KernelManager]:
    """A kernel of this Python environment, whatever kernels Jupyter would find elsewhere. It ends with the block."""
    environment = os.environ | MALLOC | MATPLOTLIB
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    only_this_python = KernelSpecManager(kernel_dirs=[])
    manager = KernelManager(kernel_name="python3", kernel_spec_manager=only_this_python)
    manager.start_kernel(cwd=str(ROOT), env=environment, extra_arguments=["--log-level=ERROR"])
    try:
        yield manager
    finally:
        manager.shutdown_kernel(now=True)


def execute(notebooks: Sequence[Notebook], study: Study, threads: int | None = None) -> None:
    """Execute some notebooks one after the other in one kernel, because starting one and importing torch takes seconds.

    Notebooks of one template set the same names in the same order, so that nothing of one reaches the next.

    Raises:
        papermill.PapermillExecutionError: a cell failed; the executed copy shows where.
    """
    folder = study.directory / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    with kernel(threads) as manager:
        for notebook in notebooks:
            start = time.monotonic()
            stamp = _stamp(
                notebook, study
            )  # before the run: it does not cover what changes meanwhile
            papermill.execute_notebook(
                str(ROOT / notebook.source),
                str(folder / notebook.executed),
                notebook.parameters,
                progress_bar=False,
                kernel_name="python3",
                km=manager,
            )
            _number_cells(folder / notebook.executed)
            write_text(folder / f".{notebook.executed}.stamp", stamp)
            print(f"{notebook.executed}: {time.monotonic() - start:.0f} s", flush=True)


def _number_cells(path: Path) -> None:
    """Number the executed cells of a copy from 1, as a kernel of its own would have done."""
    book = nbformat.read(path, as_version=4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        for numbered in (cell, *cell.outputs):
            if "execution_count" in numbered:
                numbered["execution_count"] = number
    write_text(path, nbformat.writes(book))


def execute_missing(
    groups: Iterable[Sequence[Notebook]], study: Study, workers: int, threads: int | None = None
) -> int:
    """Execute what is not done of groups of notebooks, `workers` groups at a time; returns how many notebooks had to be executed."""
    waiting = [
        [notebook for notebook in group if not _is_done(notebook, study)] for group in groups
    ]
    todo = [group for group in waiting if group]
    if not todo:
        return 0
    at_once = min(workers, len(todo))
    threads = threads or max(1, (os.cpu_count() or 1) // at_once)
    # The threads of this pool only wait for kernels, which are processes.
    Parallel(n_jobs=at_once, prefer="threads")(
        delayed(execute)(group, study, threads) for group in todo
    )
    return sum(map(len, todo))


def _is_done(notebook: Notebook, study: Study) -> bool:
    folder = study.directory / "notebooks"
    stamp = folder / f".{notebook.executed}.stamp"
    if not stamp.is_file() or not (folder / notebook.executed).is_file():
        return False
    if notebook.result is not None and not notebook.result.is_file():
        return False
    return stamp.read_text() == _stamp(notebook, study)


def _stamp(notebook: Notebook, study: Study) -> str:
    """Hash of everything that an executed copy depends on. Of large files only the size and the time are read."""
    digest = hashlib.sha256(
        study.model_dump_json().encode() + json.dumps(notebook.parameters).encode()
    )
    digest.update((ROOT / notebook.source).read_bytes())
    code = [
        *ROOT.glob("*.py"),
        *ROOT.glob("aape/**/*.py"),
        *ROOT.glob("miniature/*.py"),
        *study.base.glob("*.py"),
    ]
    for path in sorted(set(code)):
        digest.update(path.read_bytes())
    for path in notebook.inputs:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.suffix == ".json":
                digest.update(file.read_bytes())
            elif file.is_file():
                status = file.stat()
                digest.update(f"{file} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def run_study(name: str, workers: int = 2) -> int:
    """Execute all notebooks of a study, the collecting ones `workers` at a time; returns how many were executed."""
    if Path(name).suffix in (".yaml", ".yml"):
        name = str(Path(name).resolve())  # kernels start in the repository's folder
    study = load_study(name)
    sounds = {}
    for task in study.tasks:  # sounds that are made on first use are made here
        start = time.monotonic()
        loaded = load_task(study, task)
        sounds[task] = [loaded.audio_dir / file for file in loaded.files]
        print(
            f"{name}/{task}: {len(loaded)} clips ready ({time.monotonic() - start:.0f} s)",
            flush=True,
        )
    with_own_pass = [task for task, spec in study.tasks.items() if spec.same_clips_as is None]
    relabelled = [task for task in study.tasks if task not in with_own_pass]
    executed = 0
    for tasks in (with_own_pass, relabelled):
        groups = [collecting_notebooks(study, name, task, sounds[task]) for task in tasks]
        executed += execute_missing(groups, study, workers)
    final = [[notebook] for notebook in final_notebooks(study, name)]
    # Side by side, each with all cores: neither needs the other, and the analysis uses one core most of the time.
    return executed + execute_missing(final, study, len(final), threads=os.cpu_count())


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", nargs="?", default="miniature")
    parser.add_argument("--workers", type=int, default=2, help="tasks that are collected at a time")
    options = parser.parse_args(arguments)

    def run() -> None:
        start = time.monotonic()
        study = load_study(options.study)
        with folder_lock(study.directory / "notebooks"):
            executed = run_study(options.study, options.workers)
        seconds = time.monotonic() - start
        print(f"{executed} notebook(s) executed in {seconds:.0f} s; results in {study.directory}")

    return guarded("notebooks_src.run", run)


if __name__ == "__main__":
    sys.exit(main())
