"""What of class-specific pairs is loudness, a frequency band, or the speaker?

    python -m benchmarks.confounds miniature esc50 cremad --clips 10

For each model of the study: pairs that keep half of their effect when loudness and bands are taken out, pairs with
q < 0.05 when labels are permuted among clips that are as loud, the group's share of the variance within classes, and how
many pairs stand when the same clips are changed. Writes confounds_<task>_<folder>.csv, a row a pair, into the study's folder.
"""

from __future__ import annotations

import argparse

import numpy as np

from aape.artifacts.folder import load_artifacts
from aape.criteria.confounds import causal_checks, confounded, descriptors, within_loudness
from aape.files import write_text
from aape.neurons.selection import select
from aape.study.loading import load_encoder, load_task
from aape.study.study import load_study


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--models", nargs="*", help="of the study; all")
    parser.add_argument("--clips", type=int, default=20, help="of each class, that are changed and heard again")
    options = parser.parse_args()
    study = load_study(options.study)
    for name in options.tasks:
        task, heard = load_task(study, name), np.empty(0)
        for model in options.models or study.encoders:
            artifacts = load_artifacts(study.artifacts_directory(name, model))
            selection = select(artifacts, **study.select_by(name))
            heard = heard if len(heard) else descriptors(task, artifacts)  # of the clips, whatever the model
            pairs = selection.table()
            alike = within_loudness(artifacts, heard, pairs).add_prefix("loudness_")
            found = pairs.join(confounded(artifacts, heard, pairs)).join(alike)
            changed = causal_checks(load_encoder(study, model), task, artifacts, selection, clips=options.clips)
            folder = study.encoder(model).folder
            write_text(study.directory / f"confounds_{name}_{folder}.csv", found.to_csv(index=False))
            prefer = found[found.effect > 0]
            print(
                f"\n{study.encoder(model).label} on {name}: {len(found)} pairs, {len(prefer)} of which prefer the class; of "
                f"these {(prefer.adjusted >= prefer.effect / 2).mean():.0%} keep half of their effect beside loudness and "
                f"bands (median R2 {found.r2.median():.2f}), {(found.loudness_q < 0.05).mean():.0%} stand "
                f"within bins of loudness, the groups' share of variance is {found.groups.mean():.2f}\n"
                + changed.to_string(index=False, float_format="{:.2f}".format),
                flush=True,
            )


if __name__ == "__main__":
    main()
