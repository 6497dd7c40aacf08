"""What is installed, found and missing for a study, and the next step. Runs on a Python without any package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aape.datasets import DATASETS, TASKS
from aape.datasets.base import data_folder, evar_metadata

if TYPE_CHECKING:
    from aape.study import Loader, Study

_CLONE = Path(__file__).resolve().parents[2]  # the clone's folder, where there is a clone


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        state: "ok", "missing" or "note". subject: what was looked at. detail: what was found.
        next_step: a command or words, where something is missing.
    """

    state: str
    subject: str
    detail: str
    next_step: str = ""


def command() -> str:
    """How this program was called, so that advice can be typed as it stands."""
    called = {"common.py": "python common.py", "__main__.py": "python -m aape"}
    return called.get(Path(sys.argv[0]).name, "aape")


def machine() -> Iterator[Finding]:
    """Interpreter, processor, disk and the device that a pass would use."""
    yield Finding(
        "ok", "Python", f"{platform.python_version()} on {platform.platform(terse=True)} {platform.machine()}"
    )
    free = shutil.disk_usage(Path.cwd()).free
    yield Finding("ok", "machine", f"{os.cpu_count()} cores, {free / 1e9:,.1f} GB free at {Path.cwd()}")
    if importlib.util.find_spec("torch") is None:
        yield Finding("note", "device", "not known before torch is installed")
        return
    import torch

    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    apple = "; Apple MPS is there and used on request (device='mps')" if torch.backends.mps.is_available() else ""
    yield Finding("ok", "device", f"cuda: {', '.join(cards)}" if cards else f"cpu (torch sees no CUDA device){apple}")


def requirements() -> dict[str, list[str]]:
    """Extra ("" for what is always needed) -> requirements: of the clone's pyproject.toml, else of the installation."""
    project, found = _CLONE / "pyproject.toml", {}
    if project.is_file():  # by hand, for Python 3.10 brings no reader of TOML
        for name, body in re.findall(r"^([\w-]+) = \[\n(.*?)^\]", project.read_text("utf-8"), re.M | re.S):
            found["" if name == "dependencies" else name] = re.findall(r'^ +"([^"]+)"', body, re.M)
        return found
    for line in importlib.metadata.requires("aape") or []:
        requirement, _, extra = line.partition("; extra == ")
        found.setdefault(extra.strip("\"'"), []).append(requirement)
    return found


def packages() -> Iterator[Finding]:
    """Every requirement against what is installed, and a package known to clash."""
    fine = []
    for extra, lines in requirements().items():
        lacking = []
        for line in lines:
            name, wanted = re.match(r"([\w.-]+)(.*)", line).groups()  # type: ignore[union-attr]
            installed = _version(name)
            if installed is not None and _meets(installed, wanted):
                fine.append(f"{name} {installed}")
            elif extra:
                lacking.append(name)
            else:
                what = f"{installed or 'not installed'}, needs {line}"
                yield Finding("missing", name, what, f"python -m pip install '{line}'")
        if lacking:
            what = f"-e '{_CLONE}[{extra}]'" if (_CLONE / "pyproject.toml").is_file() else f"'aape[{extra}]'"
            yield Finding("note", f"extra {extra}", f"without {', '.join(lacking)}", f"python -m pip install {what}")
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
    paths = {key: value for key, value in options.items() if isinstance(value, Path)}
    if spec.loader == "aape.task:from_metadata":
        return _data(name, made, options)
    for key, path in paths.items():
        if not path.exists():
            step = _checkpoint_step(path) if label else "put it there, or the right path into the study"
            return Finding("missing", title, f"{key}: no file {path}", step)
    return Finding("ok", title, ", ".join(map(str, paths.values())) or f"made by {spec.loader}")


def _checkpoint_step(path: Path) -> str:
    for name in ("m2d_enconly", "m2d"):
        if DATASETS[name].remotes[0].name.removesuffix(".zip") in str(path):
            return _fetch(name, path.parent.parent)
    return f"put the weights there, or the right path into the study; {command()} download --help m2d"


def _fetch(name: str, folder: Path) -> str:
    """The command that puts a dataset into a folder."""
    if not DATASETS[name].remotes:
        return f"{command()} download --help {name} says how to get it"
    return f"{command()} download {name}" + ("" if folder == data_folder() else f" --folder {_shown(folder)}")


def _data(name: str, from_metadata: Callable, options: dict[str, Any]) -> Finding:
    """A task's CSV and audio on disk."""
    metadata, audio = options["csv_path"], options["audio_dir"]
    if not audio.is_dir() or not any(audio.iterdir()):
        step = "point audio_dir to the audio"
        if name in TASKS:
            dataset = TASKS[name].name
            step = _fetch(dataset, audio.parent)
            if audio.name != dataset:
                step += f", and write {_shown(audio.parent / dataset)} into the study as audio_dir"
        return Finding("missing", name, f"no audio at {audio}", step)
    if not metadata.is_file():
        step = "write a CSV with columns file_name, label, split or fold, and group"
        if name in TASKS:
            step = f"{command()} metadata {name} {_shown(audio)} {_shown(metadata)}"
        return Finding("missing", name, f"audio at {audio}, no metadata at {metadata}", step)
    try:
        return Finding("ok", name, f"{len(from_metadata(**options)):,} clips at {audio}")
    except (ValueError, OSError) as error:
        return Finding("missing", name, str(error), f"mend {_shown(metadata)}, or make it again")


def _shown(path: Path) -> str:
    """As one types it in the current folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def evar(study: Study) -> Finding:
    """The EVAR clone, if any, and what it offers the study's tasks."""
    folder = os.environ.get("EVAR", "")
    root = Path(folder).expanduser()
    if not folder:
        why = "not set; a clone has the published splits of CREMA-D, VoxForge and Surge"
        step = "git clone https://github.com/nttcslab/eval-audio-repr.git evar && export EVAR=$PWD/evar"
        return Finding("note", "environment variable EVAR", why, step)
    if not (root / "evar").is_dir():
        what = f"{root} is no clone of EVAR: it has no folder evar/"
        return Finding("missing", "EVAR", what, "correct it, or unset it")
    offered = [name for name in study.tasks if name in TASKS and evar_metadata(name, root)]
    return Finding("ok", "EVAR", f"{root}; metadata of this study's tasks: {', '.join(offered) or 'none yet'}")


def collected(study: Study) -> tuple[list[Finding], str]:
    """Which artifacts the analysis would find; and the first model and task whose are missing, as one types them."""
    findings, todo = [], []
    for model in study.encoders:
        left = [t for t in study.tasks if not (study.artifacts_directory(t, model) / "over_zero.pt").is_file()]
        rest = f"; not yet: {', '.join(left)}" if left else ""
        done = f"{len(study.tasks) - len(left)} of {len(study.tasks)} tasks{rest}"
        findings.append(Finding("note" if left else "ok", model, done))
        todo += [f"{model} {task}" for task in left]
    return findings, next(iter(todo), "")


def doctor(study_name: str | Path | None = None) -> int:
    """Print what is installed, found and missing for a study; 0 when it can be collected, 1 when not.

    Args:
        study_name: None: `paper`, in a clone; elsewhere no study is looked at.

    Raises:
        FileNotFoundError, ValueError: no such study, or it is not valid.
    """
    lacking = _print("machine", machine()) + _print("packages", packages())
    done = f"{command()} dissect MODEL FOLDER"
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
            lacking += _print(title, (entry(study, name, spec) for name, spec in specs.items()))
        lacking += _print("EVAR (optional)", [evar(study)])
        findings, todo = collected(study)
        _print("collected", findings)
        done = "everything is collected; the analysis notebooks"
        if todo:
            done = f"{command()} collect {study_name} {todo}, or the notebook of that name"
    if lacking:
        print(f"\n{len(lacking)} missing. Next: {lacking[0].next_step}")
        return 1
    print(f"\nNothing is missing. Next: {done}")
    return 0


def _print(title: str, findings: Iterable[Finding]) -> list[Finding]:
    """Print a section; returns what is missing."""
    print(f"\n{title}")
    lacking = []
    for finding in findings:
        print(f"  {finding.state:<8}{finding.subject}: {finding.detail}")
        if finding.next_step:
            print(f"  {'':<8}-> {finding.next_step}")
        lacking += [finding] if finding.state == "missing" else []
    return lacking
