"""What a neuron's page says: numbers from the counts per clip, and the choice of the clips that are shown."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from aape.artifacts.folder import Artifacts
from aape.atlas.maps import packed
from aape.atlas.study_tables import rounded, with_q
from aape.neurons.permuting import Counted, UnitSums, exchangeable_units, permuted_labels
from aape.neurons.pvalues import share_of_groups
from aape.neurons.selection import Selection

SCHEMA = 2  # of everything that the page reads; the page opens what is not newer than itself. 2: scores, attribution, groups' share as correlation
BARS = 64  # classes in a record's bars; of more, the most active ones
BINS = 16  # of the histogram of active tokens
NEAREST = 6
BAND = (0.025, 0.975)  # of p under permuted labels
POOL = 48  # clips among which examples of all neurons are drawn, so that few need a sound
CROWD = 20  # most active clips whose groups are counted
MOST_CLIPS = 20_000  # clips looked at; of more, a seeded subset
PROFILE = 4_096  # clips in the profiles that nearest neurons are found by
ROLES = ("most active", "1st quarter", "2nd quarter", "3rd quarter", "4th quarter",
         "most active elsewhere", "least active inside", "random")  # fmt: skip


def b64(array: np.ndarray) -> str:
    """The bytes of an array, little-endian, in base64."""
    return base64.b64encode(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def bytes_of(shares: np.ndarray) -> str:
    """Shares 0..1 as one byte each, in base64."""
    return b64(np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8))


@dataclass(frozen=True, eq=False)
class Heard:
    """One model on one task: L layers, N neurons, C classes, and the clips whose counts are there.

    Attributes:
        artifacts: of the pair.
        selection: made from them.
        table: class-specific (neuron, class) pairs, the calibrated ones first, then strongest first: the selection's
            columns, c (index of the class), q and calibrated (NaN where the analysis has not been run).
        rows: int64 [clips], index into the artifacts' clips; none without counts per clip.
    """

    artifacts: Artifacts
    selection: Selection
    table: pd.DataFrame
    rows: np.ndarray

    @classmethod
    def of(cls, artifacts: Artifacts, selection: Selection) -> Heard:
        """Everything that pages are made from."""
        rows = np.zeros(0, dtype=np.int64)
        if artifacts.has_counts:
            rows = artifacts.kept
            if len(rows) > MOST_CLIPS:
                rows = np.sort(np.random.default_rng(0).permutation(rows)[:MOST_CLIPS])
        table = with_q(selection.table(), artifacts)
        table["c"] = table["class"].map({name: i for i, name in enumerate(selection.classes)}).astype(int)
        table = table.iloc[np.argsort(table.calibrated.fillna(0) != 1, kind="stable")].reset_index(drop=True)
        return cls(artifacts, selection, table, rows)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 [clips]."""
        return self.artifacts.labels[self.rows]

    @cached_property
    def groups(self) -> np.ndarray:
        """int64 [clips], index into the sorted names of the groups."""
        return np.unique(self.artifacts.groups, return_inverse=True)[1][self.rows]

    @cached_property
    def tokens(self) -> np.ndarray:
        """int64 [clips]."""
        return self.artifacts.tokens[self.rows]

    @cached_property
    def p(self) -> np.ndarray:
        """float64 [L * N, C]."""
        return self.selection.probabilities.reshape(-1, len(self.selection.classes))

    @cached_property
    def aape(self) -> np.ndarray:
        """In nats [L * N], inf where never active."""
        return self.selection.entropy.reshape(-1)

    @property
    def width(self) -> int:
        """Neurons of a layer."""
        return self.selection.members.shape[1]

    def own(self, flat: int) -> np.ndarray:
        """Classes that a neuron is set against the rest for, int64: those it is specific to, as long as some are left
        out, else the one of largest p."""
        members = np.flatnonzero(self.selection.members.reshape(self.p.shape)[flat])
        return members if 0 < len(members) < self.p.shape[1] else self.p[flat].argmax(keepdims=True)

    def inside(self, own: np.ndarray) -> np.ndarray:
        """Whether each clip is of one of some classes, bool [clips]."""
        return np.bincount(own, minlength=self.p.shape[1])[self.labels] > 0

    def counts(self, flat: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Active tokens [rows, k] of neurons, indices into L * N, in some of the artifacts' clips; read in blocks."""
        if not len(rows):
            return np.zeros((0, len(flat)), np.uint8)
        stored, at = self.artifacts.counts, np.searchsorted(self.artifacts.kept, rows)
        found = np.empty((len(rows), len(flat)), stored.dtype)
        for start in range(0, len(rows), 256):
            found[start : start + 256] = stored[at[start : start + 256]].reshape(-1, len(self.p))[:, flat]
        return found


def checked(heard: Heard, neurons: Any) -> np.ndarray:
    """Neurons that were asked for, int64 [k, 2].

    Raises:
        ValueError: one that the model does not have.
    """
    asked = np.asarray(neurons, dtype=np.int64).reshape(-1, 2)
    layers, width = heard.selection.members.shape[:2]
    wrong = asked[((asked < 0) | (asked >= (layers, width))).any(axis=1)]
    if len(wrong):
        raise ValueError(
            f"neurons: {tuple(wrong[0].tolist())} is not among the {layers} layers of {width} neurons of "
            f"{heard.artifacts.path}, both counted from 0"
        )
    return asked


def with_pages(heard: Heard, asked: Any, strongest: int) -> np.ndarray:
    """Neurons that get a page, int64 [k, 2] by layer and neuron: the strongest of each class, and those asked for."""
    top = heard.table.groupby("c").head(strongest)[["layer", "neuron"]].to_numpy(dtype=np.int64)
    return np.unique(np.concatenate([top, checked(heard, [] if asked is None else asked)]), axis=0)


def choose_clips(
    rates: np.ndarray,
    inside: np.ndarray,
    groups: np.ndarray,
    pool: np.ndarray,
    shown: np.ndarray,
    clips: int,
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """Clips that a page shows, as (clip, index into ROLES): the most active, examples from each quarter of all clips,
    contrasts, and random ones. No clip twice, and of a group no second clip in a role where there are enough groups.

    Args:
        rates: share of active tokens [clips]. inside: bool [clips], of the neuron's classes. groups: int [clips].
        pool: bool [clips], clips that examples and random ones are drawn from where it has some.
        shown: bool [clips], preferred among equally active ones, so that fewer clips need a sound and a pass.
        clips: how many in all; 20 are 6 most active, 8 from the quarters, 4 contrasts and 2 random.
    """
    top, each, contrast = round(0.3 * clips), round(0.1 * clips), round(0.1 * clips)
    falling, rising = np.lexsort((~shown, -rates)), np.lexsort((~shown, rates))
    quarter = np.empty(len(rates), dtype=np.int64)
    quarter[falling] = np.arange(len(rates)) * 4 // len(rates)  # 0: the most active quarter
    drawn = rng.permutation(len(rates))
    drawn = np.concatenate([drawn[pool[drawn]], drawn[~pool[drawn]]])
    wishes = [(0, falling[rates[falling] > 0], top)]
    wishes += [(5, falling[~inside[falling]], contrast), (6, rising[inside[rising]], contrast)]
    wishes += [(1 + i, drawn[quarter[drawn] == i], each) for i in range(4)]
    wishes += [(7, drawn, clips - top - 4 * each - 2 * contrast)]
    chosen: list[tuple[int, int]] = []
    taken, heard = np.zeros(len(rates), dtype=bool), np.zeros(groups.max() + 1, dtype=bool)  # clips, groups
    for role, candidates, count in wishes:
        candidates = candidates[~taken[candidates]]
        if role not in (0, 5, 6):  # examples: groups first that the page has not shown
            candidates = candidates[np.argsort(heard[groups[candidates]], kind="stable")]
        first = np.zeros(len(candidates), dtype=bool)  # the first of each group
        first[np.unique(groups[candidates], return_index=True)[1]] = True
        picked = np.concatenate([candidates[first], candidates[~first]])[:count]
        if role != 7:
            picked = picked[np.argsort(rates[picked] if role == 6 else -rates[picked], kind="stable")]
        taken[picked] = heard[groups[picked]] = True
        chosen += [(int(clip), role) for clip in picked]
    return chosen


def chance_bands(heard: Heard, counts: np.ndarray, seed: int = 0) -> np.ndarray:
    """p of neurons by class under permuted labels, its 2.5 and 97.5 % points [2, classes, k].

    counts: active tokens [clips, k]. Labels are permuted by group, as in `aape.neurons.permuting`.
    """
    classes, k = heard.p.shape[1], counts.shape[1]
    units = exchangeable_units(heard.labels, heard.groups, classes)
    sums = UnitSums(Counted(counts[:, None], heard.labels, heard.tokens, heard.groups), units)
    permutations = int(np.clip(2**26 // (classes * max(k, 1)), 40, 200))
    drawn = np.empty((permutations, classes, k), dtype=np.float32)
    done = 0
    for batch, active in sums.by_class(permuted_labels(units, permutations, seed)):
        tokens = np.stack([sums.class_tokens(labels) for labels in batch])[:, :, None]
        drawn[done : done + len(batch)] = active / np.maximum(tokens, 1)
        done += len(batch)
    return np.quantile(drawn, BAND, axis=0)


def nearest(heard: Heard, flat: np.ndarray, seed: int = 0) -> list[list[tuple[int, float]]]:
    """For each neuron the others whose shares of active tokens vary most alike over the clips: (neuron, Pearson r)."""
    rows = heard.rows
    if len(rows) > PROFILE:
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:PROFILE])
    tokens = heard.artifacts.tokens[rows][:, None].astype(np.float32)

    def standardised(columns: np.ndarray) -> np.ndarray:
        rates = heard.counts(columns, rows) / tokens
        rates -= rates.mean(axis=0)
        spread = np.sqrt((rates**2).sum(axis=0))
        return np.divide(rates, spread, out=np.zeros_like(rates), where=spread > 1e-6)

    mine, found = standardised(flat), []
    for start in range(0, len(heard.aape), 4096):
        others = np.arange(start, min(start + 4096, len(heard.aape)))
        r = mine.T @ standardised(others)  # [k, others]
        r[np.equal.outer(flat, others)] = -2
        top = np.argpartition(-r, min(NEAREST, r.shape[1]) - 1, axis=1)[:, :NEAREST]
        found.append((others[top], np.take_along_axis(r, top, axis=1)))
    near, r = (np.concatenate(blocks, axis=1) for blocks in zip(*found, strict=True))
    order = np.argsort(-r, axis=1)[:, :NEAREST]
    near, r = np.take_along_axis(near, order, axis=1), np.take_along_axis(r, order, axis=1)
    return [
        [(n, x) for n, x in zip(*pair, strict=True) if x > 0] for pair in zip(near.tolist(), r.tolist(), strict=True)
    ]


def histogram(rates: np.ndarray, inside: np.ndarray) -> list[list[int]]:
    """Clips by share of active tokens in BINS equal bins: of the neuron's classes, and of the rest."""
    bins = np.minimum((rates * BINS).astype(int), BINS - 1)
    return [np.bincount(bins[side], minlength=BINS).tolist() for side in (inside, ~inside)]


def crowd(rates: np.ndarray, groups: np.ndarray) -> list[list[int]]:
    """Groups with several of the CROWD most active clips: at most three [group, clips], the largest first."""
    most = np.argsort(-rates, kind="stable")[:CROWD]
    found, count = np.unique(groups[most[rates[most] > 0]], return_counts=True)
    order = np.argsort(-count, kind="stable")[:3]
    return [[int(found[i]), int(count[i])] for i in order if count[i] > 1]


def records(
    heard: Heard,
    flat: np.ndarray,
    counts: np.ndarray,
    choices: Sequence[Sequence[tuple[int, int]]],
    maps: np.ndarray | None,
    attribution: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """What is written of every neuron that has a page.

    Args:
        flat: the neurons [k], indices into L * N. counts: their active tokens [clips, k].
        choices: of each its clips and their roles, as `choose_clips` gives them.
        maps: of all neurons' clips one after the other [all, frequency, time], or None.
        attribution: replacement -> [L, N, C]; may be empty.
    """
    artifacts, classes = heard.artifacts, heard.p.shape[1]
    number = {clip: i for i, clip in enumerate(sorted({clip for chosen in choices for clip, _ in chosen}))}
    rank = np.argsort(np.argsort(heard.aape, kind="stable"), kind="stable") + 1
    weight = np.full(classes, 1 / classes)
    if artifacts.manifest:
        weight = np.bincount(artifacts.labels, artifacts.tokens, classes) / artifacts.tokens.sum()
    effects = {by: values.reshape(heard.p.shape) for by, values in attribution.items()}
    counted = len(heard.rows) > 0 and len(flat) > 0
    if counted:
        low, high = chance_bands(heard, counts)
        rates = counts / heard.tokens[:, None].astype(np.float32)
        spread, near = share_of_groups(rates, heard.labels, heard.groups), nearest(heard, flat)
        names = np.unique(artifacts.groups).tolist()
    found, done = [], 0
    for k, neuron in enumerate(flat.tolist()):
        p, own = heard.p[neuron], heard.own(neuron)
        bars = np.arange(classes) if classes <= BARS else np.sort(np.argsort(-p, kind="stable")[:BARS])
        record: dict[str, Any] = {
            "v": SCHEMA, "l": neuron // heard.width, "n": neuron % heard.width, "own": own.tolist(),
            "aape": rounded(heard.aape[neuron], 5), "rank": int(rank[neuron]), "density": rounded(p @ weight, 3),
            "bars": {"c": None if classes <= BARS else bars.tolist(), "p": bytes_of(p[bars])}, "clips": [],
        }  # fmt: skip
        if counted:
            mine = rates[:, k]
            record["clips"] = [[number[clip], role, rounded(mine[clip], 3)] for clip, role in choices[k]]
            record["bars"] |= {"low": bytes_of(low[bars, k]), "high": bytes_of(high[bars, k])}
            record["histogram"] = histogram(mine, heard.inside(own))
            record["groups"] = rounded(spread[k], 3)  # None where every clip is a group of its own
            many = [] if record["groups"] is None else crowd(mine, heard.groups)
            record["crowd"] = [[names[group], clips] for group, clips in many]
            record["near"] = [[*divmod(other, heard.width), rounded(r, 3)] for other, r in near[k]]
        if effects:  # a class without clips in training has none, NaN
            record["attribution"] = {by: b64(e[neuron, bars].astype(np.float32)) for by, e in effects.items()}
            lower = effects["zero"][:, own] < effects["zero"][neuron, own]
            record["attribution"]["rank"] = (1 + lower.sum(axis=0)).tolist()
        if maps is not None:
            of_clips = maps[done : done + len(choices[k])].astype(np.float32)
            done += len(of_clips)
            record["top"] = rounded(of_clips.max(initial=0.0))
            record["maps"] = packed(of_clips, float(of_clips.max(initial=0.0)))
        found.append(record)
    return found
