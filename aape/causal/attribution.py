"""What would silencing do, for every neuron at once: attribution from one backward pass.

    attributed = attribute(encoder, task, artifacts)     # [layers, neurons, classes], nats

For a neuron and a class the first-order effect of putting a value r in place of its activations a is the sum over
tokens of (r - a) * d ln p_class / d a, here as the mean over clips of the class. All neurons come from one forward and
one backward pass per clip (attribution patching: Nanda 2023; AtP*, Kramar et al. 2024, arXiv 2403.00745). ln p is what
the linear classifier of the deactivation experiment says, fitted on the intact embeddings of other clips: never of the
clip's own fold, so that it has not learnt the clip by heart.

It is an estimate. Where the effect saturates (the clip is classified with certainty whatever a neuron does), or where
first-order effects of several paths cancel, it can miss neurons that matter; `benchmarks/attribution.py` holds it
against silencing neurons one by one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from aape.artifacts.belonging import check_belong_together, check_embedded
from aape.artifacts.folder import Artifacts
from aape.causal.classifier import STRENGTHS, Classifier, Fold, are_folds, fit
from aape.encoders.encoder import Encoder, choose_device, full_precision, hooked
from aape.files import Cache
from aape.sounds.task import Task, read_all

FOLDER = ".attribution"  # of the artifacts
MOST_FOLDS = 5
BATCH = 16  # clips at once
SAVE_SECONDS = 60  # between two writes of what is done


def attribute(
    encoder: Encoder,
    task: Task,
    artifacts: Artifacts,
    *,
    replace_by: Literal["zero", "mean"] = "zero",
    split: str | Sequence[str] | None = None,
    batch_size: int = BATCH,
    device: str | torch.device | None = None,
    seed: int = 0,
    progress: bool = True,
) -> np.ndarray:
    """First-order effect of replacing each neuron on ln p of each class, on clips of that class.

    One pass gives both replacements; its sums are kept under `.attribution/` of the artifacts' folder, also half-way.

    Args:
        encoder: the one that made the artifacts; its `embed` must let gradients through from the counted layers on.
        task, artifacts: the clips, and their embeddings for the classifiers.
        replace_by: "zero", or "mean": the neuron's mean activation over all tokens of the clips used.
        split: which clips: one split or fold, or several. None: "train" where there is such a split, else all.
        batch_size: clips at once.
        device: as in `collect`; the model is moved there.
        seed: of the folds where the splits are not folds themselves.
        progress: whether to show a bar.

    Returns:
        float64 [layers, neurons, classes], nats; below 0 where silencing lowers the class. Layers as in the artifacts.

    Raises:
        ValueError: artifacts of another model, task or audio, an encoder hooked before its activation functions, gradients
            that do not come through, a class with clips of a single group, or an unknown replacement.
        BadClip: a clip that cannot be read.
    """
    if replace_by not in ("zero", "mean"):
        raise ValueError(f"replace_by: expected 'zero' or 'mean', found {replace_by!r}")
    if encoder.preactivation:
        raise ValueError(f"{encoder.name} is hooked before its activation functions: replacing there is no silencing")
    position = check_belong_together(encoder, task, artifacts)
    encoder.to(choose_device(device))
    rows, cache, name, key = _kept(encoder, artifacts, split, batch_size, seed)
    sums = cache.get(name, key) or _zeros(artifacts)
    batches = np.split(rows, range(batch_size, len(rows), batch_size))
    todo = batches[int(sums["done"]) :]
    if not todo:
        return _effect(sums, artifacts.labels[rows], replace_by)
    known = artifacts.embeddings()
    judges, judge_of = _judges(artifacts, known, rows, seed)
    waves = read_all(task, [position[batch] for batch in todo], encoder.sample_rate)
    shown = {"unit": "batch", "desc": f"attribution, {encoder.name}", "disable": None if progress else True}
    saved = time.monotonic()
    with full_precision(), _frozen(encoder):
        for batch, wave in tqdm(zip(todo, waves, strict=True), total=len(todo), **shown):
            mine = [judges[j] for j in judge_of[batch]]
            embedded = _add(sums, encoder, artifacts.layers, wave, artifacts.labels[batch], mine)
            check_embedded(artifacts, batch, embedded, known[batch])
            sums["done"] += 1
            if time.monotonic() - saved > SAVE_SECONDS or sums["done"] == len(batches):
                cache.put(name, key, sums)
                saved = time.monotonic()
    return _effect(sums, artifacts.labels[rows], replace_by)


def attributed(encoder: Encoder, artifacts: Artifacts) -> dict[str, np.ndarray] | None:
    """What `attribute` with its default clips left on disk, by replacement; None where it was not run to its end."""
    rows, cache, name, key = _kept(encoder, artifacts, None, BATCH, 0)
    sums = cache.get(name, key)
    if sums is None or sums["done"] < -(-len(rows) // BATCH):
        return None
    return {replace_by: _effect(sums, artifacts.labels[rows], replace_by) for replace_by in ("zero", "mean")}


def _kept(
    encoder: Encoder, artifacts: Artifacts, split: str | Sequence[str] | None, batch_size: int, seed: int
) -> tuple[np.ndarray, Cache, str, list[Any]]:
    """The clips, and where their sums are kept: cache, name and key."""
    if split is None and "train" in artifacts.splits:
        split = "train"
    rows = artifacts.rows(split)
    name = "all" if split is None else "-".join([split] if isinstance(split, str) else split)
    key = [encoder.identity, artifacts.manifest["checksums"], rows.tolist(), list(STRENGTHS), seed, batch_size]
    return rows, Cache(artifacts.path / FOLDER), name, key


def _effect(sums: dict[str, np.ndarray], labels: np.ndarray, replace_by: str) -> np.ndarray:
    """[layers, neurons, classes] of the sums over clips with these labels."""
    clips = np.bincount(labels, minlength=len(sums["product"]))[:, None, None]
    mean = sums["activation"] / sums["tokens"][:, None] if replace_by == "mean" else 0.0
    effect = (mean * sums["gradient"] - sums["product"]) / np.maximum(clips, 1)  # [classes, layers, neurons]
    return np.moveaxis(np.where(clips > 0, effect, np.nan), 0, -1)


def _zeros(artifacts: Artifacts) -> dict[str, np.ndarray]:
    layers, neurons, classes = artifacts.over_zero.shape
    return {
        "done": np.zeros((), dtype=np.int64),  # batches
        "product": np.zeros((classes, layers, neurons)),  # sum over clips and tokens of activation * gradient
        "gradient": np.zeros((classes, layers, neurons)),
        "activation": np.zeros((layers, neurons)),
        "tokens": np.zeros(layers),
    }


def cross_folds(artifacts: Artifacts, rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """Fold of each of these clips, int64 [clips]: the artifacts' own folds, else whole groups dealt class by class.

    Raises:
        ValueError: a class with clips of one fold only, so that no classifier can judge them without knowing them.
    """
    splits, labels, groups = artifacts.splits[rows], artifacts.labels[rows], artifacts.groups[rows]
    if are_folds(names := sorted(set(splits))):
        fold = np.searchsorted(names, splits)
    else:
        _, of_clip = np.unique(groups, return_inverse=True)
        known = pd.Series(labels).groupby(of_clip).agg(["min", "max"])
        key = known["min"].where(known["min"] == known["max"], -1)  # the class of a group, -1: several
        order = np.lexsort((np.random.default_rng(seed).random(len(key)), key))
        fold_of_group = np.empty(len(key), dtype=np.int64)
        fold_of_group[order] = np.arange(len(key)) % min(MOST_FOLDS, len(key))
        fold = fold_of_group[of_clip]
    for c, name in enumerate(artifacts.classes):
        if len(found := set(fold[labels == c])) < 2:
            raise ValueError(
                f"{artifacts.path}: all clips of {name!r} are in {len(found)} fold or group; a classifier that has not heard "
                "them does not know the class. Take it out, or give another seed or split."
            )
    return fold


def _judges(
    artifacts: Artifacts, embeddings: np.ndarray, rows: np.ndarray, seed: int
) -> tuple[list[Classifier], np.ndarray]:
    """A classifier for each fold of these clips, fitted without it; and for each clip of the artifacts which is its."""
    fold, labels = cross_folds(artifacts, rows, seed), artifacts.labels
    judges = []
    for number in range(fold.max() + 1):
        others, valid = rows[fold != number], rows[fold == (number + 1) % (fold.max() + 1)]
        train = np.setdiff1d(others, valid)
        if len(set(labels[train])) < len(set(labels[others])):  # too few groups to choose the regularisation on others
            train = valid = others
        part = Fold(str(number), train, valid, rows[fold == number], others)
        judges.append(fit(embeddings, labels, artifacts.classes, part))
    judge_of = np.zeros(len(labels), dtype=np.int64)
    judge_of[rows] = fold
    return judges, judge_of


@contextlib.contextmanager
def _frozen(encoder: Encoder) -> Iterator[None]:
    """Weights need no gradient: the graph then begins at the first counted layer, behind the front end."""
    wanted = [p.requires_grad_(False) for p in encoder.module.parameters() if p.requires_grad]
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def _add(
    sums: dict[str, np.ndarray],
    encoder: Encoder,
    layers: Sequence[str],
    wave: Tensor,
    labels: np.ndarray,
    judges: Sequence[Classifier],
) -> np.ndarray:
    """One forward and one backward pass of a batch; products and gradients are added to the sums. Gives its embeddings."""
    found: dict[str, dict[int, Tensor]] = {"product": {}, "gradient": {}}  # by layer [batch, neurons], over its calls
    handles = []

    def see(place: int, output: Tensor) -> Tensor:
        values = output if output.requires_grad else output.detach().requires_grad_()
        seen = values.detach().reshape(len(wave), -1, values.shape[-1]).float()

        def arrived(gradient: Tensor) -> None:
            pulled = gradient.reshape(seen.shape).float()
            for what, tokens in (("product", pulled * seen), ("gradient", pulled)):
                found[what][place] = found[what].get(place, 0) + tokens.sum(dim=1)

        handles.append(values.register_hook(arrived))
        sums["activation"][place] += seen.sum(dim=(0, 1)).double().cpu().numpy()
        sums["tokens"][place] += seen.shape[0] * seen.shape[1]
        return values.clone()  # a model may go on in place

    with hooked(encoder, layers, see):
        embeddings = encoder.embed(wave.to(encoder.device))
    try:
        if not embeddings.requires_grad:
            raise ValueError(
                f"{encoder.name}: no gradient comes from embed to the counted layers; it must not switch gradients off "
                "(torch.no_grad, inference_mode, detach) behind them"
            )
        weights, bias = (torch.from_numpy(np.stack([getattr(j, what) for j in judges])) for what in ("weights", "bias"))
        logits = torch.einsum("bd,bcd->bc", embeddings, weights.to(embeddings)) + bias.to(embeddings)
        torch.log_softmax(logits.float(), dim=1)[range(len(labels)), labels].sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    if lost := sorted(set(range(len(layers))) - set(found["product"])):
        raise ValueError(f"{encoder.name}: no gradient reaches layer {layers[lost[0]]!r}; does the embedding need it?")
    for what, of_layer in found.items():
        by_clip = torch.stack([of_layer[place] for place in range(len(layers))], dim=1).double().cpu().numpy()
        np.add.at(sums[what], labels, by_clip)
    return embeddings.detach().float().cpu().numpy()
