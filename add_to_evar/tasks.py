"""Any task of an EVAR clone as a `Task`: its metadata, its folder of resampled audio, its clip length.

The environment variable EVAR points to the clone. Its task table is read, not run, so neither torchaudio nor
anything else of EVAR needs to be installed.

    EVAR=~/evar python -c "from aape.task import evar; print(len(evar.load_task('cremad')))"
"""

from __future__ import annotations

import ast
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aape.task import Task, from_metadata
from add_to_evar.bridge import clone

_FOLDERS = {16000: "16k", 22000: "22k", 32000: "32k", 44100: "44k", 48000: "48k"}  # evar/ds_tasks.py, _fs_table


@dataclass(frozen=True)
class Definition:
    """One line of EVAR's task table: number of folds (1: train, valid, test), clip length in s, folder under work/."""

    folds: int
    clip_seconds: float
    folder: str
    balanced: bool


def definitions(path: str | Path | None = None) -> dict[str, Definition]:
    """EVAR's task table (`_defs` in evar/ds_tasks.py) by task name, additions of register_tasks.py included.

    Raises:
        FileNotFoundError: no clone.
        ValueError: the table is not where it was in 2026, or an entry has another form.
    """
    source = clone(path) / "evar" / "ds_tasks.py"
    table: dict[str, Any] = {}
    for node in ast.parse(source.read_text(encoding="utf-8"), str(source)).body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", None) for t in node.targets] == ["_defs"]:
            table |= ast.literal_eval(node.value)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value
            if ast.unparse(call.func) == "_defs.update" and len(call.args) == 1:
                table |= ast.literal_eval(call.args[0])
    if not table:
        raise ValueError(f"{source}: expected a table _defs = {{task: [folds, seconds, folder, balanced]}}, found none")
    found = {}
    for name, entry in table.items():
        if not isinstance(entry, (list, tuple)) or len(entry) != 4:
            raise ValueError(f"{source}: task {name!r} is {entry!r}, expected [folds, seconds, folder, balanced]")
        found[name] = Definition(int(entry[0]), float(entry[1]), entry[2] or name, bool(entry[3]))
    return found


def load_task(task: str, *, sample_rate: int = 16000, path: str | Path | None = None) -> Task:
    """A task of the EVAR clone: evar/metadata/<task>.csv and work/<rate>/<folder>, clip length of its task table.

    Args:
        task: EVAR's name, e.g. "cremad". gise51, vc1_gender and vc1_country: see add_to_evar/README.md.
        sample_rate: which of the clone's resampled copies to read, Hz.
        path: the clone, instead of the environment variable EVAR.

    Raises:
        FileNotFoundError: no clone, metadata, folder or file; the EVAR command that makes it is named.
        ValueError: a task that EVAR does not know, or a rate that it keeps no folder for.
    """
    root = clone(path)
    known = definitions(root)
    if task not in known:
        near = difflib.get_close_matches(task, known, 3)
        ours = task in ("gise51", "vc1_gender", "vc1_country")
        raise ValueError(
            f"EVAR at {root} knows no task {task!r}. "
            + ("Register it: python add_to_evar/register_tasks.py. " if ours else "")
            + f"{'Did you mean' if near else 'It knows'}: {', '.join(near or sorted(known))}"
        )
    if sample_rate not in _FOLDERS:
        raise ValueError(f"EVAR keeps audio at {sorted(_FOLDERS)} Hz, found sample_rate={sample_rate}")
    definition = known[task]
    table = root / "evar" / "metadata" / f"{task}.csv"
    doubled = table.with_name(f"{task}.csv.csv")  # make_metadata.py adds .csv twice for nspitch and nsvelocity
    if not table.is_file() and doubled.is_file():
        table = doubled
    if not table.is_file():
        raise FileNotFoundError(
            f"no metadata {table}. In {root}: python evar/utils/make_metadata.py {task} <folder of the dataset>, "
            "see its Preparing-datasets.md, or use aape.tasks' own builders"
        )
    audio = root / "work" / _FOLDERS[sample_rate] / definition.folder
    if not audio.is_dir():
        raise FileNotFoundError(
            f"no audio folder {audio}. In {root}: python prepare_wav.py <folder of the dataset> "
            f"{audio.relative_to(root)} {sample_rate}"
        )
    return from_metadata(table, audio, clip_seconds=definition.clip_seconds, name=task)
