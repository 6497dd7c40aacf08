"""Execute the notebooks of a study in the order of their dependencies: python -m notebooks_src.run miniature

Executed copies go to `outputs/<study>/notebooks/`. A notebook that was executed from the same source, study and
artifacts is not executed again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from traitlets.config import Config

from aape.files import write_json
from aape.study import ROOT, Study, load_study
from notebooks_src.collecting import DATASETS, ROLES, SHARED_AUDIO


@dataclass(frozen=True)
class Job:
    """A notebook with its parameters, the name of its executed copy, and the files that its result stands on."""

    notebook: str
    executed: str
    parameters: dict[str, str]
    inputs: tuple[Path, ...] = ()
    results: tuple[Path, ...] = ()


def collecting_jobs(study: Study, name: str) -> list[Job]:
    """One job for each model and task of the study; tasks that take over another's pass come last."""
    jobs = []
    for dataset in sorted(DATASETS, key=lambda d: d.task in SHARED_AUDIO):
        if dataset.task not in study.tasks:
            continue
        for model in study.encoders:
            base = next((b for b, name in ROLES.items() if name == model), "M2D")
            suffix = "" if model in ROLES.values() else f".{model}"
            jobs.append(
                Job(
                    f"{base}_{dataset.notebook}.ipynb",
                    f"{base}_{dataset.notebook}{suffix}.ipynb",
                    {"study": name, "model": model, "task": dataset.task},
                    results=(study.artifacts_directory(dataset.task, model) / "manifest.json",),
                )
            )
    return jobs


def final_jobs(study: Study, name: str) -> list[Job]:
    """Analysis, then ablations where the study has targets; both stand on every manifest there is."""
    manifests = tuple(sorted(study.directory.glob("*/manifest.json")))
    jobs = [Job("Analyze_ClassSpecificNeurons.ipynb", "Analyze_ClassSpecificNeurons.ipynb", {"study": name}, manifests)]
    if study.ablation.targets:
        jobs.append(Job("Ablations.ipynb", "Ablations.ipynb", {"study": name}, manifests))
    return jobs


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
    return json.loads(stamp.read_text())["stamp"] == _stamp(job, study) and all(p.is_file() for p in job.results)


def _kernel_config(sockets: Path) -> Config:
    """Kernels talk through sockets in a folder of their own: of two that start at once, TCP may give both one port."""
    config = Config()
    if os.name == "posix":
        config.KernelManager.transport = "ipc"
        config.KernelManager.ip = str(sockets / "socket")
    return config


def execute(job: Job, study: Study, threads: int | None = None) -> float:
    """Execute one notebook headless; returns seconds.

    Raises:
        papermill.PapermillExecutionError: a cell failed; the executed copy shows where.
        ValueError: a parameter that the notebook does not have.
    """
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("MPLBACKEND", "agg")
    import papermill

    source = ROOT / job.notebook
    known = papermill.inspect_notebook(str(source))
    unknown = sorted(set(job.parameters) - set(known))
    if unknown:
        raise ValueError(f"{job.notebook} has no parameter {unknown[0]!r}; it has {', '.join(known)}")
    folder = study.directory / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kernel-") as sockets:
        papermill.execute_notebook(
            str(source),
            str(folder / job.executed),
            parameters=job.parameters,
            cwd=str(ROOT),
            progress_bar=False,
            kernel_name="python3",
            config=_kernel_config(Path(sockets)),
        )
    write_json(folder / f".{job.executed}.json", {"stamp": _stamp(job, study)})
    return time.monotonic() - start


def run_study(name: str, workers: int = 2) -> int:
    """All notebooks of a study; returns how many were executed. Collecting ones run `workers` at a time."""
    study = load_study(name)
    todo = [job for job in collecting_jobs(study, name) if not _is_done(job, study)]
    if todo:
        _prepare_tasks(study, name)
        workers = min(workers, len(todo))
        threads = max(1, (os.cpu_count() or 1) // workers)
        with ProcessPoolExecutor(workers) as pool:
            futures = {pool.submit(execute, job, study, threads): job for job in todo}
            for number, future in enumerate(as_completed(futures), 1):
                print(f"[{number}/{len(todo)}] {futures[future].executed}: {future.result():.0f} s", flush=True)
    executed = len(todo)
    for job in final_jobs(study, name):
        if not _is_done(job, study):
            print(f"{job.executed} ...", flush=True)
            print(f"{job.executed}: {execute(job, study):.0f} s", flush=True)
            executed += 1
    return executed


def _prepare_tasks(study: Study, name: str) -> None:
    """Load every task once, so that audio which is made on first use is made before the notebooks need it."""
    from common import load_task

    for task in study.tasks:
        start = time.monotonic()
        clips = len(load_task(study, task))
        print(f"{name}/{task}: {clips} clips ready ({time.monotonic() - start:.0f} s)", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="miniature")
    parser.add_argument("--workers", type=int, default=2, help="collecting notebooks at a time")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    executed = run_study(options.study, options.workers)
    study = load_study(options.study)
    print(f"{executed} notebook(s) executed in {time.monotonic() - start:.0f} s; results in {study.directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
