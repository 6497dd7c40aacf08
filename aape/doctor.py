"""What is installed, found and missing for a study, and the next step."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from packaging.requirements import Requirement

from aape.datasets import DATASETS, TASKS
from aape.study.loading import prepare
from aape.study.study import Loader, Study, load_study

_CLONE = Path(__file__).resolve().parents[1]  # the clone's folder, if there is a clone
_QUICK_LOADERS = ("aape.sounds.loading:from_metadata", "aape.sounds.loading:from_folder")


class Finding(NamedTuple):
    """One line of the report: state is "ok", "note" or "missing", and next_step says what to type or do about it."""

    state: str
    subject: str
    detail: str
    next_step: str = ""


def _command(*words: object) -> str:
    """A command of this program as it can be typed here."""
    programs = {"common.py": "python common.py", "__main__.py": "python -m aape"}
    return f"{programs.get(Path(sys.argv[0]).name, 'aape')} {shlex.join(map(str, words))}"


def machine() -> Iterator[Finding]:
    """Interpreter, processor, disk and the device that a pass would use."""
    system = f"{platform.platform(terse=True)} {platform.machine()}, {os.cpu_count()} cores"
    free = shutil.disk_usage(".").free / 1e9
    yield Finding(
        "ok",
        "Python",
        f"{platform.python_version()} on {system}, {free:,.1f} GB free at {Path.cwd()}",
    )
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding(
        "ok", "device", f"cuda: {', '.join(cards)}" if cards else "cpu: torch sees no CUDA device"
    )


def packages() -> Iterator[Finding]:
    """Every requirement of the installed package compared with what is installed, and a package known to clash."""
    installed, lacking = [], []
    for line in importlib.metadata.requires("aape") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is not None:
            installed.append(f"{requirement.name} {version}")
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            lacking.append(f"{requirement.name}{requirement.specifier}")
    if lacking:
        install = f"python -m pip install {shlex.join(lacking)}"
        yield Finding("missing", "requirements", f"without {', '.join(lacking)}", install)
    yield Finding("ok", "installed", ", ".join(installed))
    if _version("evar"):
        clash = "the package of that name is an unrelated e-book tool, and hides a clone of EVAR"
        yield Finding("note", "evar", clash, "python -m pip uninstall evar")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def entry(study: Study, name: str, spec: Loader) -> Finding:
    """A model or task of the study: its loader and options as the loader would find them, and the files they name."""
    title = f"{name} ({getattr(spec, 'label', None) or getattr(spec, 'title', None)})"
    try:
        loader, options = prepare(study, name, spec)
        paths = {key: value for key, value in options.items() if isinstance(value, Path)}
        for key, path in sorted(paths.items()):  # audio_dir before csv_path
            if not path.exists():
                return Finding(
                    "missing", title, f"{key}: nothing at {path}", _how_to_get(name, key, paths)
                )
        if spec.loader in _QUICK_LOADERS:
            return Finding("ok", title, f"{len(loader(**options)):,} clips")
    except Exception as error:  # a user's module can raise anything while it is imported, and that is reported here
        return Finding(
            "missing",
            title,
            f"{type(error).__name__}: {error}",
            f"correct that, or {name} in the study",
        )
    return Finding("ok", title, ", ".join(map(str, paths.values())) or f"made by {spec.loader}")


def _how_to_get(name: str, key: str, paths: Mapping[str, Path]) -> str:
    """The next step if an option of an entry names a file or folder that is not there."""
    for weights in (DATASETS["m2d"], DATASETS["m2d_enconly"]):
        if paths[key].parent.name == weights.remotes[0].name.removesuffix(".zip"):
            return _command("download", weights.name, "--folder", paths[key].parent.parent)
    dataset = TASKS.get(name)
    if dataset is None or key not in ("audio_dir", "csv_path"):
        return f"put it there, or the right {key} into the study"
    if key == "csv_path":
        return _command("metadata", name, paths["audio_dir"], paths[key])
    if not dataset.remotes:
        return f"{_command('download', '--help', dataset.name)} says how to get it"
    folder = paths[key].with_name(dataset.name)
    download = _command("download", dataset.name, "--folder", folder.parent)
    return (
        download
        if folder == paths[key]
        else f"{download}, and write {folder} into the study as audio_dir"
    )


def doctor(study_name: str | Path | None = None) -> int:
    """Print what is installed, found and missing for a study; 0 if it can be collected, 1 if not.

    Args:
        study_name: None: `paper` in a clone; elsewhere no study is examined.

    Raises:
        FileNotFoundError, ValueError: no such study, or an invalid one.
    """
    steps = _print("machine", machine()) + _print("packages", packages())
    next_step = _command("dissect") + " MODEL FOLDER"
    if study_name is None and (_CLONE / "studies").is_dir():
        study_name = "paper"
    if study_name is not None:
        study = load_study(study_name)
        print(f"\n{study}")
        for title, specs in (("models", study.encoders), ("tasks", study.tasks)):
            steps += _print(title, [entry(study, name, spec) for name, spec in specs.items()])
        next_step = _next_pass(study, study_name)
    print(
        f"\n{len(steps)} missing. Next: {steps[0]}"
        if steps
        else f"\nNothing is missing. Next: {next_step}"
    )
    return int(bool(steps))


def _next_pass(study: Study, study_name: str | Path) -> str:
    """The command of the first pass that has not been collected; prints how many have."""
    pairs = [(model, task) for model in study.encoders for task in study.tasks]
    todo = []
    for model, task in pairs:
        if not (study.artifacts_directory(task, model) / "over_zero.pt").is_file():
            todo.append((model, task))
    print(f"\ncollected: {len(pairs) - len(todo)} of {len(pairs)} pairs of model and task")
    if not todo:
        return "everything is collected; the analysis notebooks"
    return _command("collect", study_name, *todo[0])


def _print(title: str, findings: Iterable[Finding]) -> list[str]:
    """Print a section; returns the next step for each thing that is missing."""
    print(f"\n{title}")
    steps = []
    for finding in findings:
        print(f"  {finding.state:<8}{finding.subject}: {finding.detail}")
        if finding.next_step:
            print(f"  {'':<8}-> {finding.next_step}")
        if finding.state == "missing":
            steps.append(finding.next_step)
    return steps
