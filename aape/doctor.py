"""What is installed, found and missing for a study, and the next step. Runs on a Python without any package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from aape.datasets import DATASETS, TASKS

if TYPE_CHECKING:
    from aape.study.study import Loader, Study

_CLONE = Path(__file__).resolve().parents[2]  # the clone's folder, where there is a clone


class Finding(NamedTuple):
    """One line of the report: state is "ok", "note" or "missing", and next_step what to type or do about it."""

    state: str
    subject: str
    detail: str
    next_step: str = ""


def _typed(*words: object) -> str:
    """A command of this program as it can be typed here."""
    called = {"common.py": "python common.py", "__main__.py": "python -m aape"}.get(Path(sys.argv[0]).name, "aape")
    return f"{called} {shlex.join(map(str, words))}"


def machine() -> Iterator[Finding]:
    """Interpreter, processor, disk and the device that a pass would use."""
    about = (
        f"{platform.python_version()} on {platform.platform(terse=True)} {platform.machine()}, {os.cpu_count()} cores"
    )
    yield Finding("ok", "Python", f"{about}, {shutil.disk_usage('.').free / 1e9:,.1f} GB free at {Path.cwd()}")
    if importlib.util.find_spec("torch") is None:
        yield Finding("note", "device", "not known before torch is installed")
        return
    import torch

    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("ok", "device", f"cuda: {', '.join(cards)}" if cards else "cpu: torch sees no CUDA device")


def requirements() -> dict[str, list[str]]:
    """Extra ("" for what is always needed) -> requirements: of the clone's pyproject.toml, else of the installation."""
    project = _CLONE / "pyproject.toml"
    if not project.is_file():
        return {"": [line for line in importlib.metadata.requires("aape") or () if "extra ==" not in line]}
    # by hand, for Python 3.10 brings no reader of TOML
    lists = re.findall(r"^([\w-]+) = \[\n(.*?)^\]", project.read_text("utf-8"), re.M | re.S)
    return {name.replace("dependencies", ""): re.findall(r'^ +"([^"]+)"', body, re.M) for name, body in lists}


def packages() -> Iterator[Finding]:
    """Every requirement against what is installed, and a package known to clash."""
    there = []
    for extra, lines in requirements().items():
        versions = {line: _version(re.split("[<>=]", line)[0]) for line in lines}
        there += [f"{re.split('[<>=]', line)[0]} {version}" for line, version in versions.items() if version]
        lacking = [line for line, version in versions.items() if not version or not _meets(version, line)]
        if lacking:
            state, subject = ("note", f"extra {extra}") if extra else ("missing", "requirements")
            yield Finding(
                state, subject, f"without {', '.join(lacking)}", f"python -m pip install {shlex.join(lacking)}"
            )
    yield Finding("ok", "installed", ", ".join(there) or "none of the requirements")
    if _version("evar"):
        what = "the package of that name is an unrelated e-book tool, and hides a clone of EVAR"
        yield Finding("note", "evar", what, "python -m pip uninstall evar")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _meets(installed: str, line: str) -> bool:
    """Whether a version meets `name>=1.2` or `name==1.2.*`, the two forms that pyproject.toml uses."""
    versions = installed.split("+")[0], line.partition("=")[2]
    have, need = ([int(n) for n in re.findall(r"\d+", version)] for version in versions)
    return have[: len(need)] == need if "==" in line else have >= need


def entry(study: Study, name: str, spec: Loader) -> Finding:
    """A model or task of the study: its loader and options as the loader would find them, and the files they name."""
    from aape.study.loading import prepare

    title = f"{name} ({getattr(spec, 'label', None) or getattr(spec, 'title', None)})"
    try:
        made, options = prepare(study, name, spec)
        paths = {key: value for key, value in options.items() if isinstance(value, Path)}
        for key, path in sorted(paths.items()):  # audio_dir before csv_path
            if not path.exists():
                return Finding("missing", title, f"{key}: nothing at {path}", _how_to_get(name, key, paths))
        if spec.loader in ("aape.sounds.task:from_metadata", "aape.sounds.task:from_folder"):
            return Finding("ok", title, f"{len(made(**options)):,} clips")
    except Exception as error:  # whatever a module raises while it is imported is what the doctor is here to tell
        return Finding("missing", title, f"{type(error).__name__}: {error}", f"mend that, or {name} in the study")
    return Finding("ok", title, ", ".join(map(str, paths.values())) or f"made by {spec.loader}")


def _how_to_get(name: str, key: str, paths: Mapping[str, Path]) -> str:
    """The next step where an option of an entry names a file or folder that is not there."""
    for weights in (DATASETS["m2d"], DATASETS["m2d_enconly"]):
        if paths[key].parent.name == weights.remotes[0].name.removesuffix(".zip"):
            return _typed("download", weights.name, "--folder", paths[key].parent.parent)
    dataset = TASKS.get(name)
    if dataset and key == "audio_dir" and dataset.remotes:
        there = paths[key].with_name(dataset.name)
        then = "" if there == paths[key] else f", and write {there} into the study as audio_dir"
        return _typed("download", dataset.name, "--folder", there.parent) + then
    if dataset and key == "audio_dir":
        return f"{_typed('download', '--help', dataset.name)} says how to get it"
    if dataset and key == "csv_path":
        return _typed("metadata", name, paths["audio_dir"], paths[key])
    return f"put it there, or the right {key} into the study"


def doctor(study_name: str | Path | None = None) -> int:
    """Print what is installed, found and missing for a study; 0 when it can be collected, 1 when not.

    Args:
        study_name: None: `paper`, in a clone; elsewhere no study is looked at.

    Raises:
        FileNotFoundError, ValueError: no such study, or it is not valid.
    """
    steps = _print("machine", machine()) + _print("packages", packages())
    then = _typed("dissect") + " MODEL FOLDER"
    study_name = study_name or ("paper" if (_CLONE / "studies").is_dir() else None)
    if study_name is not None and steps:
        print("\nThe study is looked at when the packages are installed.")
    elif study_name is not None:
        from aape.study.study import load_study

        study = load_study(study_name)
        print(f"\n{study}")
        for title, specs in (("models", study.encoders), ("tasks", study.tasks)):
            steps += _print(title, (entry(study, name, spec) for name, spec in specs.items()))
        pairs = [(model, task) for model in study.encoders for task in study.tasks]
        todo = [(m, t) for m, t in pairs if not (study.artifacts_directory(t, m) / "over_zero.pt").is_file()]
        print(f"\ncollected: {len(pairs) - len(todo)} of {len(pairs)} pairs of model and task")
        then = "everything is collected; the analysis notebooks"
        if todo:
            then = f"{_typed('collect', study_name, *todo[0])}, or the notebook of that name"
    print(f"\n{len(steps)} missing. Next: {steps[0]}" if steps else f"\nNothing is missing. Next: {then}")
    return int(bool(steps))


def _print(title: str, findings: Iterable[Finding]) -> list[str]:
    """Print a section; returns the next step for each thing that is missing."""
    print(f"\n{title}")
    steps = []
    for state, subject, detail, step in findings:
        print(f"  {state:<8}{subject}: {detail}" + (f"\n  {'':<8}-> {step}" if step else ""))
        steps += [step] if state == "missing" else []
    return steps
