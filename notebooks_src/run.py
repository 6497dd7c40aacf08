"""Execute the notebooks of a study in the order of their dependencies: python -m notebooks_src.run miniature

Every task of the study goes through every model: in the paper's own notebooks where it has one for the two, in
Collect.ipynb otherwise; then come the analysis and the ablations. Executed copies go to `outputs/<study>/notebooks/`.
A notebook that was executed from the same source, study, loaders, weights, sounds and artifacts is not executed again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import queue
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from importlib.machinery import PathFinder
from pathlib import Path
from stat import S_ISDIR

import papermill
from jupyter_client import BlockingKernelClient, KernelManager
from traitlets.config import Config

from aape.files import FolderBusy, folder_lock, write_json
from aape.sounds.task import Task
from aape.study.loading import load_task, resolve
from aape.study.study import ROOT, Loader, Study, load_study
from notebooks_src.generate import collecting_notebook

# What a fresh kernel does not have: names, numbers of cells, open figures, warnings that were shown already.
FORGET = """
import sys, warnings
if "matplotlib.pyplot" in sys.modules:
    sys.modules["matplotlib.pyplot"].close("all")
with warnings.catch_warnings():
    pass
get_ipython().reset(new_session=True)
__import__("gc").collect()
"""


@dataclass(frozen=True)
class Job:
    """A notebook with its parameters, the name of its executed copy, and the files that its result stands on.

    `reads` is of files too large to be read each time: what they are -> `_mark` of them, None where they are not here.
    """

    notebook: str
    executed: str
    parameters: dict[str, str]
    inputs: tuple[Path, ...] = ()
    results: tuple[Path, ...] = ()
    reads: Mapping[str, str | None] = field(default_factory=dict)


def collecting_jobs(study: Study, name: str) -> list[Job]:
    """One job for each task and model of the study."""
    jobs = []
    for task in study.tasks:
        for model in study.encoders:
            notebook = collecting_notebook(model, task)
            executed = notebook if notebook != "Collect.ipynb" else f"Collect.{task}.{model}.ipynb"
            manifest = study.artifacts_directory(task, model) / "manifest.json"
            sources = {*_sources(study, study.task(task)), *_sources(study, study.encoder(model))}
            parameters = {"study": name, "model": model, "task": task}
            jobs.append(Job(notebook, executed, parameters, tuple(sorted(sources)), (manifest,)))
    return jobs


def _sources(study: Study, spec: Loader) -> Iterator[Path]:
    """The code of a loader outside `aape`: its module or package, and what lies beside the study."""
    yield from study.base.glob("*.py")
    top = re.split(r"[.:]", spec.loader)[0]
    found = None if top == "aape" else PathFinder.find_spec(top, [*sys.path, str(study.base)])
    if found and found.submodule_search_locations:
        yield from (path for folder in found.submodule_search_locations for path in Path(folder).rglob("*.py"))
    elif found and found.origin:
        yield Path(found.origin)


def _mark(paths: Iterable[Path], also: str = "") -> str | None:
    """Hash of sizes and times of files, and of all files below folders; None where one is not there."""
    digest = hashlib.sha256(also.encode())
    try:
        for path in paths:
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                stat = file.stat()
                if not S_ISDIR(stat.st_mode):
                    digest.update(f"{file.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    except OSError:
        return None
    return digest.hexdigest()


def _weights(study: Study, model: str) -> str | None:
    """`_mark` of the paths among a model's options."""
    options = study.encoder(model).options.items()
    try:
        return _mark([p for p in (resolve(key, value, study.base) for key, value in options) if isinstance(p, Path)])
    except ValueError:  # a variable that is not set: they are not on this machine
        return None


def final_jobs(study: Study, name: str) -> list[Job]:
    """Analysis, then ablations where the study has targets; both stand on every manifest there is."""
    manifests = tuple(sorted(study.directory.glob("*/manifest.json")))
    notebooks = ["Analyze_ClassSpecificNeurons.ipynb"] + ["Ablations.ipynb"] * bool(study.ablation.targets)
    return [Job(notebook, notebook, {"study": name}, manifests) for notebook in notebooks]


def _stamp(job: Job, study: Study) -> str:
    """Hash of everything an executed copy depends on: notebook, study, code, artifacts."""
    digest = hashlib.sha256(study.model_dump_json().encode() + json.dumps(job.parameters).encode())
    code = [p for pattern in ("*.py", "aape/**/*.py") for p in sorted(ROOT.glob(pattern))]
    for path in (ROOT / job.notebook, *code, *job.inputs):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _is_done(job: Job, study: Study) -> bool:
    folder = study.directory / "notebooks"
    stamp = folder / f".{job.executed}.json"
    if not stamp.is_file() or not (folder / job.executed).is_file():
        return False
    saved = json.loads(stamp.read_text())
    # what is not on this machine cannot have changed: artifacts may come from another one
    same = all(mark in (None, saved.get("reads", {}).get(what)) for what, mark in job.reads.items())
    return same and saved["stamp"] == _stamp(job, study) and all(p.is_file() for p in job.results)


@contextlib.contextmanager
def kernel(threads: int | None = None) -> Iterator[KernelManager]:
    """A kernel as Jupyter starts it, which ends with the block, or with this process if that is killed.

    It talks through sockets in a folder of its own: of two kernels that start at once, TCP may give both one port.
    Matplotlib's backend is Jupyter's whatever the environment says, so that executed copies hold their pictures.
    """
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory(prefix="kernel-") as sockets:
        config = Config()
        if os.name == "posix":
            config.KernelManager.transport = "ipc"
            config.KernelManager.ip = str(Path(sockets) / "socket")
        manager = KernelManager(kernel_name="python3", config=config)
        manager.start_kernel(cwd=str(ROOT), env=environment)
        try:
            yield manager
        finally:
            manager.shutdown_kernel(now=True)


def _forget(manager: KernelManager) -> None:
    """Bring a kernel back to where a fresh one is, but for the modules that it has imported."""
    client: BlockingKernelClient = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        reply = client.execute_interactive(FORGET, silent=True, store_history=False, timeout=60)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(f"the kernel could not be reset: {reply['content']}")
    finally:
        client.stop_channels()


def execute(job: Job, study: Study, manager: KernelManager) -> float:
    """Execute one notebook headless, as a fresh kernel would; returns seconds.

    Raises:
        papermill.PapermillExecutionError: a cell failed; the executed copy shows where.
        ValueError: a parameter that the notebook does not have.
    """
    source = ROOT / job.notebook
    known = papermill.inspect_notebook(str(source))
    unknown = sorted(set(job.parameters) - set(known))
    if unknown:
        raise ValueError(f"{job.notebook} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
    folder = study.directory / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    start, stamp = time.monotonic(), _stamp(job, study)  # not of what is changed while it runs
    _forget(manager)
    papermill.execute_notebook(
        str(source), str(folder / job.executed), job.parameters, progress_bar=False, kernel_name="python3", km=manager
    )
    write_json(folder / f".{job.executed}.json", {"stamp": stamp, "reads": job.reads})
    return time.monotonic() - start


def _execute_all(jobs: list[Job], study: Study, workers: int, threads: int) -> None:
    """Execute jobs, `workers` at a time, each worker with one kernel of so many threads for all of its notebooks.

    After a failure the notebooks that are running are finished, so that nothing is lost, and no other is begun.
    """
    kernels: queue.SimpleQueue[KernelManager] = queue.SimpleQueue()

    def one(job: Job) -> float:
        manager = kernels.get()
        try:
            return execute(job, study, manager)
        finally:
            kernels.put(manager)

    failure = None
    with ThreadPoolExecutor(workers) as pool, contextlib.ExitStack() as stack:
        for _ in range(workers):
            kernels.put(stack.enter_context(kernel(threads)))
        futures = {pool.submit(one, job): job for job in jobs}
        for number, future in enumerate(as_completed(futures), 1):
            if future.cancelled():
                continue
            if future.exception() is not None:
                failure = failure or future.exception()
                for other in futures:
                    other.cancel()
                continue
            print(f"[{number}/{len(jobs)}] {futures[future].executed}: {future.result():.0f} s", flush=True)
    if failure is not None:
        raise failure


def run_study(name: str, workers: int = 2) -> int:
    """All notebooks of a study; returns how many were executed. Collecting ones run `workers` at a time."""
    if Path(name).suffix in (".yaml", ".yml"):
        name = str(Path(name).resolve())  # kernels start in the repository's folder
    study, cores = load_study(name), os.cpu_count() or 1
    tasks = _load_tasks(study, name)
    sounds = {
        key: task and _mark(map(task.audio_dir.joinpath, task.files), f"{task.clip_seconds} {task.csv()}")
        for key, task in tasks.items()
    }
    weights = {model: _weights(study, model) for model in study.encoders}
    jobs = [
        replace(job, reads={"sounds": sounds[job.parameters["task"]], "weights": weights[job.parameters["model"]]})
        for job in collecting_jobs(study, name)
    ]
    todo = [job for job in jobs if not _is_done(job, study)]
    if todo:
        for task in {job.parameters["task"] for job in todo if tasks[job.parameters["task"]] is None}:
            load_task(study, task)  # which says what it lacks
        later = _on_known_audio(tasks)
        todo.sort(key=lambda job: job.parameters["task"] in later)
        at_once = min(workers, len(todo))
        _execute_all(todo, study, at_once, max(1, cores // at_once))
    final = [job for job in final_jobs(study, name) if not _is_done(job, study)]
    if not study.ablation.targets:
        print(f"{name}: no ablations, for it names none under ablation.targets", flush=True)
    if final:  # side by side: neither needs the other, and the analysis keeps one core busy at most
        print(f"{' and '.join(job.executed for job in final)} ...", flush=True)
        _execute_all(final, study, len(final), cores)
    return len(todo) + len(final)


def _load_tasks(study: Study, name: str) -> dict[str, Task | None]:
    """Every task, so that audio which is made on first use is made before the notebooks need it; None: not here."""
    tasks: dict[str, Task | None] = {}
    for task in study.tasks:
        start = time.monotonic()
        try:
            tasks[task] = load_task(study, task)
        except (OSError, ValueError) as error:
            tasks[task] = None
            print(f"{name}/{task}: what was collected of it is taken as it is, for {error}", flush=True)
        else:
            print(f"{name}/{task}: {len(tasks[task])} clips ready ({time.monotonic() - start:.0f} s)", flush=True)
    return tasks


def _on_known_audio(tasks: Mapping[str, Task | None]) -> set[str]:
    """The tasks whose clips are those of an earlier task: collected after it, they take its pass over."""
    seen, later = set(), set()
    for task, loaded in tasks.items():
        audio = loaded and (str(loaded.audio_dir), loaded.files)
        if audio in seen:
            later.add(task)
        seen.add(audio)
    return later


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="miniature")
    parser.add_argument("--workers", type=int, default=2, help="collecting notebooks at a time")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    study = load_study(options.study)
    try:
        with folder_lock(study.directory / "notebooks"):
            executed = run_study(options.study, options.workers)
    except FolderBusy as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{executed} notebook(s) executed in {time.monotonic() - start:.0f} s; results in {study.directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
