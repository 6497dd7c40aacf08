"""Do the nulls hold? Discoveries where there is nothing to discover: python -m benchmarks.calibration [ARTIFACTS ...]

Each check runs a test of the repository on data in which the labels mean nothing, at least 100 times, and counts the runs
with a discovery. A test at level 5 % may find something in 5 % of the runs; `limit` is the number of runs that a binomial
variable of that level exceeds with probability below 1 %. Synthetic counts come with groups of unequal size that go with
the class: half of the classes have few long recordings. ARTIFACTS are folders of a collecting pass with counts per clip;
their labels are permuted among groups of as many clips (or within groups of several classes), the counts are real.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binom
from tqdm.auto import tqdm

from aape.artifacts import Artifacts, load_artifacts
from aape.chance import calibrate_counts, counted_clips
from aape.selection import select
from aape.sharing import Matched, matched, sharing_against_chance
from aape.units import Counted, UnitSums, exchangeable_units, permuted_labels

TOKENS = 60
LEVEL = 0.05
Found = dict[str, bool]


def recordings(rng: np.random.Generator, neighbours: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Class and group of each clip: 6 classes, three of few long recordings, three of many short ones.

    neighbours: sizes that differ by class, so that no two classes share a size: they have to be joined.
    """
    sizes = [[12] * 8 + [1] * 8 if c < 3 else [12] + [1] * 64 for c in range(6)]
    if neighbours:
        sizes = [[8 + c % 3] * 8 if c < 3 else [1 + c % 3] * 20 for c in range(6)]
    size, label = np.concatenate(sizes), np.repeat(np.arange(6), [len(s) for s in sizes])
    groups = np.repeat(np.arange(len(size)), size)
    if neighbours:  # within the strata that the test itself makes
        units = exchangeable_units(label[groups], groups)
        label[units.group] = next(permuted_labels(units, 1, int(rng.integers(2**31))))
    else:
        for s in np.unique(size):
            label[size == s] = rng.permutation(label[size == s])
    return label[groups], groups


def noise(rng: np.random.Generator, groups: np.ndarray, width: int = 300) -> np.ndarray:
    """uint8 [clips, 2, width / 2]: neurons that go up and down together from recording to recording."""
    together = rng.normal(0, 1, (groups.max() + 1, 5)) @ rng.normal(0, 0.8, (5, width))
    rate = rng.beta(0.5, 3, width) * np.exp(together[groups])
    return rng.binomial(TOKENS, np.clip(rate, 0, 1)).astype(np.uint8).reshape(len(groups), 2, width // 2)


def synthetic(runs: int, kind: str) -> Iterator[tuple[Counted, Counted]]:
    """Counts without meaning, in pairs for the sharing of two tasks."""
    for run in range(runs):
        rng = np.random.default_rng([run, 21])
        pair = []
        for _ in range(2):
            labels, groups = recordings(rng, kind == "joined")
            if kind == "crossed":
                groups = np.repeat(np.arange(12), 20)
                labels = rng.permuted(np.tile(np.arange(240) % 6, 1).reshape(12, 20), axis=1).ravel()
            pair.append(Counted(noise(rng, groups), labels, np.full(len(labels), TOKENS), groups))
        yield pair[0], pair[1]


def real(runs: int, artifacts: Artifacts) -> Iterator[tuple[Counted, Counted]]:
    """Real counts with permuted labels; the second of a pair is another permutation of the same."""
    data = counted_clips(artifacts)
    units = exchangeable_units(data.labels, data.groups, len(artifacts.classes))
    drawn = permuted_labels(units, 2 * runs, 99)
    for _ in range(runs):
        pair = [Counted(data.counts, next(drawn)[units.of_clip], data.tokens, data.groups) for _ in range(2)]
        yield pair[0], pair[1]


def discoveries(pair: tuple[Counted, Counted], permutations: int, seed: int, rate: float) -> tuple[Found, np.ndarray]:
    """Which tests find something, and the p of all pairs of neuron and class."""
    calibrated = []
    for data in pair:
        n_classes = int(data.labels.max()) + 1
        sums = UnitSums(data, exchangeable_units(data.labels, data.groups, n_classes))
        (active,) = (a[0].astype(np.float64) for _, a in sums.by_class([sums.units.label]))
        p = np.clip(active / sums.class_tokens(sums.units.label)[:, None], 0, 1)
        chosen = select(p.T.reshape(*sums.shape, n_classes), rate=rate)
        calibrated.append(
            calibrate_counts(data, chosen, permutations=permutations, seed=seed, effect=0.0, progress=False)
        )
    one, two = calibrated
    null, within, across = one.null, sharing_against_chance(one), sharing_against_chance(one, two)
    found = {
        "pairs (neuron, class) with q < 0.05 and the gate on the task": null.discoveries > 0 and null.task_p <= LEVEL,
        "a calibrated class-specific neuron": bool(one.members.any()),
        "neurons of low AAPE, q < 0.05": bool((null.neuron_q < LEVEL).any()),
        "sharing within the task, q < 0.05": bool((within.q < LEVEL).any()),
        "sharing within the task, centred, q < 0.05": bool((within.q_centred < LEVEL).any()),
        "sharing with another task, q < 0.05": bool((across.q < LEVEL).any()),
        "sharing with another task, centred, q < 0.05": bool((across.q_centred < LEVEL).any()),
        "same class shared between tasks (matching), p <= 0.05": matched(
            across.observed, np.eye(len(across.observed), dtype=bool), permutations=999, seed=seed
        ).p
        <= LEVEL,
    }
    return found, null.pair_p[~np.isnan(null.pair_p)]


def check(
    name: str, pairs: Iterator[tuple[Counted, Counted]], runs: int, permutations: int, rate: float
) -> pd.DataFrame:
    """A row a test: runs with a discovery, and what 5 % allow."""
    counts: dict[str, int] = {}
    shares = []
    for seed, pair in enumerate(tqdm(pairs, total=runs, desc=name, disable=None)):
        found, p = discoveries(pair, permutations, seed, rate)
        for test, any_found in found.items():
            counts[test] = counts.get(test, 0) + int(any_found)
        shares.append([(p <= level).mean() for level in (0.05, 0.01)])
    limit = int(binom.ppf(0.99, runs, LEVEL))
    rows = [
        {"data": name, "test": test, "runs": runs, "with a discovery": n, "limit at 5 %": limit, "holds": n <= limit}
        for test, n in counts.items()
    ]
    at05, at01 = np.mean(shares, axis=0)
    print(f"<!-- {name}: share of pairs with p <= 0.05: {at05:.4f}, p <= 0.01: {at01:.4f} -->")
    return pd.DataFrame(rows)


def likeness(runs: int) -> pd.DataFrame:
    """The matching test by itself, on indices in which likeness means nothing but classes differ in size."""
    tests: dict[str, Callable[[np.random.Generator, int], Matched]] = {}

    def across(rng: np.random.Generator, seed: int) -> Matched:
        observed = rng.random((12, 15)) + rng.random(15) + rng.random((12, 1))
        return matched(observed, np.eye(12, 15, dtype=bool), permutations=999, seed=seed)

    def octaves(rng: np.random.Generator, seed: int) -> Matched:
        own = rng.random((30, 30)) + rng.random(30)
        apart = np.abs(np.subtract.outer(np.arange(30), np.arange(30)))
        other = (apart > 1) & np.isin(apart % 12, (1, 11))
        alike = (apart > 0) & (apart % 12 == 0)
        return matched(own + own.T, alike, other, within=True, permutations=999, seed=seed)

    tests = {"same names between two tasks": across, "octaves within a task": octaves}
    limit, rows = int(binom.ppf(0.99, runs, LEVEL)), []
    for name, test in tests.items():
        n = sum(test(np.random.default_rng([run, 3]), run).p <= LEVEL for run in range(runs))
        rows.append(
            {
                "data": "indices",
                "test": name,
                "runs": runs,
                "with a discovery": n,
                "limit at 5 %": limit,
                "holds": n <= limit,
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", type=Path, help="folders with clip_counts.npy")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--permutations", type=int, default=99)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--real-only", action="store_true", help="leave out the synthetic counts")
    options = parser.parse_args()
    print("| data | test | runs | with a discovery | limit at 5 % | holds |\n|---|---|---|---|---|---|")
    how = {"runs": options.runs, "permutations": options.permutations, "rate": options.rate}
    kinds = {
        "sizes": "synthetic, size of recordings goes with the class",
        "joined": "synthetic, no two classes share a size",
        "crossed": "synthetic, every group has every class",
    }
    show(likeness(5 * options.runs))
    for kind, name in kinds.items() if not options.real_only else ():
        show(check(name, synthetic(options.runs, kind), **how))
    for path in options.artifacts:
        artifacts = load_artifacts(path)
        show(check(f"real counts of {path.name}", real(options.runs, artifacts), **how))


def show(table: pd.DataFrame) -> None:
    """As rows of a page, at once: a run that is cut off has shown what it did."""
    for row in table.assign(holds=np.where(table["holds"], "yes", "NO")).itertuples(index=False):
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


if __name__ == "__main__":
    main()
