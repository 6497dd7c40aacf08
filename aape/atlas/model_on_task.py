"""What is known of one model on one task, in the form that pages are made from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from aape.artifacts.folder import Artifacts
from aape.atlas.study_tables import with_q
from aape.neurons.selection import Selection

ROWS_READ = 256  # clips whose counts are read at a time
PADDING_MARGIN = (
    0.1  # share of tokens by which a doubtful neuron is more active on padding than on sound
)


@dataclass(frozen=True, eq=False)
class ModelOnTask:
    """One model on one task: L layers of N neurons, C classes, and the counts of active tokens per clip.

    A neuron is written as one index into L * N.

    Attributes:
        artifacts: what the collecting pass left.
        selection: made from the artifacts.
        table: class-specific (neuron, class) pairs, the calibrated ones first, then the strongest first. Columns: those
            of `Selection.table`, those of `with_q`, and `c`, the index of the class.
    """

    artifacts: Artifacts
    selection: Selection
    table: pd.DataFrame

    @classmethod
    def load(cls, artifacts: Artifacts, selection: Selection) -> ModelOnTask:
        """Join the selection with the tables of the analysis.

        Raises:
            ValueError: the selection was made from other artifacts.
        """
        shape = tuple(artifacts.over_zero.shape)
        if selection.classes != artifacts.classes or selection.members.shape != shape:
            raise ValueError(
                f"the selection was not made from {artifacts.path}; make it with select() from these artifacts"
            )
        table = with_q(selection.table(), artifacts)
        index = {name: i for i, name in enumerate(selection.classes)}
        table["c"] = table["class"].map(index).astype(int)
        is_calibrated = table.calibrated.fillna(0) == 1
        order = np.argsort(~is_calibrated, kind="stable")
        return cls(artifacts, selection, table.iloc[order].reset_index(drop=True))

    @property
    def has_counts(self) -> bool:
        """Whether the counts per clip are known; if not, no clip can be shown."""
        return self.artifacts.has_counts

    @cached_property
    def labels(self) -> np.ndarray:
        """Class of each clip, int64 [clips]."""
        return self.artifacts.labels

    @cached_property
    def groups(self) -> np.ndarray:
        """Group of each clip, int64 [clips], as index into the sorted names of the groups."""
        return np.unique(self.artifacts.groups, return_inverse=True)[1]

    @cached_property
    def tokens(self) -> np.ndarray:
        """Tokens per clip, int64 [clips]."""
        return self.artifacts.tokens

    @cached_property
    def p(self) -> np.ndarray:
        """Activation probabilities, float64 [L * N, C]."""
        return self.selection.probabilities.reshape(-1, len(self.selection.classes))

    @cached_property
    def aape(self) -> np.ndarray:
        """AAPE in nats [L * N], inf for a neuron that is never active."""
        return self.selection.entropy.reshape(-1)

    @property
    def width(self) -> int:
        """Neurons per layer."""
        return self.selection.members.shape[1]

    def contrast_classes(self, neuron: int) -> np.ndarray:
        """Classes whose clips are compared with all other clips, int64.

        They are the classes that the neuron is specific to. A neuron that is specific to no class or to every class is
        compared by the class with the largest p.
        """
        members = np.flatnonzero(self.selection.members.reshape(self.p.shape)[neuron])
        if 0 < len(members) < self.p.shape[1]:
            return members
        return self.p[neuron].argmax(keepdims=True)

    def is_inside(self, classes: np.ndarray) -> np.ndarray:
        """Whether each clip belongs to one of these classes, bool [clips]."""
        return np.isin(self.labels, classes)

    def counts(self, neurons: np.ndarray, clips: np.ndarray | None = None) -> np.ndarray:
        """Active tokens of some neurons in some clips (default: all), unsigned [clips, neurons]."""
        return self._columns(self.artifacts.counts, neurons, clips)

    def padding_rates(self, neurons: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Share of active tokens on zero padding, and on everything else [k]; None if no padding was counted."""
        path = self.artifacts.path / "padding_counts.npy"
        if not self.has_counts or not path.is_file():
            return None
        on_padding = self._columns(np.load(path, mmap_mode="r"), neurons, None).sum(
            axis=0, dtype=np.int64
        )
        everywhere = self.counts(neurons).sum(axis=0, dtype=np.int64)
        padding = self.artifacts.padding_tokens.sum()
        sound = self.tokens.sum() - padding
        return on_padding / max(padding, 1), (everywhere - on_padding) / max(sound, 1)

    def prefers_padding(self, neurons: np.ndarray) -> np.ndarray:
        """Whether neurons are more active on zero padding than on sound by `PADDING_MARGIN`, bool [k]."""
        rates = self.padding_rates(neurons)
        if rates is None:
            return np.zeros(len(neurons), dtype=bool)
        on_padding, on_sound = rates
        return on_padding > on_sound + PADDING_MARGIN

    def rank_among_eligible(self) -> tuple[np.ndarray, int]:
        """Rank of each neuron's AAPE among the neurons that pass the weak-response filter, and how many these are.

        The rank is 1 for the lowest AAPE and 0 for a neuron that does not pass.
        """
        passes = (self.p.max(axis=1) > self.selection.weak_threshold) & np.isfinite(self.aape)
        rank = np.zeros(len(self.aape), dtype=np.int64)
        order = np.argsort(self.aape[passes], kind="stable")
        rank[np.flatnonzero(passes)[order]] = 1 + np.arange(len(order))
        return rank, len(order)

    def _columns(
        self, stored: np.ndarray, neurons: np.ndarray, clips: np.ndarray | None
    ) -> np.ndarray:
        """Some rows and columns of a stored table [clips, L, N], read in blocks."""
        clips = np.arange(len(stored)) if clips is None else clips
        columns = np.empty((len(clips), len(neurons)), stored.dtype)
        for start in range(0, len(clips), ROWS_READ):
            block = stored[clips[start : start + ROWS_READ]]
            columns[start : start + ROWS_READ] = block.reshape(len(block), -1)[:, neurons]
        return columns
