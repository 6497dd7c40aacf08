"""Attribution: an estimate of what silencing would do, for every neuron at once, from one backward pass per clip.

    attributed = attribute(encoder, task, artifacts)     # [layers, neurons, classes], nats

For a neuron and a class, the first-order effect of replacing the neuron's activations a by a value r is the sum over
tokens of (r - a) * d ln p_class / d a, averaged over clips of the class. One forward and one backward pass per clip give
all neurons (attribution patching: Nanda 2023; AtP*, Kramar et al. 2024, arXiv 2403.00745). ln p comes from the linear
classifier of the deactivation experiment, fitted on the intact embeddings of other folds, so that it has not seen the
clip.

It is an estimate. Where the effect saturates (the clip is classified with certainty whatever a neuron does), or where
first-order effects of several paths cancel, it can miss neurons that matter; `benchmarks/attribution.py` compares it
with silencing neurons one by one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from aape.artifacts.belonging import check_belong_together, check_embedded
from aape.artifacts.folder import Artifacts
from aape.causal.classifier import STRENGTHS, Classifier, Fold, cross_folds, fit
from aape.encoders.encoder import Encoder, choose_device, full_precision, hooked
from aape.resuming import code_version, missing, resumed
from aape.sounds.task import Task, in_batches, read_all

FOLDER = ".attribution"  # of the artifacts
BATCH = 16  # clips at once
BLOCK = 64  # clips per kept result
REPLACEMENTS = ("zero", "mean")

Sums = Mapping[str, np.ndarray]


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

    One pass serves both replacements. Its sums are kept under `.attribution/` in the artifacts' folder, so that an
    interrupted call resumes.

    Args:
        encoder: the one that made the artifacts; its `embed` must pass gradients back to the counted layers.
        task, artifacts: the clips, and their embeddings for the classifiers.
        replace_by: "zero", or "mean": the neuron's mean activation over all tokens of the clips used.
        split: which clips: one split or fold, or several. None: "train" if there is such a split, else all.
        batch_size: clips at once.
        device: as in `collect`; the model is moved there.
        seed: of the folds, where the splits are not folds themselves.
        progress: whether to show a bar.

    Returns:
        float64 [layers, neurons, classes], nats; below 0 where silencing lowers the class. Layers as in the artifacts.

    Raises:
        ValueError: artifacts of another model, task or audio, an encoder hooked before its activation functions, no
            gradient at a counted layer, a class with clips of a single group, or an unknown replacement.
        BadClip: a clip that cannot be read.
    """
    if replace_by not in REPLACEMENTS:
        raise ValueError(f"replace_by: expected 'zero' or 'mean', found {replace_by!r}")
    if encoder.preactivation:
        raise ValueError(
            f"{encoder.name} is hooked before its activation functions: replacing there is no silencing"
        )
    task_row = check_belong_together(encoder, task, artifacts)
    encoder.to(choose_device(device))
    clips = _clips(artifacts, split)
    blocks = _blocks(artifacts, clips)
    embeddings = artifacts.embeddings()

    def compute(names: Sequence[str]) -> Iterator[Sums]:
        classifiers = classifiers_for_clips(artifacts, embeddings, clips, seed)
        batches_of = {name: in_batches(np.array(blocks[name]), batch_size) for name in names}
        batches = [batch for name in names for batch in batches_of[name]]
        waves = read_all(task, [task_row[batch] for batch in batches], encoder.sample_rate)
        with full_precision(), weights_without_gradient(encoder):
            for name in names:
                passes = []
                for batch in batches_of[name]:
                    labels = artifacts.labels[batch]
                    result = one_pass(
                        encoder,
                        artifacts.layers,
                        next(waves),
                        labels,
                        [classifiers[i] for i in batch],
                    )
                    check_embedded(artifacts, batch, result.embeddings, embeddings[batch])
                    passes.append(result)
                yield _sums_by_class(passes, artifacts.labels[blocks[name]])

    key = _key(encoder, artifacts, batch_size, seed)
    results = resumed(artifacts.path / FOLDER, key, blocks, compute, code=_code())
    bar = tqdm(
        results,
        total=len(blocks),
        unit=f"{BLOCK} clips",
        desc=f"attribution, {encoder.name}",
        disable=None if progress else True,
    )
    return _effect(artifacts, clips, bar, replace_by)


def attributed(encoder: Encoder, artifacts: Artifacts) -> dict[str, np.ndarray] | None:
    """What `attribute` with its default clips left on disk, by replacement; None if it was not completed."""
    clips = _clips(artifacts, None)
    folder, blocks = artifacts.path / FOLDER, _blocks(artifacts, clips)
    key = _key(encoder, artifacts, BATCH, seed=0)
    if missing(folder, key, blocks, code=_code()):
        return None

    def nothing_to_compute(names: Sequence[str]) -> Iterator[Sums]:
        raise FileNotFoundError(f"{folder}: {names[0]} disappeared while it was read")

    kept = list(resumed(folder, key, blocks, nothing_to_compute, code=_code()))
    return {replace_by: _effect(artifacts, clips, kept, replace_by) for replace_by in REPLACEMENTS}


def _clips(artifacts: Artifacts, split: str | Sequence[str] | None) -> np.ndarray:
    """Indices of the clips, sorted by class, so that the sums of a block are those of few classes."""
    rows = artifacts.training_rows(split)
    return rows[np.argsort(artifacts.labels[rows], kind="stable")]


def _blocks(artifacts: Artifacts, clips: np.ndarray) -> dict[str, list[int]]:
    """Name -> clips of each block."""
    name = "-".join(sorted(set(artifacts.splits[clips])))
    blocks = in_batches(clips, BLOCK)
    return {f"{name}-{number:05}": block.tolist() for number, block in enumerate(blocks)}


def _key(encoder: Encoder, artifacts: Artifacts, batch_size: int, seed: int) -> list[Any]:
    return [encoder.identity, artifacts.manifest["checksums"], list(STRENGTHS), seed, batch_size]


def _code() -> str:
    return code_version("causal", "encoders", "sounds")


class Pass(NamedTuple):
    """One forward and backward pass of a batch: embeddings [clips, dim], and sums over the tokens of each clip.

    `product` (activation * gradient), `gradient` and `activation` are float64 [clips, layers, neurons], `tokens` is
    int64 [layers], the number of tokens of all clips.
    """

    embeddings: np.ndarray
    product: np.ndarray
    gradient: np.ndarray
    activation: np.ndarray
    tokens: np.ndarray


def one_pass(
    encoder: Encoder,
    layers: Sequence[str],
    wave: Tensor,
    labels: np.ndarray,
    classifiers: Sequence[Classifier],
) -> Pass:
    """Differentiate ln p of each clip's class by every activation.

    Args:
        encoder: the model; run inside `weights_without_gradient`.
        layers: names of the layers.
        wave: [clips, samples].
        labels: class of each clip.
        classifiers: the classifier of each clip.

    Raises:
        ValueError: no gradient comes from the embedding to a layer.
    """
    shape = len(wave), len(layers)
    product: dict[int, Tensor] = {}  # layer -> [clips, neurons], summed over tokens and calls
    gradient: dict[int, Tensor] = {}
    activation: dict[int, Tensor] = {}
    tokens = np.zeros(len(layers), dtype=np.int64)
    handles = []

    def see(layer: int, output: Tensor) -> Tensor:
        values = output if output.requires_grad else output.detach().requires_grad_()
        a = (
            values.detach().reshape(len(wave), -1, values.shape[-1]).float()
        )  # [clips, tokens, neurons]
        activation[layer] = activation.get(layer, 0) + a.sum(dim=1)
        tokens[layer] += a.shape[0] * a.shape[1]

        def arrived(slope: Tensor) -> None:
            g = slope.reshape(a.shape).float()
            product[layer] = product.get(layer, 0) + (g * a).sum(dim=1)
            gradient[layer] = gradient.get(layer, 0) + g.sum(dim=1)

        handles.append(values.register_hook(arrived))
        return values.clone()  # the model may continue in place

    with hooked(encoder, layers, see):
        embeddings = encoder.embed(wave.to(encoder.device))
    try:
        if not embeddings.requires_grad:
            raise ValueError(
                f"{encoder.name}: no gradient comes from embed to the counted layers; it must not switch gradients off "
                "(torch.no_grad, inference_mode, detach) behind them"
            )
        _log_p(embeddings, labels, classifiers).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    lost = sorted(set(range(len(layers))) - set(product))
    if lost:
        raise ValueError(
            f"{encoder.name}: no gradient reaches layer {layers[lost[0]]!r}; does the embedding need it?"
        )

    def stacked(by_layer: dict[int, Tensor]) -> np.ndarray:
        found = torch.stack([by_layer[layer] for layer in range(len(layers))], dim=1)
        return found.cpu().double().numpy().reshape(*shape, -1)

    arrays = stacked(product), stacked(gradient), stacked(activation)
    return Pass(embeddings.detach().float().cpu().numpy(), *arrays, tokens)


def _log_p(embeddings: Tensor, labels: np.ndarray, classifiers: Sequence[Classifier]) -> Tensor:
    """ln p of each clip's class by the clip's classifier, [clips]."""
    weights = torch.from_numpy(np.stack([classifier.weights for classifier in classifiers])).to(
        embeddings
    )
    bias = torch.from_numpy(np.stack([classifier.bias for classifier in classifiers])).to(
        embeddings
    )
    logits = torch.einsum("bd,bcd->bc", embeddings, weights) + bias
    return torch.log_softmax(logits.float(), dim=1)[range(len(labels)), labels]


def _sums_by_class(passes: Sequence[Pass], labels: np.ndarray) -> Sums:
    """Sums over the clips of a block, per class that is in it (`classes` [k])."""
    classes, class_of_clip = np.unique(labels, return_inverse=True)
    members = (class_of_clip == np.arange(len(classes))[:, None]).astype(np.float64)  # [k, clips]
    return {
        "classes": classes,
        "product": np.tensordot(members, np.concatenate([p.product for p in passes]), axes=1),
        "gradient": np.tensordot(members, np.concatenate([p.gradient for p in passes]), axes=1),
        "activation": np.sum([p.activation.sum(axis=0) for p in passes], axis=0),
        "tokens": np.sum([p.tokens for p in passes], axis=0),
    }


def _effect(artifacts: Artifacts, clips: np.ndarray, blocks: Any, replace_by: str) -> np.ndarray:
    """Mean over the clips of each class of the sum over tokens of (r - a) * gradient, [layers, neurons, classes]."""
    layers, neurons, classes = artifacts.over_zero.shape
    product, gradient = np.zeros((classes, layers, neurons)), np.zeros((classes, layers, neurons))
    activation, tokens = np.zeros((layers, neurons)), np.zeros(layers)
    for sums in blocks:
        product[sums["classes"]] += sums["product"]
        gradient[sums["classes"]] += sums["gradient"]
        activation += sums["activation"]
        tokens += sums["tokens"]
    replacement = activation / tokens[:, None] if replace_by == "mean" else 0.0
    number = np.bincount(artifacts.labels[clips], minlength=classes)[:, None, None]
    effect = (replacement * gradient - product) / np.maximum(number, 1)
    return np.moveaxis(np.where(number > 0, effect, np.nan), 0, -1)


def classifiers_for_clips(
    artifacts: Artifacts, embeddings: np.ndarray, clips: np.ndarray, seed: int
) -> dict[int, Classifier]:
    """Clip -> a classifier that was fitted on the other folds of these clips."""
    clips = np.sort(clips)
    fold_of_clip = cross_folds(artifacts, clips, seed)
    labels, number_of_folds = artifacts.labels, fold_of_clip.max() + 1
    found: dict[int, Classifier] = {}
    for number in range(number_of_folds):
        in_fold = fold_of_clip == number
        following = fold_of_clip == (number + 1) % number_of_folds
        others = clips[~in_fold]
        train, valid = clips[~in_fold & ~following], clips[following]
        if len(set(labels[train])) < len(
            set(labels[others])
        ):  # too few groups to choose the regularisation on others
            train, valid = others, others
        fold = Fold(str(number), train, valid, clips[in_fold], others)
        classifier = fit(embeddings, labels, artifacts.classes, fold)
        found |= dict.fromkeys(clips[in_fold].tolist(), classifier)
    return found


@contextlib.contextmanager
def weights_without_gradient(encoder: Encoder) -> Iterator[None]:
    """Gradients of activations only: the graph then begins at the first counted layer, after the front end."""
    trainable = [parameter for parameter in encoder.module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
