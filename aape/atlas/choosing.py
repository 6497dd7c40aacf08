"""Which neurons get a page, and which clips a page shows."""

from __future__ import annotations

from typing import Any

import numpy as np

from aape.atlas.model_on_task import ModelOnTask
from aape.atlas.scripts import rounded

# Roles of clips on a page; 1 to 4 are examples of the four quarters of all clips, from the most active one downwards.
MOST_ACTIVE, ELSEWHERE, INSIDE, RANDOM = 0, 5, 6, 7
EXTREMES = (MOST_ACTIVE, ELSEWHERE, INSIDE)
CANDIDATES = 20  # for the best neuron
POOL = 48  # clips among which examples of all neurons are drawn, so that few clips need a sound

Choice = list[tuple[int, int]]  # (clip, role) of every clip that a page shows


def neurons_with_pages(data: ModelOnTask, requested: Any, strongest: int) -> np.ndarray:
    """Neurons that get a page, int64 [k, 2] by layer and neuron: the strongest of each class and those requested.

    The best neuron (`best_neuron`) is among them if there are pages of the strongest ones.
    """
    top = data.table.groupby("c").head(strongest)
    top_neurons = top[["layer", "neuron"]].to_numpy(dtype=np.int64)
    requested = checked_neurons(data, [] if requested is None else requested)
    best = best_neuron(data) if strongest else None
    best_pages = np.array([best[:2]] if best else [], dtype=np.int64).reshape(-1, 2)
    return np.unique(np.concatenate([top_neurons, best_pages, requested]), axis=0)


def checked_neurons(data: ModelOnTask, neurons: Any) -> np.ndarray:
    """Requested neurons, int64 [k, 2].

    Raises:
        ValueError: the model has no such neuron.
    """
    requested = np.asarray(neurons, dtype=np.int64).reshape(-1, 2)
    layers, width = data.selection.members.shape[:2]
    is_wrong = ((requested < 0) | (requested >= (layers, width))).any(axis=1)
    if is_wrong.any():
        first = tuple(requested[is_wrong][0].tolist())
        raise ValueError(
            f"neurons: {first} is not among the {layers} layers of {width} neurons of {data.artifacts.path}, "
            "both counted from 0"
        )
    return requested


def best_neuron(data: ModelOnTask, among: set[tuple[int, int]] | None = None) -> list[Any] | None:
    """A neuron that is worth looking at first: the one that detects its class best on held-out clips (AUPRC).

    Where calibration is known, only neurons that pass it are considered. Without AUPRC, the neuron with the largest
    difference of p inside and outside its class is taken. Neurons that prefer zero padding to sound are passed over.

    Args:
        data: the model on the task.
        among: (layer, neuron) to choose from; None: all.

    Returns:
        [layer, neuron, class, AUPRC or None]; None if there is no such neuron.
    """
    table = data.table
    if table.calibrated.notna().any():
        table = table[table.calibrated == 1]
    if among is not None:
        pairs = zip(table.layer, table.neuron, strict=True)
        table = table[[pair in among for pair in pairs]]
    if table.empty:
        return None
    table = table.sort_values("auprc", ascending=False, kind="stable", na_position="last").head(
        CANDIDATES
    )
    neurons = (table.layer * data.width + table.neuron).to_numpy()
    listens = ~data.prefers_padding(neurons)
    first = table[listens].iloc[0] if listens.any() else table.iloc[0]
    return [int(first.layer), int(first.neuron), int(first.c), rounded(first.auprc, 3)]


def choose_all(
    data: ModelOnTask, neurons: np.ndarray, counts: np.ndarray, clips: int
) -> list[Choice]:
    """The clips that each neuron's page shows.

    Clips that one page shows are preferred by the next one among equally active clips, so that few need a sound.

    Args:
        data: the model on the task.
        neurons: indices into L * N [k].
        counts: their active tokens [clips, k].
        clips: how many clips a page shows.
    """
    total = len(counts)
    pool = np.zeros(total, dtype=bool)
    pool[np.random.default_rng(0).permutation(total)[:POOL]] = True
    shown = pool.copy()
    choices = []
    for neuron, active in zip(neurons.tolist(), counts.T, strict=True):
        inside = data.is_inside(data.contrast_classes(neuron))
        rng = np.random.default_rng(neuron)
        choice = choose_clips(active / data.tokens, inside, data.groups, pool, shown, clips, rng)
        shown[[clip for clip, _ in choice]] = True
        choices.append(choice)
    return choices


def choose_clips(
    rates: np.ndarray,
    inside: np.ndarray,
    groups: np.ndarray,
    pool: np.ndarray,
    shown: np.ndarray,
    clips: int,
    rng: np.random.Generator,
) -> Choice:
    """Clips that one page shows: the most active ones, examples from each quarter of all clips, contrasts, random ones.

    No clip is chosen twice. A role has at most one clip per group where there are enough groups.

    Args:
        rates: share of active tokens [clips].
        inside: whether a clip is of the neuron's classes, bool [clips].
        groups: int [clips].
        pool: clips that examples and random ones are preferably drawn from, bool [clips].
        shown: clips that are preferred among equally active ones, bool [clips].
        clips: how many in all. 20 are 6 most active, 8 from the quarters, 4 contrasts and 2 random.
        rng: draws examples and random clips.
    """
    most_active = round(0.3 * clips)
    per_quarter = round(0.1 * clips)
    per_contrast = round(0.1 * clips)
    random_clips = clips - most_active - 4 * per_quarter - 2 * per_contrast
    falling = np.lexsort((~shown, -rates))
    rising = np.lexsort((~shown, rates))
    quarter = np.empty(len(rates), dtype=np.int64)
    quarter[falling] = np.arange(len(rates)) * 4 // len(rates)  # 0: the most active quarter
    drawn = rng.permutation(len(rates))
    drawn = np.concatenate([drawn[pool[drawn]], drawn[~pool[drawn]]])

    wishes = [
        (MOST_ACTIVE, falling[rates[falling] > 0], most_active),
        (ELSEWHERE, falling[~inside[falling]], per_contrast),
        (INSIDE, rising[inside[rising]], per_contrast),
    ]
    for i in range(4):
        wishes.append((1 + i, drawn[quarter[drawn] == i], per_quarter))
    wishes.append((RANDOM, drawn, random_clips))

    choice: Choice = []
    is_taken = np.zeros(len(rates), dtype=bool)
    group_is_taken = np.zeros(groups.max() + 1, dtype=bool)
    for role, candidates, wanted in wishes:
        candidates = candidates[~is_taken[candidates]]
        if role not in EXTREMES:  # examples come from groups that the page has not shown yet
            candidates = candidates[np.argsort(group_is_taken[groups[candidates]], kind="stable")]
        picked = _one_per_group_first(candidates, groups)[:wanted]
        if role != RANDOM:
            order = rates[picked] if role == INSIDE else -rates[picked]
            picked = picked[np.argsort(order, kind="stable")]
        is_taken[picked] = True
        group_is_taken[groups[picked]] = True
        choice += [(clip, role) for clip in picked.tolist()]
    return choice


def _one_per_group_first(candidates: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The candidates with the first one of each group in front, otherwise in their order."""
    is_first = np.zeros(len(candidates), dtype=bool)
    is_first[np.unique(groups[candidates], return_index=True)[1]] = True
    return np.concatenate([candidates[is_first], candidates[~is_first]])
