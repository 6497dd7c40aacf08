"""Do the nulls hold? Discoveries where there is nothing to discover.

    python -m benchmarks.calibration outputs/miniature/{esc50_analysis,esc50_vit,vc1_country_analysis,voxforge_untrained}

Each check runs a test of the repository on data in which labels mean nothing, and counts the runs with a discovery. A test
at level 5 % may find something in 5 % of the runs; the limit is the number of runs that a binomial variable of that level
exceeds with probability below 1 %. The folders are artifacts of a collecting pass with counts per clip; their labels are
permuted among the units that may exchange them, the counts are real. 100 runs of each take some 6 minutes of one core.

Every run is kept in --keep, so that an interrupted call resumes; calibration.md is written from what is there.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binom
from tqdm.auto import tqdm

from aape.artifacts.folder import Artifacts, load_artifacts
from aape.files import write_text
from aape.neurons.chance import Calibrated, calibrate_counts, counted_clips
from aape.neurons.permuting import Counted, UnitSums, exchangeable_units, permuted_labels
from aape.neurons.selection import select
from aape.neurons.sharing import Matched, matched, sharing_against_chance
from notebooks_src.report import markdown

TOKENS = 60
LEVEL = 0.05
COLUMNS = ["key", "data", "run", "test", "value"]
KINDS = {
    "sizes": "synthetic, the size of recordings goes with the class",
    "joined": "synthetic, no two classes share a size (sizes within a factor of 1.1 are joined)",
    "crossed": "synthetic, every group has every class",
    "speakers": "synthetic, every speaker shows every class in an own way that other speakers do not share",
    "tokens": "synthetic, clips of one class last longer",
    "large": "synthetic, classes of 2 to 30 recordings, the same ones large in both tasks",
}
RANDOM_SIZES = (1, 3, 10)  # clips of a class without meaning among real classes
BEFORE = """
By how much may the sizes in a stratum differ (`aape.neurons.permuting.GROUP_RATIO`)? Two classes without meaning, one of 40
groups, one of 6 larger ones; clips of a group are alike (intraclass correlation 0.9), neurons are independent; from trials:

| larger / smaller | neurons | permutations | runs | with a calibrated neuron | limit at 5 % |
|---|---|---|---|---|---|
| 1.1 (11 clips / 10) | 8,000 | 100 | 100 | 0 | 11 |
| 1.25 (5 / 4) | 8,000 | 100 | 100 | 0 | 11 |
| 1.1 (11 / 10) | 20,000 | 200 | 10 | 0 | 2 |
| 1.25 (5 / 4) | 20,000 | 200 | 10 | 2 | 2 |
| 1.5 (6 / 4) | 20,000 | 200 | 10 | 9 | 2 |
"""


def recordings(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Class and group of each clip. Labels are shuffled among groups of like size, except where sizes are to be joined."""
    if kind in ("crossed", "speakers"):
        return np.tile(np.repeat(np.arange(6), 2), 20), np.repeat(np.arange(20), 12)
    if kind == "tokens":
        return np.arange(240) % 6, np.arange(240)
    sizes = [[12] * 8 + [1] * 8 if c < 3 else [12] + [1] * 64 for c in range(6)]
    if kind == "large":
        sizes = [[3] * n for n in np.linspace(2, 30, 12).round().astype(int)]
    if kind == "joined":
        sizes = [[10] * 30, [11] * 6, [20] * 20, [21] * 20, [22] * 6]
    size = np.concatenate(sizes)
    label = np.repeat(np.arange(len(sizes)), [len(of_class) for of_class in sizes])
    groups = np.repeat(np.arange(len(size)), size)
    if kind == "joined":
        return label[groups], groups
    units = exchangeable_units(label[groups], groups)
    return next(permuted_labels(units, 1, int(rng.integers(2**31))))[units.of_clip], groups


def synthetic(run: int, kind: str) -> list[Counted]:
    """Two tasks of 300 neurons that go up and down together from recording to recording."""
    rng = np.random.default_rng([run, 21])
    tasks = []
    for number in range(2):
        labels, groups = recordings(rng, kind)
        together = rng.normal(0, 1, (groups.max() + 1, 5)) @ rng.normal(0, 0.8, (5, 300))
        rate = rng.beta(0.5, 3, 300) * np.exp(together[groups])
        if kind == "speakers":
            rate = rate * np.exp(rng.normal(0, 0.5, (120, 300)))[groups * 6 + labels]
        tokens = np.full(len(labels), TOKENS)
        if kind == "tokens":
            tokens = np.where(labels == 0, rng.integers(40, 120, 240), rng.integers(20, 60, 240))
        counts = (
            rng.binomial(tokens[:, None], np.clip(rate, 0, 1))
            .astype(np.uint8)
            .reshape(len(groups), 2, 150)
        )
        clips = np.arange(len(labels), dtype=np.uint64) + 10**6 * number
        tasks.append(Counted(counts, labels, tokens, groups, clips=clips))
    return tasks


def random_class(run: int, size: int, permutations: int, rate: float) -> dict[str, float]:
    """A class of clips drawn at random from ten real classes of 30 clips and 30 neurons each."""
    rng = np.random.default_rng([run, size])
    labels = np.repeat(np.arange(10), 30)
    unusual = rng.standard_t(3, (300, 6)) @ rng.normal(
        0, 0.5, (6, 400)
    )  # some clips are unusual in many neurons
    logit = rng.normal(-2, 1, 400) + unusual + rng.normal(0, 0.4, (300, 400))
    logit[:, :300] += 2 * (labels[:, None] == np.arange(300) // 30)
    labels[rng.permutation(300)[:size]] = 10
    counts = rng.binomial(TOKENS, 1 / (1 + np.exp(-logit))).astype(np.uint8).reshape(300, 2, 200)
    data = Counted(counts, labels, np.full(300, TOKENS), np.arange(300))
    found = calibrated(data, permutations, run, rate)
    return {
        f"neurons: a calibrated one of the random class of {size} clips": int(
            found.members[:, :, 10].any()
        )
    }


def real(run: int, artifacts: Artifacts) -> list[Counted]:
    """Two permutations of the labels of real counts."""
    data = counted_clips(artifacts)
    units = exchangeable_units(data.labels, data.groups, len(artifacts.classes), tokens=data.tokens)
    return [
        Counted(data.counts, labels[units.of_clip], data.tokens, data.groups)
        for labels in permuted_labels(units, 2, 1000 + run)
    ]


def calibrated(data: Counted, permutations: int, seed: int, rate: float) -> Calibrated:
    """What `calibrate` makes of counts, with no least effect: every discovery counts."""
    classes = int(data.labels.max()) + 1
    sums = UnitSums(data, exchangeable_units(data.labels, data.groups, classes, tokens=data.tokens))
    (active,) = (a[0].astype(np.float64) for _, a in sums.by_class([sums.units.label]))
    p = np.clip(active / sums.class_tokens(sums.units.label)[:, None], 0, 1).T.reshape(
        *sums.shape, classes
    )
    return calibrate_counts(
        data, select(p, rate=rate), permutations=permutations, seed=seed, effect=0.0, progress=False
    )


def discoveries(pair: list[Counted], permutations: int, seed: int, rate: float) -> dict[str, float]:
    """Which tests find something (1 or 0), and the share of pairs of neuron and class with a small p."""
    one, two = (calibrated(data, permutations, seed, rate) for data in pair)
    null, across = one.null, sharing_against_chance(one, two)
    alike = np.eye(len(across.observed), dtype=bool)
    same = matched(across.observed, alike, chance=across.mean, permutations=999, seed=seed)
    found = {
        "neurons: a pair (neuron, class) with q < 0.05, in a task with p <= 0.05": null.discoveries and null.task_p <= LEVEL,
        "neurons: a calibrated class-specific neuron": one.members.any(),
        "neurons: one of low AAPE, q < 0.05": (null.neuron_q < LEVEL).any(),
        "sharing: same class in two tasks (matching), p <= 0.05": same.p <= LEVEL,
    }  # fmt: skip
    p = null.pair_p[~np.isnan(null.pair_p)]
    return {name: int(bool(value)) for name, value in found.items()} | {
        f"p <= {a}": (p <= a).mean() for a in (0.05, 0.01)
    }


def likeness(run: int) -> dict[str, float]:
    """The matching test by itself, on indices in which likeness means nothing but classes differ in size."""

    def test(observed: np.ndarray, *pairs: np.ndarray, within: bool = False) -> Matched:
        return matched(observed, *pairs, within=within, permutations=999, seed=run)

    rng = np.random.default_rng([run, 3])
    across = test(
        rng.random((12, 15)) + rng.random(15) + rng.random((12, 1)), np.eye(12, 15, dtype=bool)
    )
    own, apart = (
        rng.random((30, 30)) + rng.random(30),
        np.abs(np.subtract.outer(np.arange(30), np.arange(30))),
    )
    octave, beside = (apart > 0) & (apart % 12 == 0), (apart > 1) & np.isin(apart % 12, (1, 11))
    octaves = test(own + own.T, octave, beside, within=True)
    return {
        "same names between two tasks": int(across.p <= LEVEL),
        "octaves within a task": int(octaves.p <= LEVEL),
    }


def page(kept: pd.DataFrame, options: argparse.Namespace) -> str:
    """calibration.md."""
    rows, shares = [], []
    for (data, test), values in kept.groupby(["data", "test"], sort=False)["value"]:
        if test.startswith("p <="):
            shares.append(
                {
                    "data": data,
                    "test": test,
                    "share of pairs": f"{values.mean():.4f}",
                    "runs": str(len(values)),
                }
            )
            continue
        found, limit = int(values.sum()), int(binom.ppf(0.99, len(values), LEVEL))
        numbers = {"runs": len(values), "with a discovery": found, "limit at 5 %": limit}
        rows.append(
            {"data": data, "test": test} | numbers | {"holds": "yes" if found <= limit else "NO"}
        )
    return f"""# Do the nulls hold? (`python -m benchmarks.calibration ARTIFACTS ...`)

Every test of the repository where labels mean nothing: labels permuted among the units that may exchange them,
{options.permutations} permutations each, written by the script on {datetime.date.today()}. A test at 5 % may make a discovery
in 5 % of the runs; the limit is what a binomial variable of that level exceeds with probability below 1 %.

{markdown(pd.DataFrame(rows))}

Share of pairs (neuron, class) with a p of at most 0.05 and 0.01, mean of the runs:

{markdown(pd.DataFrame(shares))}
{BEFORE}"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", nargs="*", type=Path, help="folders with clip_counts.npy")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--permutations", type=int, default=99)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument(
        "--keep", type=Path, default=Path("outputs/calibration.csv"), help="what was done"
    )
    parser.add_argument("--page", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    how = options.permutations, options.rate
    settings = f"{options.permutations} permutations, rate {options.rate}"
    checks: dict[
        str, tuple[str, int, Callable[[int], dict[str, float]]]
    ] = {  # data -> key, runs, check
        "indices without meaning": (settings, 5 * options.runs, likeness)
    }
    for kind, name in KINDS.items():
        check = lambda run, kind=kind: discoveries(synthetic(run, kind), how[0], run, how[1])  # noqa: E731
        checks[name] = settings, options.runs, check
    for size in RANDOM_SIZES:
        check = lambda run, size=size: random_class(run, size, *how)  # noqa: E731
        checks[f"synthetic, a random class of {size} clips among ten real classes"] = (
            settings,
            options.runs,
            check,
        )
    for artifacts in map(load_artifacts, options.artifacts):
        name = f"real counts, permuted labels: {artifacts.manifest['task']}, {artifacts.manifest['encoder']}"
        key = f"{settings}, counts {artifacts.manifest['checksums']['clip_counts.npy'][:12]}"
        check = lambda run, known=artifacts: discoveries(real(run, known), how[0], run, how[1])  # noqa: E731
        checks[name] = key, options.runs, check
    options.keep.parent.mkdir(parents=True, exist_ok=True)
    kept = pd.read_csv(options.keep) if options.keep.is_file() else pd.DataFrame(columns=COLUMNS)
    for name, (key, runs, check) in checks.items():
        done = set(kept[(kept["key"] == key) & (kept["data"] == name)]["run"])
        for run in tqdm([run for run in range(runs) if run not in done], desc=name, disable=None):
            new = pd.DataFrame(
                [(key, name, run, test, value) for test, value in check(run).items()],
                columns=COLUMNS,
            )
            kept = new if kept.empty else pd.concat([kept, new], ignore_index=True)
            write_text(options.keep, kept.to_csv(index=False))
        known = pd.concat(
            [kept[(kept["key"] == k) & (kept["data"] == n)] for n, (k, *_) in checks.items()]
        )
        write_text(options.page, page(known, options))
    print(options.page.read_text())


if __name__ == "__main__":
    main()
