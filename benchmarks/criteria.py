"""Criteria compared on a study's tasks: which of them finds the neurons that matter?

    AAPE_ESC50=~/ESC-50 python -m benchmarks.criteria esc50 esc50 --tested fold5 --count 10 --seed 1
    python -m benchmarks.criteria miniature cremad gtzan

Needs the study's artifacts with counts and means. Classes of ESC-50 that were used during development are never drawn. For
each task and model it writes criteria_<task>_<folder>.csv into the study's folder, and its section of
benchmarks/criteria.md; sections of earlier calls stay. A call that was interrupted resumes.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from pathlib import Path

import pandas as pd

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent)
)  # so that it also runs where aape is not installed

from aape.artifacts.folder import load_artifacts
from aape.causal.runner import MEASURES
from aape.criteria.comparing import Comparison, NothingToCompare, compare_criteria, draw_classes
from aape.criteria.ranking import CRITERIA
from aape.figures.criteria import criteria
from aape.figures.style import save
from aape.files import write_text
from aape.study.loading import load_encoder, load_task
from aape.study.study import load_study
from notebooks_src.report import markdown

SEEN = (
    "can_opening", "chainsaw", "clapping", "coughing", "dog", "insects", "laughing", "rain", "train", "vacuum_cleaner",
)  # fmt: skip
PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Which criterion finds the neurons that matter?

Made by `python -m benchmarks.criteria`; each heading is followed by its call. For each class equally many neurons by every
criterion, chosen on training clips, are ablated in the encoder, and held-out clips are classified by a linear classifier and
by the nearest class mean. Effect: the change of the log-probability of the class's clips minus the change for clips of the
other classes, in nats; mean over classes, with a 95 % t interval over classes. *Minus activity-matched*: minus the effect of
random sets that are as active in the class. The lower, the more the neurons matter. The CSV also has points of accuracy and
strength-matched random sets.
"""


def in_page(page: str, heading: str, text: str) -> str:
    """The page with a section that replaces the one of the same heading, or is added at the end."""
    sections = re.split(r"(?m)^(?=## )", page or HEAD + "\n")
    new = f"## {heading}\n\n{text}\n\n"
    places = [i for i, section in enumerate(sections) if section.startswith(f"## {heading}\n")]
    if not places:
        return "".join([*sections, new])
    sections[places[0]] = new
    return "".join(sections)


def section(result: Comparison, call: str, classes: list[str], seconds: float) -> str:
    """The results of one task and model: a table for each way of ablating the neurons."""
    neurons = result.rows.groupby("class").neurons.first()
    tested = ", ".join(f"{name} ({neurons[name]:.3g})" for name in classes if name in neurons)
    parts = [
        f"`{call}`, {seconds:.0f} s for what was not on disk yet.",
        f"Classes, with their neurons: {tested}.",
    ]
    for mode, how in {"mean": "replaced by their mean", "zero": "silenced"}.items():
        parts.append(f"Neurons {how}:\n\n{markdown(result.table(mode=mode))}")
    return "\n\n".join(parts)


def put(page: Path, heading: str, text: str) -> None:
    """Write a section into the page, which is created where necessary."""
    before = page.read_text(encoding="utf-8") if page.is_file() else ""
    write_text(page, in_page(before, heading, text))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study")
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--models", nargs="*", help="of the study; all")
    parser.add_argument("--criteria", nargs="*", default=list(CRITERIA))
    parser.add_argument("--tested", nargs="*", help="folds whose clips are tested; all")
    parser.add_argument("--count", type=int, default=10, help="classes drawn")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the classes, and of everything else"
    )
    parser.add_argument("--draws", type=int, default=3, help="random sets of each control")
    parser.add_argument("--k", type=int, default=40, help="neurons per class")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    call = shlex.join(["python", "-m", "benchmarks.criteria", *sys.argv[1:]])
    study = load_study(options.study)
    for task_name in options.tasks:
        task = load_task(study, task_name)
        classes = draw_classes(
            task.classes, options.count, options.seed, SEEN if "dog" in task.classes else ()
        )
        for model in options.models or study.encoders:
            start, spec = time.monotonic(), study.encoder(model)
            print(f"{study.name}, {task_name}, {spec.label}: {', '.join(classes)}", flush=True)
            heading = f"{study.name}, {task_name}: {spec.label}"
            try:
                result = compare_criteria(
                    load_encoder(study, model),
                    task,
                    load_artifacts(study.artifacts_directory(task_name, model)),
                    options.criteria,
                    k=options.k,
                    draws=options.draws,
                    classes=classes,
                    tested=options.tested,
                    seed=options.seed,
                    options={
                        "aape": study.selection.model_dump(exclude={"criterion"})
                        | {"rate": study.rate(task_name)}
                    },
                )
            except NothingToCompare as error:
                put(options.page, heading, f"`{call}`: {' '.join(str(error).splitlines())}")
                print(error, flush=True)
                continue
            csv = study.directory / f"criteria_{task_name}_{spec.folder}.csv"
            both = pd.concat(
                [result.summary(measure).assign(measure=measure) for measure in MEASURES]
            )
            write_text(csv, both.to_csv(index=False))
            title = f"{spec.label} on {study.task(task_name).title}"
            save(
                criteria(result.summary(), title),
                study.directory,
                f"criteria_{task_name}_{spec.folder}",
            )
            found = section(result, call, classes, time.monotonic() - start)
            put(options.page, heading, found)
            print(f"{result}\n{csv}, {options.page}\n", flush=True)


if __name__ == "__main__":
    main()
