"""Speed, memory and power of the selection and its nulls: python -m benchmarks.chance [speed|stream|planted]

speed: 1,000 permutations of 2,000 clips (1,524 groups) x 36,864 neurons x 50 classes, with the time that
reading the table of counts once per permutation takes (the memory-bandwidth floor), and one selection of
36,864 neurons x 1,251 classes. stream: counts of NSynth's shape (305,979 clips of 1,006 instruments as groups, 112 classes,
36,864 neurons; 11 GB, written to --folder first and read from there; fewer with --clips). planted: recall and false-discovery rate where
class-specific neurons were planted. Discoveries where labels mean nothing: benchmarks/calibration.py.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from aape.artifacts.folder import ArrayWriter
from aape.neurons.chance import Calibrated, calibrate_counts
from aape.neurons.null import permutation_null
from aape.neurons.permuting import THREADS, Counted, UnitSums, exchangeable_units
from aape.neurons.selection import Rule, select

TOKENS = 60


def anonymous_gib() -> float:
    """Largest resident memory that is the process's own: pages of the mapped file can be dropped at any time."""
    status = Path("/proc/self/status").read_text()
    mapped = next(
        int(line.split()[1]) for line in status.splitlines() if line.startswith("RssFile")
    )
    return peak_gib() - mapped / 2**20


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def speed(permutations: int) -> None:
    rng = np.random.default_rng(0)
    clips, layers, neurons, classes, groups = 2000, 12, 3072, 50, 1524
    label_of_group = rng.permutation(np.arange(groups) % classes)
    group = np.concatenate([np.arange(groups), rng.integers(0, groups, clips - groups)])
    labels = label_of_group[group]
    ceiling = rng.integers(2, 156, layers * neurons).astype(np.float32)  # tokens; 155 to a 5 s clip
    counts = np.empty((clips, layers, neurons), dtype=np.uint8)
    for i in range(clips):
        counts[i] = (ceiling * rng.random(layers * neurons, dtype=np.float32)).reshape(
            layers, neurons
        )
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
    sums = UnitSums(Counted(counts, labels, np.full(clips, 155), group), units)
    null = permutation_null(sums, Rule(0.02), permutations=permutations)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"{permutations} permutations, {clips} clips x {layers * neurons} neurons x {classes} classes, {THREADS} threads"
    )
    print(
        f"  {null.units.description}; discoveries {null.discoveries}, p of the task {null.task_p:.3f}"
    )
    print(
        f"  wall {wall:.1f} s, processor {cpu:.1f} s, peak {peak_gib():.2f} GiB ({before:.2f} GiB before)"
    )
    floor = min(reads) * permutations
    print(
        f"  floor, one read of the table [units, neurons] per permutation on one core: {floor:.1f} s"
    )

    p = rng.random((layers, neurons, 1251), dtype=np.float32)
    start, cpu = time.perf_counter(), time.process_time()
    select(p, rate=0.02)
    print(
        f"select 36,864 x 1,251: wall {time.perf_counter() - start:.1f} s, processor {time.process_time() - cpu:.1f} s"
    )


def noise_rates(
    rng: np.random.Generator, labels: np.ndarray, group: np.ndarray, width: int
) -> np.ndarray:
    """Rates [clips, neurons] of neurons that go up and down together, by clip, by group and in bursts."""
    rate = np.repeat(rng.beta(0.5, 3, width)[None], len(labels), axis=0)
    factors = rng.normal(0, 0.5, (group.max() + 1, 5))[group] + rng.normal(0, 0.3, (len(labels), 5))
    rate = rate * np.exp(factors @ rng.normal(0, 0.6, (5, width)))
    rate *= rng.random(rate.shape) < np.where(np.arange(width) % 4 == 0, 0.05, 1)
    return rate


def pipeline(
    counts: np.ndarray, labels: np.ndarray, group: np.ndarray, permutations: int, effect: float
) -> Calibrated:
    classes = int(labels.max()) + 1
    p = np.stack([counts[labels == c].mean(axis=0) / TOKENS for c in range(classes)], axis=-1)
    data = Counted(counts, labels, np.full(len(labels), TOKENS), group)
    return calibrate_counts(
        data, select(p, rate=0.05), permutations=permutations, effect=effect, progress=False
    )


def stream(permutations: int, folder: Path, clips: int) -> None:
    layers, neurons, classes, groups = 12, 3072, 112, max(2, round(1006 * clips / 305_979))
    rng = np.random.default_rng(0)
    path = folder / f"counts_of_nsynth_shape_{clips}.npy"
    group = np.sort(rng.integers(0, groups, clips))
    labels = rng.integers(0, classes, clips)  # an instrument plays most pitches
    if not path.is_file():
        ceiling = rng.integers(2, 156, layers * neurons).astype(np.float32)
        with path.open("wb") as file:
            writer = ArrayWriter(file, (clips, layers, neurons), np.dtype(np.uint8))
            noise = rng.random((64, layers * neurons), dtype=np.float32)
            for start in range(0, clips, 1024):
                size = min(1024, clips - start)
                level = rng.gamma(4, 0.25, (size, 1)).astype(np.float32)
                rows = np.clip(ceiling * noise[rng.integers(0, 64, size)] * level, 0, 155)
                writer.append(rows.astype(np.uint8).reshape(size, layers, neurons))
    counts = np.load(path, mmap_mode="r")
    before = peak_gib()
    wall, cpu = time.perf_counter(), time.process_time()
    data = Counted(counts, labels, np.full(clips, 155), group)
    sums = UnitSums(data, exchangeable_units(labels, group, classes))
    null = permutation_null(sums, Rule(0.01), permutations=permutations)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f"{permutations} permutations, {clips} clips x {layers * neurons} neurons x {classes} classes, {THREADS} threads"
    )
    print(
        f"  {null.units.description}; discoveries {null.discoveries}, p of the task {null.task_p:.3f}"
    )
    print(
        f"  wall {wall:.0f} s, processor {cpu:.0f} s, peak anonymous memory {anonymous_gib():.2f} GiB ({before:.2f} before)"
    )


def planted(runs: int) -> None:
    labels, group = np.repeat(np.arange(10), 24), np.arange(240) // 2
    for inside, outside in ((0.6, 0.05), (0.3, 0.1), (0.2, 0.1)):
        rows = {"percentile": [0, 0], "calibrated": [0, 0], "significant": [0, 0]}
        for seed in range(runs):
            rng = np.random.default_rng([seed, 6])
            rate = noise_rates(rng, labels, group, 400)
            truth = np.zeros((400, 10), dtype=bool)
            truth[np.arange(20), np.arange(20) // 2] = True  # two neurons to a class
            noise = np.exp(rng.normal(0, 0.4, (120, 20)))[group]
            rate[:, :20] = np.where(truth[:20][:, labels].T, inside, outside) * noise
            place = rng.permutation(400)
            counts = (
                rng.binomial(TOKENS, np.clip(rate, 0, 1))
                .astype(np.uint8)[:, place]
                .reshape(-1, 2, 200)
            )
            truth = truth[place].reshape(2, 200, 10)
            result = pipeline(counts, labels, group, 199, 0.1)
            found = {
                "percentile": result.selection.members,
                "calibrated": result.members,
                "significant": result.significant,
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", default=["speed", "planted"])
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=10, help="of planted")
    parser.add_argument(
        "--clips", type=int, default=305_979, help="of stream: time goes with clips x permutations"
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="for the counts of stream"
    )
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, numpy {np.__version__}"
    )
    if "speed" in options.what:
        speed(options.permutations)
    if "stream" in options.what:
        stream(options.permutations, options.folder, options.clips)
    if "planted" in options.what:
        planted(options.runs)


if __name__ == "__main__":
    main()
