"""One model and one folder of sounds, from the first clip to the last table: `aape dissect`.

The steps are those of the notebook Dissect_Your_Own: task, encoder, `collect`, `select`, `calibrate`, a table of
classes with chance beside, a figure, `ablate` of the two classes with most neurons, and the atlas.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from aape.artifacts.folder import Artifacts
from aape.atlas.build import build_atlas
from aape.collecting.passing import collect
from aape.display import Displayed
from aape.encoders.encoder import Encoder
from aape.encoders.hub import from_hub
from aape.figures.classes import class_figure
from aape.figures.style import save
from aape.files import write_text
from aape.neurons.chance import Calibrated, calibrate
from aape.neurons.selection import select
from aape.sounds.loading import from_folder
from aape.sounds.task import Task
from aape.study.ablation import AblationResult, ablate

# What the ablation of a first look leaves out for its time; `ablate` by itself does it all.
FIRST_LOOK: dict[str, Any] = {"modes": ("mean", "zero"), "gains": [], "off_target": False}
FIRST_LOOK |= dict.fromkeys(("layer_matched", "rate_matched", "other_modes"), 0)
HOW_TO_READ = (
    "by_chance: what permuted labels select, often more, since neurons that prefer no class count for many.\n"
    "What counts is survive: neurons more active in the class than permuted labels give, q < 0.05."
)


@dataclass(frozen=True, eq=False, repr=False)
class Dissection(Displayed):
    """What `dissect` made.

    Attributes:
        directory: everything lies there, as a study's results do: classes.csv, classes.pdf and .png, the ablation's
            tables, the artifacts with neurons.csv in a folder of their own, the atlas.
        classes: see `class_table`.
        ablation: None where it could not be done; `notes` says why.
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
        return {
            "everything lies in": str(self.directory),
            "classes": "classes.csv, classes.pdf",
            "neurons": str(self.artifacts.path / "neurons.csv"),
            "ablation": "ablation_effects.csv and others" if self.ablation else "none",
            "to hear them, open": str(self.atlas),
        } | {f"note {i}": note for i, note in enumerate(self.notes, 1)}

    def _title(self) -> str:
        return f"{self.encoder.name} on {self.task.name}"

    def _repr_html_(self) -> str:
        return super()._repr_html_() + self.classes.to_html()


def class_table(artifacts: Artifacts, calibrated: Calibrated) -> pd.DataFrame:
    """A row per class, most neurons first.

    Columns: clips, groups; neurons that are class-specific; by_chance, their mean over permuted labels; survive, those
    that pass the calibration; and the strongest of these, else of all: layer, neuron, p, p_outside.
    """
    pairs = calibrated.table().sort_values("calibrated", ascending=False, kind="stable")
    strongest = pairs.drop_duplicates("class").set_index("class")[["layer", "neuron", "p", "p_outside"]]
    clips = pd.DataFrame({"class": [artifacts.classes[c] for c in artifacts.labels], "group": artifacts.groups})
    by_class = clips.groupby("class")["group"]
    columns = {
        "clips": by_class.size(),
        "groups": by_class.nunique(),
        "neurons": calibrated.selection.per_class,
        "by_chance": pd.Series(calibrated.null.per_class.mean(axis=0), index=calibrated.selection.classes),
        "survive": calibrated.per_class,
    }
    table = pd.DataFrame(columns).join(strongest).astype({"layer": "Int64", "neuron": "Int64"}).rename_axis("class")
    return table.sort_values(["survive", "neurons"], ascending=False, kind="stable")


def dissect(
    model: str | Encoder,
    task: str | Path | Task,
    out_dir: str | Path | None = None,
    *,
    pattern: str | None = None,
    clip_seconds: float | None = None,
    rate: float = 0.01,
    permutations: int = 1000,
    controls: int = 99,
    device: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    say: Callable[[object], None] = print,
) -> Dissection:
    """Find the neurons of a model that are specific to the classes of a folder of sounds, and silence some of them.

    Nothing is computed twice: called again, it goes on where it was cut off.

    Args:
        model: a name on the Hub or a folder (`from_hub`), or an encoder.
        task: a folder (`from_folder`), or a task.
        out_dir: None: `outputs/<task>_<model>` in the current folder.
        pattern, clip_seconds: of a folder's task, see `from_folder`.
        rate: share of neurons that are kept, see `select`.
        permutations, controls: of `calibrate` and `ablate`, the latter with the settings of `FIRST_LOOK`.
        device, batch_size: of the passes. seed: of split, permutations and controls.
        say: called with each result as it comes.

    Raises:
        ValueError, FileNotFoundError, OSError: as the steps do; what was done until then is kept.
    """
    if not isinstance(task, Task):
        task = from_folder(task, pattern=pattern, clip_seconds=clip_seconds, seed=seed)
    say(task)
    encoder = model if isinstance(model, Encoder) else from_hub(model)
    say(encoder)
    pair = re.sub(r"[^\w.-]+", "-", f"{task.name}_{encoder.name}").strip("-.")
    out_dir = Path("outputs") / pair if out_dir is None else Path(out_dir)
    how: dict[str, Any] = {"device": device, "batch_size": batch_size, "seed": seed}
    artifacts = collect(encoder, task, out_dir / pair, **how)
    calibrated = calibrate(artifacts, select(artifacts, rate=rate), permutations=permutations, seed=seed)
    say(calibrated)
    classes = class_table(artifacts, calibrated)
    say(f"{classes.to_string(float_format='{:.3g}'.format, na_rep='')}\n{HOW_TO_READ}")
    write_text(out_dir / "classes.csv", classes.to_csv())
    write_text(artifacts.path / "neurons.csv", calibrated.table().to_csv(index=False))
    save(class_figure(calibrated, f"{encoder.name} on {task.name}"), out_dir, "classes")
    targets = [name for name in classes.sort_values("neurons", ascending=False).index[:2] if classes.neurons[name]]
    ablation, notes = None, list(task.notes)
    try:
        if not targets:
            raise ValueError("no class has a neuron of its own; a higher rate keeps more")
        how |= {"controls": controls, "rate": rate, "out_dir": out_dir, **FIRST_LOOK}
        ablation = ablate(encoder, task, artifacts, targets=targets, **how)
        say(ablation)
    except ValueError as error:  # what was found so far stands
        notes.append(f"no ablation: {error}")
    atlas = build_atlas(artifacts, encoder, task, out_dir / "atlas", selection=calibrated.selection)
    found = Dissection(out_dir, encoder, task, artifacts, calibrated, classes, ablation, atlas, tuple(notes))
    say(found)
    return found
