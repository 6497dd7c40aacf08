"""One model and one folder of sounds, from the first clip to the last table: `aape dissect`.

The steps are those of the notebook Dissect_Your_Own: task, encoder, `collect`, `select`, `calibrate`, a table and a figure
of the classes compared with permuted labels, `ablate` of some classes, and the atlas.

    out_dir/<labelling>/       one labelling of the sounds: classes.csv, classes.pdf, passing_neurons.csv, ablation tables
    out_dir/<labelling>_artifacts/     what the model did, and neurons.csv
    out_dir/atlas/             the pages of all labellings

A second labelling of the same sounds needs no second pass: its artifacts are made from those of the first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from aape.artifacts.folder import Artifacts, load_artifacts
from aape.atlas.build import build_atlas
from aape.causal.classifier import folds
from aape.collecting.passing import collect
from aape.collecting.relabelling import relabel
from aape.criteria.ranking import rank
from aape.display import Displayed
from aape.encoders.encoder import Encoder, choose_device
from aape.encoders.hub import from_hub
from aape.figures.classes import class_figure
from aape.figures.style import save
from aape.files import write_text
from aape.neurons.chance import Calibrated, calibrate
from aape.neurons.selection import Rule, Selection, select
from aape.sounds.loading import from_folder
from aape.sounds.task import Task
from aape.study.ablation import AblationResult, ablate

# What a first look leaves out of the ablation to save time.
FIRST_LOOK: dict[str, Any] = {
    "modes": ("mean", "zero"),
    "other_modes": 0,
    "gains": [],
    "off_target": False,
}
HOW_TO_READ = (
    "A neuron that prefers no class counts for many classes at once, so `permuted` is often larger than `neurons`.\n"
    "What counts is `calibrated`: q < 0.05 over all pairs, p at least 0.1 higher inside the class than outside, and more\n"
    "such pairs in the task than with permuted labels."
)


@dataclass(frozen=True, eq=False, repr=False)
class Dissection(Displayed):
    """What `dissect` made.

    Attributes:
        directory: folder of this labelling of the sounds, with all tables and figures.
        classes: see `class_table`.
        ablation: None where it was not possible; `notes` says why.
        atlas: path of the page.
        notes: what to know about the result.
    """

    directory: Path
    encoder: Encoder
    task: Task
    artifacts: Artifacts
    calibrated: Calibrated
    classes: pd.DataFrame
    ablation: AblationResult | None
    atlas: Path
    notes: tuple[str, ...]

    def _facts(self) -> dict[str, str]:
        facts = {
            "results": str(self.directory),
            "classes": "classes.csv, classes.pdf",
            "neurons": f"passing_neurons.csv (all), {self.artifacts.path.name}/neurons.csv (selected)",
            "ablation": "ablation_effects.csv and others" if self.ablation else "none",
            "to listen, open": str(self.atlas),
        }
        for number, note in enumerate(self.notes, 1):
            facts[f"note {number}"] = note
        return facts

    def _title(self) -> str:
        return f"{self.encoder.name} on {self.task.name}"

    def _repr_html_(self) -> str:
        return super()._repr_html_() + self.classes.to_html()


def dissect(
    model: str | Encoder,
    task: str | Path | Task,
    out_dir: str | Path | None = None,
    *,
    name: str | None = None,
    pattern: str | None = None,
    clip_seconds: float | None = None,
    rate: float = 0.01,
    criterion: str = "aape",
    permutations: int = 1000,
    targets: Sequence[str] | None = None,
    controls: int = 99,
    device: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    say: Callable[[object], None] = print,
) -> Dissection:
    """Find the neurons of a model that are specific to the classes of a folder of sounds, and silence some of them.

    Nothing is computed twice: called again, it resumes.

    Args:
        model: a name on the Hub or a folder (`from_hub`), or an encoder.
        task: a folder (`from_folder`), or a task.
        out_dir: None: `outputs/<sounds>_<model>` in the current folder.
        name: of this labelling and its folder in `out_dir`. None: the task's name, and the fields of the pattern.
        pattern, clip_seconds: of a folder's task, as in `from_folder`.
        rate: share of neurons that are kept, as in `select`.
        criterion: what neurons are ranked by: "aape", "attribution", or another name that `rank` knows.
        permutations: as in `calibrate`.
        targets: classes whose neurons are silenced. None: the two classes with most neurons.
        controls: random sets, as in `ablate`, whose other settings are those of `FIRST_LOOK`.
        device, batch_size: of the passes.
        seed: of split, permutations and controls.
        say: called with each result when it is there.

    Raises:
        ValueError, OSError: as the steps do. What was done until then is kept.
    """
    Rule(rate=rate)  # invalid settings are refused before the pass
    choose_device(device)
    if not isinstance(task, Task):
        name = name or _labelling(Path(task).resolve().name, pattern)
        sounds = Path(task).resolve().name
        task = from_folder(task, pattern=pattern, clip_seconds=clip_seconds, seed=seed, name=name)
    else:
        sounds = task.name
        name = name or task.name
    for target in targets or ():
        if target not in task.classes:
            raise ValueError(
                f"targets: no class {target!r}; the classes are {', '.join(task.classes)}"
            )
    say(task)
    encoder = model if isinstance(model, Encoder) else from_hub(model)
    say(encoder)
    parent = (
        Path(out_dir)
        if out_dir is not None
        else Path("outputs") / _file_name(f"{sounds}_{encoder.name}")
    )
    folder = parent / _file_name(name)
    folder.mkdir(parents=True, exist_ok=True)

    artifacts = _collected(
        encoder, task, parent / f"{folder.name}_artifacts", device=device, batch_size=batch_size
    )
    selection = _selected(artifacts, encoder, task, rate, criterion)
    calibrated = calibrate(artifacts, selection, permutations=permutations, seed=seed)
    say(calibrated)
    classes = class_table(artifacts, calibrated)
    say(f"{classes.to_string(float_format='{:.3g}'.format, na_rep='')}\n{HOW_TO_READ}")
    passing = calibrated.all_pairs()
    write_text(folder / "classes.csv", classes.to_csv())
    write_text(folder / "passing_neurons.csv", passing.to_csv(index=False))
    write_text(artifacts.path / "neurons.csv", calibrated.table().to_csv(index=False))
    save(class_figure(calibrated, f"{encoder.name} on {task.name}"), folder, "classes")

    notes = [
        *task.notes,
        f"{len(passing):,} pairs of neuron and class pass the calibration, selected or not",
    ]
    chosen, reason = _targets(artifacts, classes, rate, targets)
    ablation = None
    if criterion != "aape":
        reason = "the ablation silences neurons chosen by AAPE; `aape.compare_criteria` compares criteria"
    if reason:
        notes.append(f"no ablation: {reason}")
    else:
        notes.append(
            f"silenced: the neurons of {' and of '.join(chosen)}; choose others with targets"
        )
        settings: dict[str, Any] = {
            "controls": controls,
            "rate": rate,
            "out_dir": folder,
            "seed": seed,
        } | FIRST_LOOK
        ablation = ablate(
            encoder,
            task,
            artifacts,
            targets=chosen,
            device=device,
            batch_size=batch_size,
            **settings,
        )
        say(ablation)
    atlas = build_atlas(artifacts, encoder, task, parent / "atlas", selection=selection)
    dissection = Dissection(
        folder, encoder, task, artifacts, calibrated, classes, ablation, atlas, tuple(notes)
    )
    say(dissection)
    return dissection


def class_table(artifacts: Artifacts, calibrated: Calibrated) -> pd.DataFrame:
    """A row per class, most neurons first.

    Columns: clips; groups; neurons, the class-specific ones; permuted, their mean number with permuted labels;
    calibrated, those that pass the calibration; and the strongest of these, else of all: layer, neuron,
    rate, rate_outside.
    """
    pairs = calibrated.table().sort_values("calibrated", ascending=False, kind="stable")
    strongest = pairs.drop_duplicates("class").set_index("class")[
        ["layer", "neuron", "rate", "rate_outside"]
    ]
    names = [artifacts.classes[label] for label in artifacts.labels]
    groups = pd.DataFrame({"class": names, "group": artifacts.groups}).groupby("class")["group"]
    table = pd.DataFrame(
        {
            "clips": groups.size(),
            "groups": groups.nunique(),
            "neurons": calibrated.selection.per_class,
            "permuted": pd.Series(
                calibrated.null.per_class.mean(axis=0), index=calibrated.selection.classes
            ),
            "calibrated": calibrated.per_class,
        }
    )
    table = table.join(strongest).astype({"layer": "Int64", "neuron": "Int64"}).rename_axis("class")
    return table.sort_values(["calibrated", "neurons"], ascending=False, kind="stable")


def _labelling(sounds: str, pattern: str | None) -> str:
    """A name for the labels that a pattern reads from the names of a folder's files."""
    if pattern is None:
        return sounds
    fields = [field or "any" for field in re.findall(r"\{(\w*)\}", pattern)]
    return "_".join([sounds, *fields])


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")


def _collected(
    encoder: Encoder, task: Task, folder: Path, *, device: str | None, batch_size: int | None
) -> Artifacts:
    """The artifacts of a labelling: from those of another labelling of the same clips if there are any, else by a pass."""
    finished = load_artifacts(folder) if (folder / "manifest.json").is_file() else None
    if finished is None or "pass_of" in finished.manifest:
        for manifest in sorted(folder.parent.glob("*_artifacts/manifest.json")):
            if manifest.parent == folder:
                continue
            other = load_artifacts(manifest.parent)
            if _covers(other, encoder, task):
                return relabel(other, task, folder)
    return collect(encoder, task, folder, device=device, batch_size=batch_size)


def _covers(artifacts: Artifacts, encoder: Encoder, task: Task) -> bool:
    """Whether artifacts come from a pass of this encoder over all clips of a task."""
    manifest = artifacts.manifest
    return (
        "pass_of" not in manifest
        and manifest["clip_seconds"] == task.clip_seconds
        and set(task.files) <= set(artifacts.files)
        and manifest["identity"] == encoder.identity
    )


def _selected(
    artifacts: Artifacts, encoder: Encoder, task: Task, rate: float, criterion: str
) -> Selection:
    if criterion == "aape":
        return select(artifacts, rate=rate)
    name = "attribution_mean" if criterion == "attribution" else criterion
    return select(artifacts, rate=rate, scores=rank(artifacts, name, encoder=encoder, task=task))


def _targets(
    artifacts: Artifacts, classes: pd.DataFrame, rate: float, asked: Sequence[str] | None
) -> tuple[list[str], str]:
    """Classes whose neurons can be silenced, and the reason why there are none."""
    try:
        tested = folds(artifacts.splits, artifacts.labels, artifacts.classes)
    except ValueError as error:  # a class without a clip to train or to test on
        return [], str(error)
    has_neurons = np.ones(len(artifacts.classes), dtype=bool)
    for fold in tested:  # the neurons are chosen on training clips
        trained = artifacts.probabilities(clips=fold.fit)
        has_neurons &= select(trained, rate=rate).members.any(axis=(0, 1))
    usable = {name for name, has in zip(artifacts.classes, has_neurons, strict=True) if has}
    if asked is not None:
        without = [name for name in asked if name not in usable]
        if without:
            return (
                [],
                f"no neuron is specific to {', '.join(without)} on the training clips; a higher rate keeps more",
            )
        return list(asked), ""
    by_neurons = classes.sort_values("neurons", ascending=False, kind="stable")
    chosen = [name for name in by_neurons.index if by_neurons.neurons[name] and name in usable][:2]
    return chosen, "" if chosen else "no class has a neuron of its own; a higher rate keeps more"
