"""Front door of the collecting notebooks: load a study, a model and a task, run the pass, save the artifacts.

From a shell:
    python common.py collect miniature ssl esc50     one pass (or torchrun --nproc_per_node 2 common.py collect ...)
    python common.py doctor paper                    what is installed, found, missing, and the next step
    python common.py download m2d esc50              fetch checkpoints and datasets that may be fetched freely
    python common.py metadata gtzan FOLDER OUT.csv   EVAR-format metadata of a dataset as it is distributed
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from aape.artifacts import Artifacts, load_artifacts
from aape.collecting import collect
from aape.encoder import from_module
from aape.figures import activity as figures
from aape.study import load_encoder, load_study, load_task
from aape.task import from_metadata

__all__ = [
    "Artifacts",
    "check_parameters",
    "collect",
    "collect_study",
    "describe",
    "figures",
    "from_metadata",
    "from_module",
    "load_artifacts",
    "load_encoder",
    "load_study",
    "load_task",
]


def collect_study(
    study: str | Path, model: str, task: str, *, device: str | None = None, batch_size: int | None = None
) -> Artifacts:
    """Everything a collecting notebook does: load by name and collect with the study's settings."""
    loaded = load_study(study)
    settings = loaded.collect
    out_dir = loaded.artifacts_directory(task, model)
    return collect(
        load_encoder(loaded, model),
        load_task(loaded, task),
        out_dir,
        batch_size=settings.batch_size if batch_size is None else batch_size,
        device=device,
        splits=settings.splits,
        keep_clips=settings.keep_clips,
        on_bad_clip=settings.on_bad_clip,
        seed=loaded.seed,
    )


def check_parameters(namespace: Mapping[str, Any], known: str) -> None:
    """Refuse a notebook parameter that no cell reads, such as a misspelt one given on papermill's command line.

    Args:
        namespace: the notebook's globals(). known: names of its parameters, separated by blanks.

    Raises:
        ValueError: names the stranger and the nearest known parameter.
    """
    names = known.split()
    for name, value in namespace.items():
        literal = value is None or isinstance(value, (str, int, float, bool, list, tuple, dict))
        if literal and not name.startswith("_") and name not in (*names, "In", "Out"):
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
            raise ValueError(f"unknown parameter {name!r}; {hint}")


def describe(study: str | Path, artifacts: Artifacts) -> pd.DataFrame:
    """The artifacts' summary, with the study's note where its results are stand-ins."""
    table = pd.DataFrame({"value": artifacts.facts()})
    loaded = load_study(study)
    if loaded.stand_in:
        table.loc["note"] = f"STAND-IN: {loaded.note}"
    return table


def _collect_command(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="common.py collect", description="One model on one task of a study.")
    for name in ("study", "model", "task"):
        parser.add_argument(name)
    parser.add_argument("--device")
    parser.add_argument("--batch-size", type=int)
    options = parser.parse_args(arguments)
    artifacts = collect_study(
        options.study, options.model, options.task, device=options.device, batch_size=options.batch_size
    )
    print(artifacts)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Command line: the first word names the command, the rest is its own."""
    from aape import datasets as builders
    from aape.datasets import doctor, download

    commands: dict[str, Callable[[list[str]], int]] = {
        "collect": _collect_command,
        "doctor": doctor.main,
        "download": download.main,
        "metadata": builders.main,
    }
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] not in commands:
        print(__doc__)
        return 0 if words in ([], ["-h"], ["--help"]) else 2
    return commands[words[0]](words[1:])


if __name__ == "__main__":
    sys.exit(main())
