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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aape.datasets import DATASETS, TASKS
from aape.datasets.base import evar_metadata

if TYPE_CHECKING:
    from aape.study import Loader, Study

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
    apple = "; Apple MPS is there and used on request (device='mps')" if torch.backends.mps.is_available() else ""
    yield Finding("ok", "device", f"cuda: {', '.join(cards)}" if cards else f"cpu (torch sees no CUDA device){apple}")


def requirements() -> dict[str, list[str]]:
    """Extra ("" for what is always needed) -> requirements: of the clone's pyproject.toml, else of the installation."""
    project = _CLONE / "pyproject.toml"
    if project.is_file():  # by hand, for Python 3.10 brings no reader of TOML
        lists = re.findall(r"^([\w-]+) = \[\n(.*?)^\]", project.read_text("utf-8"), re.M | re.S)
        return {name.replace("dependencies", ""): re.findall(r'^ +"([^"]+)"', body, re.M) for name, body in lists}
    found: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("aape") or []:
        requirement, _, extra = line.partition("; extra == ")
        found.setdefault(extra.strip("\"'"), []).append(requirement)
    return found


def packages() -> Iterator[Finding]:
    """Every requirement against what is installed, and a package known to clash."""
    fine = []
    for extra, lines in requirements().items():
        lacking = {}
        for line in lines:
            name = re.split("[<>=]", line)[0]
            installed = _version(name)
            if installed is not None and _meets(installed, line.removeprefix(name)):
                fine.append(f"{name} {installed}")
            else:
                lacking[line] = f"{name} (now {installed})" if installed else name
        if lacking:
            state, subject = ("note", f"extra {extra}") if extra else ("missing", "requirements")
            step = f"python -m pip install {shlex.join(lacking)}"
            yield Finding(state, subject, f"without {', '.join(lacking.values())}", step)
    yield Finding("ok", "installed", ", ".join(fine) or "none of the requirements")
    if _version("evar") is not None:
        what = f"version {_version('evar')} from PyPI is an unrelated e-book tool, and hides a clone of EVAR"
        yield Finding("note", "evar", what, "python -m pip uninstall evar")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _meets(installed: str, wanted: str) -> bool:
    """Whether a version meets `>=1.2` or `==1.2.*`, the two forms that pyproject.toml uses."""
    have, need = ([int(n) for n in re.findall(r"\d+", v.split("+")[0])] for v in (installed, wanted))
    return have[: len(need)] == need if wanted.startswith("==") else have >= need


def entry(study: Study, name: str, spec: Loader) -> Finding:
    """A model or task of the study: its loader and options as the loader would find them, and the files they name."""
    from aape.study import prepare

    label = getattr(spec, "label", "")  # of a model
    title = f"{name} ({label})" if label else name
    try:
        made, options = prepare(study, name, spec)
    except ValueError as error:
        return Finding("missing", title, str(error), "install or set what is named, or correct the study's entry")
    except Exception as error:  # whatever a module raises while it is imported is what the doctor is here to tell
        found = f"{spec.loader}: {type(error).__name__}: {error}"
        return Finding("missing", title, found, "mend that module or its packages")
    if spec.loader == "aape.task:from_metadata":
        return _clips(name, made, options)
    paths = {key: value for key, value in options.items() if isinstance(value, Path)}
    for key, path in paths.items():
        if not path.exists():
            step = "put it there, or the right path into the study"
            for weights in (DATASETS["m2d"], DATASETS["m2d_enconly"]):
                if path.parent.name == weights.remotes[0].name.removesuffix(".zip"):
                    step = _typed("download", weights.name, "--folder", path.parent.parent)
            return Finding("missing", title, f"{key}: no file {path}", step)
    return Finding("ok", title, ", ".join(map(str, paths.values())) or f"made by {spec.loader}")


def _clips(name: str, from_metadata: Callable, options: dict[str, Any]) -> Finding:
    """A task's CSV and audio on disk."""
    metadata, audio, dataset = options["csv_path"], options["audio_dir"], TASKS.get(name)
    if not audio.is_dir() or not any(audio.iterdir()):
        step = "point audio_dir to the audio"
        if dataset is not None and dataset.remotes:
            step = _typed("download", dataset.name, "--folder", audio.parent)
            if audio.name != dataset.name:
                step += f", and write {audio.parent / dataset.name} into the study as audio_dir"
        elif dataset is not None:
            step = f"{_typed('download', '--help', dataset.name)} says how to get it"
        return Finding("missing", name, f"no audio at {audio}", step)
    if not metadata.is_file():
        by_hand = "write a CSV with columns file_name, label, split or fold, and group"
        step = by_hand if dataset is None else _typed("metadata", name, audio, metadata)
        return Finding("missing", name, f"audio at {audio}, no metadata at {metadata}", step)
    try:
        return Finding("ok", name, f"{len(from_metadata(**options)):,} clips at {audio}")
    except (ValueError, OSError) as error:
        return Finding("missing", name, str(error), f"mend {metadata}, or make it again")


def evar(study: Study) -> Finding:
    """The EVAR clone, if any, and what it offers the study's tasks."""
    if not os.environ.get("EVAR"):
        why = "not set; a clone has the published splits of CREMA-D, VoxForge and Surge"
        step = "git clone https://github.com/nttcslab/eval-audio-repr.git evar && export EVAR=$PWD/evar"
        return Finding("note", "environment variable EVAR", why, step)
    root = Path(os.environ["EVAR"]).expanduser()
    if not (root / "evar").is_dir():
        return Finding("missing", "EVAR", f"{root} is no clone of EVAR: it has no folder evar/", "correct or unset it")
    offered = [name for name in study.tasks if name in TASKS and evar_metadata(name, root)]
    return Finding("ok", "EVAR", f"{root}; metadata of this study's tasks: {', '.join(offered) or 'none yet'}")


def doctor(study_name: str | Path | None = None) -> int:
    """Print what is installed, found and missing for a study; 0 when it can be collected, 1 when not.

    Args:
        study_name: None: `paper`, in a clone; elsewhere no study is looked at.

    Raises:
        FileNotFoundError, ValueError: no such study, or it is not valid.
    """
    steps = _print("machine", machine()) + _print("packages", packages())
    done = _typed("dissect") + " MODEL FOLDER"
    study_name = study_name or ("paper" if (_CLONE / "studies").is_dir() else None)
    try:
        from aape.study import load_study
    except ImportError as error:
        print(f"\nA study can be examined when the packages are installed ({error}).")
        study_name = None
    if study_name is not None:
        study = load_study(study_name)
        print(f"\nstudy {study.name}: {study.description}" + (" (stand-ins)" if study.stand_in else ""))
        print(f"results go to {study.directory}")
        for title, specs in (("models", study.encoders), ("tasks", study.tasks)):
            steps += _print(title, (entry(study, name, spec) for name, spec in specs.items()))
        steps += _print("EVAR (optional)", [evar(study)])
        print("\ncollected")
        todo = []
        for model in study.encoders:
            left = [t for t in study.tasks if not (study.artifacts_directory(t, model) / "over_zero.pt").is_file()]
            rest = f"; not yet: {', '.join(left)}" if left else ""
            print(f"  {model}: {len(study.tasks) - len(left)} of {len(study.tasks)} tasks{rest}")
            todo += [(model, task) for task in left]
        done = "everything is collected; the analysis notebooks"
        if todo:
            done = f"{_typed('collect', study_name, *todo[0])}, or the notebook of that name"
    print(f"\n{len(steps)} missing. Next: {steps[0]}" if steps else f"\nNothing is missing. Next: {done}")
    return int(bool(steps))


def _print(title: str, findings: Iterable[Finding]) -> list[str]:
    """Print a section; returns the next step for each thing that is missing."""
    print(f"\n{title}")
    steps = []
    for state, subject, detail, step in findings:
        print(f"  {state:<8}{subject}: {detail}" + (f"\n  {'':<8}-> {step}" if step else ""))
        steps += [step] if state == "missing" else []
    return steps
