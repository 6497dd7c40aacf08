"""Speed, memory and error rates of the selection and its nulls: python -m benchmarks.chance [speed|shuffles|planted]

speed: 1,000 permutations of 2,000 clips (1,524 groups) x 36,864 neurons x 50 classes, with the time that
reading the table of counts once per permutation takes (the memory-bandwidth floor), and one selection of
36,864 neurons x 1,251 classes. shuffles: how often the calibrated pipeline discovers anything where labels mean
nothing. planted: recall and false-discovery rate where class-specific neurons were planted.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time

import numpy as np

from aape.chance import Calibrated, calibrate_counts, permutation_null
from aape.selection import select
from aape.units import Counted, UnitSums, exchangeable_units, permuted_labels

TOKENS = 60


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def speed(permutations: int, threads: int) -> None:
    rng = np.random.default_rng(0)
    clips, layers, neurons, classes, groups = 2000, 12, 3072, 50, 1524
    label_of_group = rng.permutation(np.arange(groups) % classes)
    group = np.concatenate([np.arange(groups), rng.integers(0, groups, clips - groups)])
    labels = label_of_group[group]
    ceiling = rng.integers(2, 156, layers * neurons).astype(np.float32)  # tokens; 155 to a 5 s clip
    counts = np.empty((clips, layers, neurons), dtype=np.uint8)
    for i in range(clips):
        counts[i] = (ceiling * rng.random(layers * neurons, dtype=np.float32)).reshape(layers, neurons)
    before = peak_gib()

    units = exchangeable_units(labels, group, classes)
    table = np.zeros((len(units), layers * neurons), dtype=np.float32)
    table += 1
    reads = []
    for _ in range(5):
        start = time.thread_time()  # of the processor: other work on the machine does not count
        table.sum()
        reads.append(time.thread_time() - start)
    del table
    start, cpu = time.perf_counter(), time.process_time()
    sums = UnitSums(Counted(counts, labels, np.full(clips, 155), group), units, threads=threads)
    null = permutation_null(sums, rate=0.02, permutations=permutations)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"{permutations} permutations, {clips} clips x {layers * neurons} neurons x {classes} classes, {threads} threads"
    )
    print(f"  {null.units.description}; discoveries {null.discoveries}, p of the task {null.task_p:.3f}")
    print(f"  wall {wall:.1f} s, processor {cpu:.1f} s, peak {peak_gib():.2f} GiB ({before:.2f} GiB before)")
    floor = min(reads) * permutations
    print(f"  floor, one read of the table [units, neurons] per permutation on one core: {floor:.1f} s")

    p = rng.random((layers, neurons, 1251), dtype=np.float32)
    start, cpu = time.perf_counter(), time.process_time()
    select(p, rate=0.02)
    print(
        f"select 36,864 x 1,251: wall {time.perf_counter() - start:.1f} s, processor {time.process_time() - cpu:.1f} s"
    )


def made_up(rng: np.random.Generator, labels: np.ndarray, group: np.ndarray, width: int) -> np.ndarray:
    """Rates [clips, neurons] of neurons that go up and down together, by clip, by group and in bursts."""
    rate = np.repeat(rng.beta(0.5, 3, width)[None], len(labels), axis=0)
    factors = rng.normal(0, 0.5, (group.max() + 1, 5))[group] + rng.normal(0, 0.3, (len(labels), 5))
    rate = rate * np.exp(factors @ rng.normal(0, 0.6, (5, width)))
    rate *= rng.random(rate.shape) < np.where(np.arange(width) % 4 == 0, 0.05, 1)
    return rate


def pipeline(counts: np.ndarray, labels: np.ndarray, group: np.ndarray, permutations: int, effect: float) -> Calibrated:
    classes = int(labels.max()) + 1
    p = np.stack([counts[labels == c].mean(axis=0) / TOKENS for c in range(classes)], axis=-1)
    data = Counted(counts, labels, np.full(len(labels), TOKENS), group)
    return calibrate_counts(
        data, select(p, rate=0.05), permutations=permutations, effect=effect, progress=False, threads=1
    )


def shuffles(runs: int) -> None:
    labels, group = np.repeat(np.arange(10), 24), np.arange(240) // 2
    found = {"any pair with q < 0.05": 0, "and the gate on the task": 0, "and class-specific (calibrated)": 0}
    for seed in range(runs):
        rng = np.random.default_rng([seed, 5])
        rate = made_up(rng, labels, group, 400)
        counts = rng.binomial(TOKENS, np.clip(rate, 0, 1)).astype(np.uint8).reshape(-1, 2, 200)
        units = exchangeable_units(labels, group)
        mixed = next(permuted_labels(units, 1, seed))[units.of_clip]
        result = pipeline(counts, mixed, group, 99, 0.0)
        found["any pair with q < 0.05"] += result.null.discoveries > 0
        found["and the gate on the task"] += result.null.discoveries > 0 and result.null.task_p <= 0.05
        found["and class-specific (calibrated)"] += bool(result.members.any())
    print(f"labels shuffled, no least effect, runs of {runs} with a discovery:")
    for name, count in found.items():
        print(f"  {name}: {count}")


def planted(runs: int) -> None:
    labels, group = np.repeat(np.arange(10), 24), np.arange(240) // 2
    for inside, outside in ((0.6, 0.05), (0.3, 0.1), (0.2, 0.1)):
        rows = {"percentile": [0, 0], "calibrated": [0, 0], "q < 0.05 alone": [0, 0]}
        for seed in range(runs):
            rng = np.random.default_rng([seed, 6])
            rate = made_up(rng, labels, group, 400)
            truth = np.zeros((400, 10), dtype=bool)
            truth[np.arange(20), np.arange(20) // 2] = True  # two neurons to a class
            noise = np.exp(rng.normal(0, 0.4, (120, 20)))[group]
            rate[:, :20] = np.where(truth[:20][:, labels].T, inside, outside) * noise
            place = rng.permutation(400)
            counts = rng.binomial(TOKENS, np.clip(rate, 0, 1)).astype(np.uint8)[:, place].reshape(-1, 2, 200)
            truth = truth[place].reshape(2, 200, 10)
            result = pipeline(counts, labels, group, 199, 0.1)
            found = {
                "percentile": result.selection.members,
                "calibrated": result.members,
                "q < 0.05 alone": np.nan_to_num(result.null.pair_q, nan=1.0) < 0.05,
            }
            for name, members in found.items():
                rows[name][0] += int((members & truth).sum())
                rows[name][1] += int((members & ~truth).sum())
        for name, (true, false) in rows.items():
            print(
                f"planted {inside} against {outside}, {name}: recall {true / (20 * runs):.2f}, "
                f"false discoveries {false / max(1, true + false):.3f} ({true} true, {false} false)"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["speed", "shuffles", "planted"])
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, numpy {np.__version__}"
    )
    if "speed" in options.what:
        speed(options.permutations, options.threads)
    if "shuffles" in options.what:
        shuffles(options.runs)
    if "planted" in options.what:
        planted(max(1, options.runs // 10))


if __name__ == "__main__":
    main()
