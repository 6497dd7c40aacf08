"""The criteria put to the test on a study's tasks: which of them finds the neurons that matter?

    AAPE_ESC50=~/ESC-50 python -m benchmarks.criteria esc50 esc50 --tested fold5 --count 10 --seed 1
    python -m benchmarks.criteria miniature cremad gtzan

Needs the study's artifacts with counts and means. ESC-50's classes that an earlier trial looked at are never drawn. Prints
a table for each model and task, and writes criteria_<task>_<folder>.csv into the study's folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it also runs where aape is not installed

from aape.artifacts import load_artifacts
from aape.contest import compare_criteria, draw_classes
from aape.criteria import CRITERIA
from aape.files import write_text
from aape.study import load_encoder, load_study, load_task

SEEN = (
    "can_opening", "chainsaw", "clapping", "coughing", "dog", "insects", "laughing", "rain", "train", "vacuum_cleaner",
)  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--models", nargs="*", help="of the study; all")
    parser.add_argument("--criteria", nargs="*", default=list(CRITERIA))
    parser.add_argument("--tested", nargs="*", help="folds whose clips are tested; all")
    parser.add_argument("--count", type=int, default=10, help="classes drawn")
    parser.add_argument("--seed", type=int, default=1, help="of the classes, and of everything else")
    parser.add_argument("--k", type=int, default=40, help="neurons a class")
    options = parser.parse_args()
    study = load_study(options.study)
    for task_name in options.tasks:
        task = load_task(study, task_name)
        classes = draw_classes(task.classes, options.count, options.seed, SEEN if "dog" in task.classes else ())
        for model in options.models or study.encoders:
            artifacts = load_artifacts(study.artifacts_directory(task_name, model))
            result = compare_criteria(
                load_encoder(study, model),
                task,
                artifacts,
                options.criteria,
                k=options.k,
                classes=classes,
                tested=options.tested,
                seed=options.seed,
                options={"aape": {"rate": study.rate(task_name)}} if "aape" in options.criteria else None,
            )
            folder = study.encoder(model).folder
            write_text(study.directory / f"criteria_{task_name}_{folder}.csv", result.summary().to_csv(index=False))
            print(f"\n{study.encoder(model).label}, classes: {', '.join(classes)}\n{result}", flush=True)


if __name__ == "__main__":
    main()
