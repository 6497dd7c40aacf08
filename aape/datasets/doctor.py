"""What is installed, found and missing for a study, and the next step.

python common.py doctor paper
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from packaging.requirements import InvalidRequirement, Requirement

from aape.datasets import DATASETS, evar_metadata
from aape.study import ROOT, Loader, Study, load_study, resolve

_SAMPLE = 2000  # files of a task that are looked for; more would take minutes on a network drive

# Task -> how to get its audio: items of `download`, or words.
_AUDIO = {
    "esc50": "python common.py download esc50",
    "gise51": "python common.py download gise51",
    "gtzan": "python common.py download gtzan gtzan_split",
    "nspitch": "python common.py download nsynth",
    "surge": "python common.py download surge",
    "vc1_gender": "ask the VoxCeleb site for VoxCeleb1's audio (Install.md), then python common.py download vc1_meta",
    "vc1_country": "ask the VoxCeleb site for VoxCeleb1's audio (Install.md), then python common.py download vc1_meta",
    "cremad": "clone CREMA-D with Git LFS into the folder (Install.md)",
    "cremad_gender": "clone CREMA-D with Git LFS into the folder (Install.md)",
    "voxforge": "EVAR's download_voxforge.py (Install.md)",
}


@dataclass
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at. state: "ok", "missing" or "note".
        detail: what was found. next_step: a command or words, where something is missing.
    """

    subject: str
    state: str
    detail: str
    next_step: str = ""


@dataclass
class Section:
    """A heading and its findings."""

    title: str
    findings: list[Finding] = field(default_factory=list)

    def add(self, *parts: str) -> None:
        """Append a finding."""
        self.findings.append(Finding(*parts))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def machine() -> Section:
    """Interpreter, processor, memory, disk and the device that a pass would use."""
    section = Section("machine")
    ok = sys.version_info >= (3, 10)
    section.add(
        "Python",
        "ok" if ok else "missing",
        f"{platform.python_version()} on {platform.platform(terse=True)} {platform.machine()}",
        "" if ok else "make a virtual environment with Python 3.10 or newer",
    )
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {_megabytes(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))} memory"
    section.add("processor", "ok", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}{memory}")
    section.add("disk", "ok", f"{_megabytes(shutil.disk_usage(ROOT).free)} free at {ROOT}")
    if torch.cuda.is_available():
        cards = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        section.add("device", "ok", f"cuda: {cards}")
    else:
        mps = getattr(torch.backends, "mps", None)
        apple = "; Apple MPS is there and used on request (device='mps')" if mps and mps.is_available() else ""
        section.add("device", "ok", f"cpu (torch sees no CUDA device){apple}")
    return section


def packages(requirements: Path | None = None) -> Section:
    """Every line of requirements.txt against what is installed, and packages known to clash."""
    section = Section("packages")
    path = ROOT / "requirements.txt" if requirements is None else requirements
    fine = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        text = line.split("#")[0].strip()
        if not text or text.startswith("-"):
            continue
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            section.add(text, "note", f"a line of {path.name} that is no requirement")
            continue
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        found = _version(wanted.name)
        if found is None:
            section.add(wanted.name, "missing", f"needs {text}", f"python -m pip install '{text}'")
        elif not wanted.specifier.contains(found, prereleases=True):
            section.add(wanted.name, "missing", f"{found}, needs {text}", f"python -m pip install --upgrade '{text}'")
        else:
            fine.append(f"{wanted.name} {found}")
    if fine:
        section.findings.insert(0, Finding("installed", "ok", ", ".join(fine)))
    if _version("evar") is not None:
        section.add(
            "evar",
            "note",
            f"version {_version('evar')} from PyPI is an unrelated e-book tool, and hides a clone of EVAR",
            "python -m pip uninstall evar",
        )
    if _version("torchaudio") is None:
        section.add("torchaudio", "note", "not installed; only EVAR's own scripts need it")
    return section


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _options(study: Study, name: str, entry: Loader) -> Iterator[tuple[str, Any, str]]:
    """(key, resolved value, complaint) of every option."""
    for key, value in entry.call(name)[1].items():
        try:
            yield key, resolve(key, value, study.base), ""
        except ValueError as error:
            yield key, None, str(error)


def _loader_problem(loader: str) -> str:
    module, _, function = loader.partition(":")
    try:
        getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        return f"{loader}: {error}"
    return ""


def models(study: Study) -> Section:
    """Each model's loader and files."""
    section = Section("models")
    for name, entry in study.encoders.items():
        title = f"{name} ({entry.label})"
        problem = _loader_problem(entry.call(name)[0])
        if problem:
            section.add(title, "missing", problem, "install what is named, or correct the study's loader")
            continue
        found, lacking = [], False
        for key, value, complaint in _options(study, name, entry):
            if complaint:
                section.add(
                    title, "missing", complaint, f"export the variable, or write the path into the study ({key})"
                )
                lacking = True
            elif isinstance(value, Path) and not value.exists():
                section.add(title, "missing", f"{key}: no file {value}", _checkpoint_step(value))
                lacking = True
            elif isinstance(value, Path):
                size = f", {_megabytes(value.stat().st_size)}" if value.is_file() else ""
                found.append(f"{value}{size}")
            elif value == "random":
                found.append("random weights")
        if not lacking:
            section.add(title, "ok", "; ".join(found) or entry.call(name)[0])
    return section


def _checkpoint_step(path: Path) -> str:
    if "221006-mr7_enconly" in str(path):
        return "python common.py download m2d_enconly"
    if "221006-mr7" in str(path):
        return "python common.py download m2d"
    return "Install.md, 'The supervised ViT', says how to train one and what may stand in for it"


def tasks(study: Study) -> Section:
    """Each task's loader, metadata and audio."""
    section = Section("tasks")
    for name, entry in study.tasks.items():
        problem = _loader_problem(entry.call(name)[0])
        if problem:
            section.add(name, "missing", problem, "install what is named, or correct the study's loader")
            continue
        options, complaints = {}, []
        for key, value, complaint in _options(study, name, entry):
            options[key] = value
            if complaint:
                complaints.append(complaint)
        if complaints:
            section.add(name, "missing", "; ".join(complaints), "export the variable, or write the path into the study")
        elif "csv_path" in options and "audio_dir" in options:
            section.findings.append(_data(name, Path(options["csv_path"]), Path(options["audio_dir"])))
        else:
            section.add(name, "ok", f"made by {entry.call(name)[0]}")
    return section


def _data(name: str, metadata: Path, audio: Path) -> Finding:
    """A task's CSV and audio on disk."""
    if not audio.is_dir() or not any(audio.iterdir()):
        return Finding(name, "missing", f"no audio at {audio}", _AUDIO.get(name, "point audio_dir to the audio"))
    if not metadata.is_file():
        if name in DATASETS:
            step = f"python common.py metadata {name} {_shown(audio)} {_shown(metadata)}"
        else:
            step = "write a CSV with columns file_name, label, split or fold, and group"
        return Finding(name, "missing", f"audio at {audio}, no metadata at {metadata}", step)
    table = pd.read_csv(metadata, keep_default_na=False)
    column = next((c for c in ("file_name", "filename") if c in table), None)
    if column is None:
        return Finding(
            name, "missing", f"{metadata} has no column file_name", "see README, 'Your own data', for the format"
        )
    files = table[column].astype(str)
    looked = files if len(files) <= _SAMPLE else files.iloc[:: len(files) // _SAMPLE + 1]
    absent = [f for f in looked if not (audio / f).is_file()]
    of = f"{len(files):,} clips" if len(looked) == len(files) else f"{len(looked):,} of {len(files):,} clips looked for"
    if absent:
        step = "complete the audio, or make the metadata again: it leaves missing files out and names them"
        return Finding(name, "missing", f"{of}: {len(absent):,} not at {audio}, e.g. {absent[0]}", step)
    return Finding(name, "ok", f"{of} at {audio}")


def _shown(path: Path) -> str:
    """As one types it in the repository's folder."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def evar(study: Study) -> Section:
    """The EVAR clone, if any, and what it offers the study's tasks."""
    section = Section("EVAR (optional)")
    folder = os.environ.get("EVAR")
    if not folder:
        section.add(
            "EVAR",
            "note",
            "the environment variable EVAR is not set",
            "for the published splits of CREMA-D, VoxForge and Surge: git clone "
            "https://github.com/nttcslab/eval-audio-repr.git evar && export EVAR=$PWD/evar",
        )
        return section
    root = Path(folder).expanduser()
    if not (root / "evar").is_dir():
        section.add(
            "EVAR", "missing", f"{root} is no clone of EVAR: it has no folder evar/", "correct EVAR, or unset it"
        )
        return section
    offered = [name for name in study.tasks if name in DATASETS and evar_metadata(name, root)]
    section.add("EVAR", "ok", f"{root}; metadata of this study's tasks: {', '.join(offered) or 'none yet'}")
    return section


def collected(study: Study) -> Section:
    """Which artifacts the analysis would find."""
    section = Section("collected")
    for model in study.encoders:
        have = [t for t in study.tasks if (study.artifacts_directory(t, model) / "over_zero.pt").is_file()]
        lacking = [t for t in study.tasks if t not in have]
        detail = f"{len(have)} of {len(study.tasks)} tasks" + (f"; not yet: {', '.join(lacking)}" if lacking else "")
        section.add(model, "note" if lacking else "ok", detail)
    return section


def doctor(study_name: str | Path = "paper") -> int:
    """Print what is installed, found and missing for a study; 0 when it can be collected, 1 when not.

    Raises:
        FileNotFoundError, ValueError: no such study, or it is not valid.
    """
    study = load_study(study_name)
    sections = [machine(), packages(), models(study), tasks(study), evar(study), collected(study)]
    print(f"study {study.name}: {study.description}" + (" (stand-ins)" if study.stand_in else ""))
    print(f"results go to {study.directory}")
    for section in sections:
        print(f"\n{section.title}")
        for finding in section.findings:
            print(f"  {finding.state:<8}{finding.subject}: {finding.detail}")
            if finding.next_step:
                print(f"  {'':<8}-> {finding.next_step}")
    lacking = [f for s in sections for f in s.findings if f.state == "missing"]
    if lacking:
        print(f"\n{len(lacking)} missing. Next: {lacking[0].next_step}")
        return 1
    print(f"\nNothing is missing. Next: {_first_run(study)}")
    return 0


def _first_run(study: Study) -> str:
    for model in study.encoders:
        for task in study.tasks:
            if not (study.artifacts_directory(task, model) / "over_zero.pt").is_file():
                return f"python common.py collect {study.name} {model} {task}, or the notebook of that name"
    return "the analysis notebooks; everything is collected"


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="doctor", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("study", nargs="?", default="paper", help="name in studies/, or a YAML file (default: paper)")
    options = parser.parse_args(argv)
    try:
        return doctor(options.study)
    except (FileNotFoundError, ValueError) as error:
        print(f"doctor: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
