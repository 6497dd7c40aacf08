"""A study: models, tasks, thresholds, figure pairs and ablation targets, in one validated YAML file.

Three ship in `studies/`: `paper`, `esc50` and `miniature`. A model or a task is named by the function that loads it,
`package.module:function`, and that function's keyword arguments, so a study of one's own needs no change here.
"""

from __future__ import annotations

import difflib
import importlib
import os
import typing
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aape.encoder import Encoder
from aape.task import Task

ROOT = Path(__file__).resolve().parent.parent  # the folder that holds common.py
MODELS: tuple[Literal["M2D", "ViT", "Untrained"], ...] = ("M2D", "ViT", "Untrained")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Loader(_Strict):
    """A function and its keyword arguments.

    Options whose names end in `_path` or `_dir` are paths: `~` and `$VARIABLES` are expanded, and relative ones start
    at the folder that holds common.py ("random" stays as it is).
    """

    loader: str
    options: dict[str, Any] = Field(default_factory=dict)

    def call(self) -> Any:
        """Import the function and call it.

        Raises:
            ValueError: no such module or function, or an environment variable that is not set.
        """
        module_name, _, function_name = self.loader.partition(":")
        try:
            function = getattr(importlib.import_module(module_name), function_name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"loader {self.loader!r}: expected package.module:function ({error})") from error
        return function(**{k: resolve_path(k, v) for k, v in self.options.items()})


def resolve_path(key: str, value: Any) -> Any:
    """Expand a path option; anything else is returned as it is."""
    if not key.endswith(("_path", "_dir")) or not isinstance(value, str) or value == "random":
        return value
    expanded = os.path.expanduser(os.path.expandvars(value))
    if "$" in expanded:
        raise ValueError(f"{key}: {value!r} needs an environment variable that is not set; set it or write the path")
    return ROOT / expanded  # an absolute path stays absolute


class ModelSpec(Loader):
    """A model of the study: how it is loaded, and what tables and folders call it."""

    label: str
    folder: Literal["analysis", "vit", "untrained"]
    # task -> splits that the weights were trained on, marked as in-sample wherever they are tested
    heard: dict[str, list[str]] = Field(default_factory=dict)


class TaskSpec(Loader):
    """A task of the study."""

    title: str
    kind: Literal["event", "pitch", "genre", "language", "gender", "country", "emotion", "other"] = "other"
    rate: float | None = None  # share of neurons that survive the AAPE rank; None: the study's


class CollectSettings(_Strict):
    """The collecting pass."""

    batch_size: int = 32
    splits: list[str] | None = None
    keep_clips: int | None = None
    on_bad_clip: Literal["stop", "skip"] = "stop"


class SelectionSettings(_Strict):
    """Thresholds of the selection (paper, LAPE)."""

    rate: float = 0.01
    quantile: float = 0.95
    weak_filter: Literal["lape", "paper"] = "lape"


class ChanceSettings(_Strict):
    """Permutations and calibrated selection."""

    permutations: int = 1000
    q: float = 0.05
    effect: float = 0.1  # least difference of p inside and outside the class
    resamples: int = 20  # of equal clips per class, and of halves of the groups


class SharingFigure(_Strict):
    """One figure of shared neurons; within a task where rows and columns are the same."""

    name: str
    rows: str
    columns: str
    title: str


class AblationTarget(_Strict):
    """Neurons to silence, stated before any result is seen."""

    task: str
    classes: list[str]
    mode: Literal["specific", "shared", "all"]


class AblationSettings(_Strict):
    """The deactivation experiment (`aape.ablation`)."""

    models: tuple[Literal["M2D", "ViT", "Untrained"], ...] = MODELS
    targets: list[AblationTarget] = Field(default_factory=list)
    identify: Literal["train", "all"] = "train"  # which clips choose the neurons; the paper's way is "all"
    controls: int = Field(default=199, ge=0)  # random sets with as many neurons in each layer
    controls_elsewhere: int | None = Field(default=None, ge=0)  # of them, also tested on other classes; None: all
    rate_matched: int = Field(default=199, ge=0)  # random sets that are also of like activation rate
    target_rate_matched: int = Field(default=1, ge=0)  # of like activation rate in the target's classes
    gains: list[float] = Field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0])
    mean_replacement: bool = True  # also replace the neurons by their means over the training clips
    off_target: bool = True  # silence each class's neurons, measure every class
    bootstrap: int = Field(default=2000, ge=0)
    refits: int = Field(default=20, ge=0)


class Study(_Strict):
    """See the module's docstring. `output` is resolved as a path below the repository's folder."""

    name: str
    description: str
    stand_in: bool  # results of stand-in sounds or models, said wherever a number is shown
    note: str = ""
    output: str
    seed: int = 0
    models: dict[Literal["M2D", "ViT", "Untrained"], ModelSpec]
    tasks: dict[str, TaskSpec]
    collect: CollectSettings = Field(default_factory=CollectSettings)
    selection: SelectionSettings = Field(default_factory=SelectionSettings)
    chance: ChanceSettings = Field(default_factory=ChanceSettings)
    sharing: list[SharingFigure] = Field(default_factory=list)
    ablation: AblationSettings = Field(default_factory=AblationSettings)

    @property
    def directory(self) -> Path:
        """Where the study's results lie; $AAPE_OUTPUT replaces `outputs` in front of relative paths."""
        return ROOT / os.environ.get("AAPE_OUTPUT", "outputs") / self.output

    def artifacts_directory(self, task: str, model: str) -> Path:
        """Folder of one model's artifacts on one task."""
        return self.directory / f"{self.task(task) and task}_{self.model(model).folder}"

    def model(self, name: str) -> ModelSpec:
        """A model's entry. Raises ValueError with the nearest name."""
        return _entry(self.models, name, f"study {self.name!r} has no model")

    def task(self, name: str) -> TaskSpec:
        """A task's entry. Raises ValueError with the nearest name."""
        return _entry(self.tasks, name, f"study {self.name!r} has no task")

    def rate(self, task: str) -> float:
        """Share of neurons that survive the AAPE rank on a task."""
        own = self.task(task).rate
        return self.selection.rate if own is None else own


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}? " if near else "" + f"known: {', '.join(known)}"


def _entry(entries: typing.Mapping[Any, Any], name: str, complaint: str) -> Any:
    if name not in entries:
        raise ValueError(f"{complaint} {name!r}; {_nearest(name, entries)}")
    return entries[name]


def load_study(name_or_path: str | Path) -> Study:
    """A study by name (a file in `studies/`) or from a YAML file.

    Raises:
        FileNotFoundError: no such study.
        ValueError: a key that is not known (with the nearest one), a value that does not fit, a reference to a task or
            model that the study does not have.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = ROOT / "studies" / f"{name_or_path}.yaml"
    if not path.is_file():
        shipped = sorted(p.stem for p in (ROOT / "studies").glob("*.yaml"))
        raise FileNotFoundError(f"no study {str(name_or_path)!r} at {path}; shipped: {', '.join(shipped)}, or a file")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values, found {type(content).__name__}")
    try:
        study = Study(**content)
    except ValidationError as error:
        raise ValueError(f"{path}: " + "; ".join(_explain(e) for e in error.errors())) from None
    _check_references(study, path)
    return study


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg']}, found {error.get('input')!r}"
    model: Any = Study
    for part in error["loc"][:-1]:
        if part in getattr(model, "model_fields", {}):
            model = model.model_fields[part].annotation
        for argument in typing.get_args(model):
            if isinstance(argument, type) and issubclass(argument, BaseModel):
                model = argument
                break
    known = list(getattr(model, "model_fields", {}))
    return f"unknown key {where!r}; {_nearest(str(error['loc'][-1]), known)}"


def _check_references(study: Study, path: Path) -> None:
    try:
        for figure in study.sharing:
            study.task(figure.rows), study.task(figure.columns)
        for target in study.ablation.targets:
            study.task(target.task)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    folders = [m.folder for m in study.models.values()]
    if len(set(folders)) != len(folders):
        raise ValueError(f"{path}: two models share a folder ({', '.join(folders)})")


def load_encoder(study: Study, model: str) -> Encoder:
    """The study's model "M2D", "ViT" or "Untrained".

    Raises:
        ValueError: no such model, or what its loader returned is no Encoder.
    """
    encoder = study.model(model).call()
    if not isinstance(encoder, Encoder):
        raise ValueError(f"{study.model(model).loader} returned a {type(encoder).__name__}, expected an Encoder")
    return encoder


def load_task(study: Study, task: str) -> Task:
    """One of the study's tasks.

    Raises:
        ValueError: no such task, or what its loader returned is no Task.
    """
    loaded = study.task(task).call()
    if not isinstance(loaded, Task):
        raise ValueError(f"{study.task(task).loader} returned a {type(loaded).__name__}, expected a Task")
    return loaded
