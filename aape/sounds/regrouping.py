"""Views of a task: its classes united to others, or a seeded draw of its clips.

The artifacts of a view are made from those of the whole task by `aape.relabel`, without a forward pass.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from aape.sounds.task import Task


def regrouped(task: Task, classes: Mapping[str, Sequence[str]], name: str) -> Task:
    """Unite classes of a task, for example pitches to octaves. Clips of classes that are not listed are left out.

    Args:
        task: with the classes to unite.
        classes: new class -> the old classes that it unites.
        name: of the new task.

    Raises:
        ValueError: an old class that the task does not have, or one that is listed twice.
    """
    new_of: dict[str, str] = {}
    for new, old_classes in classes.items():
        for old in old_classes:
            if old not in task.classes:
                raise ValueError(
                    f"class {new!r} is to unite {old!r}, but {task.name} has {', '.join(task.classes)}"
                )
            if old in new_of:
                raise ValueError(
                    f"class {old!r} of {task.name} is listed under {new_of[old]!r} and {new!r}"
                )
            new_of[old] = new
    kept = task.subset(classes=list(new_of))
    names = list(classes)
    new_index = np.array([names.index(new_of[old]) for old in kept.classes])
    return dataclasses.replace(kept, name=name, labels=new_index[kept.labels], classes=tuple(names))


def octaves(classes: Sequence[str]) -> dict[str, list[str]]:
    """Octaves of classes that are MIDI pitches: `pitch // 12`, named "octave 5" and so on, from low to high.

    Raises:
        ValueError: a class without a number in its name.
    """
    pitches = {name: pitch_of(name) for name in classes}
    found: dict[str, list[str]] = {}
    for name in sorted(pitches, key=lambda name: pitches[name]):
        found.setdefault(f"octave {pitches[name] // 12}", []).append(name)
    return found


def pitch_of(name: str) -> int:
    """MIDI pitch of a class such as "60" or "pitch_060".

    Raises:
        ValueError: there is no number in the name.
    """
    numbers = re.findall(r"\d+", name)
    if not numbers:
        raise ValueError(
            f"class {name!r} of a pitch task has no number in its name; expected a MIDI pitch"
        )
    return int(numbers[-1])


def drawn(
    task: Task, *, clips: int | None = None, per_class: int | None = None, seed: int = 0
) -> Task:
    """A seeded random draw of clips, over all classes or within each class; everything if there are no more.

    Args:
        task: to draw from.
        clips: number of clips in all.
        per_class: number of clips of each class.
        seed: of the draw.

    Raises:
        ValueError: neither or both numbers.
    """
    if (clips is None) == (per_class is None):
        raise ValueError(
            f"draw: expected either `clips` or `per_class`, found clips={clips}, per_class={per_class}"
        )
    order = np.random.default_rng(seed).permutation(len(task))
    if clips is not None:
        chosen = order[:clips]
        note = f"{len(chosen):,} of {len(task):,} clips, a seeded draw of ours (seed {seed})"
    else:
        chosen = np.concatenate(
            [order[task.labels[order] == c][:per_class] for c in range(len(task.classes))]
        )
        note = f"at most {per_class:,} clips per class, a seeded draw of ours (seed {seed})"
    return dataclasses.replace(task.subset(clips=chosen), notes=(*task.notes, note))
