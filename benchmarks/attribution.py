"""Attribution against silencing neurons one by one: python -m benchmarks.attribution STUDY TASK MODEL [--neurons 320]

The neurons are drawn by layer and by rank of their attribution (every layer: the strongest, and an even spread over the
rest), then each is silenced in truth, and its effect on ln p of the class, mean over the class's clips, is compared with
the estimate for all classes. Also: what the passes cost, as ratios to a bare forward pass over the same clips.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy.stats import beta, spearmanr
from tqdm.auto import tqdm

from aape.artifacts.folder import load_artifacts
from aape.causal.attribution import Pass, classifiers_for_clips, one_pass, weights_without_gradient
from aape.causal.silencing import embed_with_sets, neuron_set
from aape.sounds.task import read_clips
from aape.study.loading import load_encoder, load_task
from aape.study.study import load_study


def stratified(scores: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """[k, 2] of (layer, neuron): per layer a third the strongest in any class, the rest even over all ranks."""
    layers = len(scores)
    chosen = []
    for layer in range(layers):
        order = np.argsort(-np.abs(scores[layer]).max(axis=1), kind="stable")
        each = count // layers
        top = order[: each // 3]
        parts = np.array_split(order[each // 3 :], each - len(top))
        mine = np.concatenate([top, [rng.choice(part) for part in parts]])
        chosen.append(np.stack([np.full(len(mine), layer), mine], axis=1))
    return np.concatenate(chosen)


def agreement(estimate: np.ndarray, truth: np.ndarray, name: str) -> str:
    """One row of the table, over pairs of neuron and class; estimate, truth: [neurons, classes]."""
    rho = np.nanmean(
        [spearmanr(estimate[:, c], truth[:, c]).statistic for c in range(truth.shape[1])]
    )
    large = np.abs(truth) > np.quantile(np.abs(truth), 0.75)
    sign = (np.sign(estimate) == np.sign(truth))[large].mean()
    k = max(1, len(truth) // 10)
    recall, missed = [], 0
    for c in range(truth.shape[1]):
        best = set(np.argsort(truth[:, c])[:k])
        recall.append(len(best & set(np.argsort(estimate[:, c])[:k])) / k)
        # a false negative: among the tenth that lowers the class most, but in the weaker half of the estimates
        missed += len(best & set(np.argsort(estimate[:, c])[len(truth) // 2 :]))
    bound = (
        beta.ppf(0.95, missed + 1, k * truth.shape[1] - missed)
        if missed < k * truth.shape[1]
        else 1.0
    )
    slope = (estimate * truth).sum() / (estimate**2).sum()
    return (
        f"| {name} | {rho:.2f} | {sign:.0%} | {np.mean(recall):.0%} | {missed} of {k * truth.shape[1]} "
        f"(at most {bound:.1%}) | {slope:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study")
    parser.add_argument("task")
    parser.add_argument("model")
    parser.add_argument("--neurons", type=int, default=320)
    parser.add_argument(
        "--clips", type=int, default=8, help="clips of each class that are silenced in truth"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    study = load_study(options.study)
    encoder, task = load_encoder(study, options.model), load_task(study, options.task)
    artifacts = load_artifacts(study.artifacts_directory(options.task, options.model))
    rng = np.random.default_rng(options.seed)
    rows = artifacts.rows("train" if "train" in artifacts.splits else None)
    # the estimate and the truth on the same clips: a seeded few of each class stand in for a split of their own
    some = np.concatenate(
        [
            rng.permutation(rows[artifacts.labels[rows] == c])[: options.clips]
            for c in range(len(artifacts.classes))
        ]
    )
    classifiers = classifiers_for_clips(artifacts, artifacts.embeddings(), rows, seed=0)
    place = {name: i for i, name in enumerate(task.files)}
    positions = np.array([place[artifacts.files[i]] for i in some])
    wave, _, _ = read_clips(task, positions, encoder.sample_rate)
    labels = artifacts.labels[some]

    estimates, seconds = {}, {}
    passes: list[Pass] = []
    batches = np.array_split(np.arange(len(some)), max(1, len(some) // 16))
    start = time.process_time()
    with weights_without_gradient(encoder):
        for b in batches:
            of_batch = [classifiers[i] for i in some[b]]
            passes.append(
                one_pass(encoder, artifacts.layers, torch.from_numpy(wave[b]), labels[b], of_batch)
            )
    seconds["attribution"] = time.process_time() - start
    start = time.process_time()
    with torch.no_grad():
        for b in batches:
            encoder.embed(torch.from_numpy(wave[b]).to(encoder.device))
    seconds["forward"] = time.process_time() - start
    members = (labels == np.arange(len(artifacts.classes))[:, None]).astype(
        np.float64
    )  # [classes, clips]
    count = members.sum(axis=1)[:, None, None]
    product = np.tensordot(members, np.concatenate([p.product for p in passes]), axes=1)
    gradient = np.tensordot(members, np.concatenate([p.gradient for p in passes]), axes=1)
    tokens = np.sum([p.tokens for p in passes], axis=0)
    mean = np.sum([p.activation.sum(axis=0) for p in passes], axis=0) / tokens[:, None]
    estimates["zero"] = np.moveaxis(-product / count, 0, -1)
    estimates["mean"] = np.moveaxis((mean * gradient - product) / count, 0, -1)

    neurons = stratified(estimates["zero"], options.neurons, rng)
    layer_index = [encoder.layers.index(name) for name in artifacts.layers]
    theirs = np.stack([np.array(layer_index)[neurons[:, 0]], neurons[:, 1]], axis=1)

    def log_p(embeddings: np.ndarray, at: np.ndarray) -> np.ndarray:
        rows = [
            classifiers[i].log_probabilities(e[None])[0]
            for i, e in zip(some[at], embeddings, strict=True)
        ]
        return np.array(rows)[np.arange(len(at)), labels[at]]

    print(
        f"{encoder.name} on {task.name}: {len(neurons)} neurons, {len(some)} clips, {len(artifacts.classes)} classes"
    )
    print(
        "| replaced by | rank correlation | sign, larger quarter | recall of the top tenth | false negatives | slope |"
    )
    print("|---|---|---|---|---|---|")
    start = time.process_time()
    for replace_by in ("zero", "mean"):
        sets = [
            neuron_set(
                encoder,
                pair[None],
                **({} if replace_by == "zero" else {"replace_by": [mean[tuple(own)]]}),
            )
            for pair, own in zip(theirs, neurons, strict=True)
        ]
        truth = np.zeros((len(neurons), len(artifacts.classes)))
        for b in tqdm(batches, desc=f"silencing one by one, {replace_by}", disable=None):
            found = embed_with_sets(encoder, torch.from_numpy(wave[b]), [None, *sets])
            before = log_p(np.asarray(found[0]), b)
            for k in range(len(sets)):
                np.add.at(truth[k], labels[b], log_p(np.asarray(found[1 + k]), b) - before)
        truth /= count[:, 0, 0]
        print(agreement(estimates[replace_by][tuple(neurons.T)], truth, replace_by))
    each = (time.process_time() - start) / 2 / len(neurons)
    total = int(np.prod(artifacts.over_zero.shape[:2]))
    print(
        f"attribution: {seconds['attribution'] / seconds['forward']:.2f} x a bare forward pass; all {total:,} neurons one "
        f"by one would take {each * total / seconds['attribution']:,.0f} x as long (staged passes), "
        f"{seconds['forward'] * total / seconds['attribution']:,.0f} x (full passes)"
    )


if __name__ == "__main__":
    main()
