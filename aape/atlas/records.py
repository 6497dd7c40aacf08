"""The record of a neuron: every number that its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aape.atlas.choosing import Choice
from aape.atlas.maps import packed
from aape.atlas.model_on_task import ModelOnTask
from aape.atlas.profiles import chance_bands, crowd, histogram, nearest, time_profile
from aape.atlas.scripts import SCHEMA, base64_of, bytes_of, rounded
from aape.neurons.pvalues import share_of_groups

BARS = 64  # classes in a record's bars; of more classes, those with the largest p
POSITION_SHARE = (
    0.5  # of the variance within clips that all clips have in common: a neuron above it is flagged
)


class Records:
    """Makes the records of the neurons that have a page.

    Args:
        data: the model on the task.
        neurons: indices into L * N [k].
        counts: their active tokens [clips, k].
        attribution: replacement ("zero", "mean") -> effects [L, N, C]. It may be empty.
    """

    def __init__(
        self,
        data: ModelOnTask,
        neurons: np.ndarray,
        counts: np.ndarray,
        attribution: Mapping[str, np.ndarray],
    ) -> None:
        self.data = data
        self.neurons = neurons
        self.effects = {by: effect.reshape(data.p.shape) for by, effect in attribution.items()}
        self.eligible_rank, self.eligible = data.rank_among_eligible()
        self.padding = data.padding_rates(neurons)
        self.prefers_padding = data.prefers_padding(neurons)
        self.class_weight = np.full(data.p.shape[1], 1 / data.p.shape[1])
        if not data.has_counts:
            return
        tokens = np.bincount(data.labels, data.tokens, data.p.shape[1])
        self.class_weight = tokens / tokens.sum()
        self.group_names = np.unique(data.artifacts.groups).tolist()
        self.rates = counts / data.tokens[:, None].astype(np.float32)
        if len(neurons):
            self.low, self.high = chance_bands(data, counts)
            self.group_share = share_of_groups(self.rates, data.labels, data.groups)
            self.nearest = nearest(data, neurons)

    def make(
        self,
        choices: Sequence[Choice],
        clip_numbers: Mapping[int, int],
        maps: np.ndarray | None,
        filtered: Mapping[int, str],
    ) -> list[dict[str, Any]]:
        """One record per neuron.

        Args:
            choices: clips and their roles, per neuron.
            clip_numbers: clip -> its place in the list of clips that pages show.
            maps: of all chosen clips, one neuron after the other [all, frequency, time], or None.
            filtered: place of a map -> sound file of its clip, filtered by the map.
        """
        records = []
        first = 0
        for k, choice in enumerate(choices):
            record = self._from_probabilities(k)
            if self.data.has_counts:
                record |= self._from_clips(k, choice, clip_numbers)
            if self.effects:
                record["attribution"] = self._attribution(k)
            if maps is not None and choice:
                record |= self._from_maps(maps[first : first + len(choice)].astype(np.float32))
                if record["position"] > POSITION_SHARE:
                    record["flags"].append("position")
                if first in filtered:
                    record["filtered"] = filtered[first]
            first += len(choice)
            records.append(record)
        return records

    def _shown_classes(self, p: np.ndarray) -> np.ndarray:
        """Classes whose p is shown as bars."""
        if len(p) <= BARS:
            return np.arange(len(p))
        return np.sort(np.argsort(-p, kind="stable")[:BARS])

    def _from_probabilities(self, k: int) -> dict[str, Any]:
        """What the activation probabilities alone say."""
        neuron = int(self.neurons[k])
        p = self.data.p[neuron]
        classes = self._shown_classes(p)
        bars = {
            "c": None if len(classes) == len(p) else classes.tolist(),
            "p": bytes_of(p[classes]),
        }
        if self.data.has_counts:
            bars |= {"low": bytes_of(self.low[classes, k]), "high": bytes_of(self.high[classes, k])}
        layer, number = divmod(neuron, self.data.width)
        eligible_rank = int(self.eligible_rank[neuron])
        return {
            "v": SCHEMA,
            "l": layer,
            "n": number,
            "own": self.data.contrast_classes(neuron).tolist(),
            "aape": rounded(self.data.aape[neuron], 5),
            "eligible": [eligible_rank, self.eligible] if eligible_rank else None,
            "density": rounded(p @ self.class_weight, 3),
            "bars": bars,
            "clips": [],
            "flags": ["padding"] if self.prefers_padding[k] else [],
        }

    def _from_maps(self, maps: np.ndarray) -> dict[str, Any]:
        """Where the neuron is active in its clips [clips, frequency, time]."""
        top = float(maps.max())
        profile, share = time_profile(maps)
        return {
            "top": rounded(top),
            "maps": packed(maps, top),
            "profile": bytes_of(profile),
            "position": rounded(share, 2),
        }

    def _from_clips(
        self, k: int, choice: Choice, clip_numbers: Mapping[int, int]
    ) -> dict[str, Any]:
        """What the counts per clip say."""
        data = self.data
        rates = self.rates[:, k]
        inside = data.is_inside(data.contrast_classes(int(self.neurons[k])))
        share = rounded(self.group_share[k], 3)  # None where every clip is a group of its own
        groups = [] if share is None else crowd(rates, data.groups)
        found: dict[str, Any] = {}
        if self.padding is not None:
            on_padding, on_sound = (values[k] for values in self.padding)
            found["padding"] = [rounded(on_padding, 3), rounded(on_sound, 3)]
        return found | {
            "clips": [[clip_numbers[clip], role, rounded(rates[clip], 3)] for clip, role in choice],
            "histogram": histogram(rates, inside),
            "groups": share,
            "crowd": [[self.group_names[group], clips] for group, clips in groups],
            "near": [[*divmod(other, data.width), rounded(r, 3)] for other, r in self.nearest[k]],
        }

    def _attribution(self, k: int) -> dict[str, Any]:
        """First-order effects of silencing this neuron; NaN for a class without clips in training."""
        neuron = int(self.neurons[k])
        own = self.data.contrast_classes(neuron)
        classes = self._shown_classes(self.data.p[neuron])
        zero = self.effects["zero"][:, own]
        found: dict[str, Any] = {"rank": (1 + (zero < zero[neuron]).sum(axis=0)).tolist()}
        for replacement, effect in self.effects.items():
            found[replacement] = base64_of(effect[neuron, classes].astype(np.float32))
        return found
