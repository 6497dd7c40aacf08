"""What the pages call a model and a task, and the study that they belong to."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class Titles:
    """Names of one model on one task, as the pages show them.

    Attributes:
        study: name of the study. An atlas holds one study.
        model, task: short names, used in addresses and in the study's tables.
        label: the model's name for readers.
        title: the task's name for readers.
        role: of the model: "ssl", "sl", "untrained" or None.
        note: one sentence on the study, shown on the first page.
        substitute: whether models or sounds are synthetic or substitutes, which every page then says.
    """

    study: str
    model: str
    task: str
    label: str
    title: str
    role: str | None = None
    note: str = ""
    substitute: bool = False

    @property
    def folder(self) -> str:
        """Name of the folder of this model on this task."""
        return f"{_file_name(self.model)}-{_file_name(self.task)}"


def _file_name(name: str) -> str:
    """A name as a part of a file name: unchanged if it is plain, otherwise with a hash that keeps it distinct."""
    plain = re.sub(r"[^a-z0-9]+", "_", unicodedata.normalize("NFKC", name).lower())
    plain = plain.strip("_")[:40]
    if plain == name:
        return plain
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{plain}_{digest}".lstrip("_")
