"""A study: models, tasks, thresholds, figures and ablation targets, in one validated YAML file.

The shortest study names one model and one task. Everything else has a default:

    models:
      whisper: {hub: openai/whisper-tiny}
    tasks:
      digits: {folder: recordings, pattern: "{label}_{group}_{take}.wav", clip_seconds: 1.0}

Models and tasks take any names, and there may be any number of them. Besides `hub` (a model by name or folder), `folder`
(sounds in class folders, or named by a pattern) and `metadata` (a CSV), `loader: package.module:function` with `options`
calls any Python function, for example one of a module next to the study file. **A study file is therefore code: run only
those that you trust.** Paths are relative to the study file; `~`, `$NAME` and `${NAME:-default}` are expanded. For the
shipped studies (`studies/` of the clone) paths are relative to the repository's root. Results go to `outputs/<study>/` in
the same place; $AAPE_OUTPUT replaces `outputs`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from aape.display import Displayed
from aape.study.short_forms import SHORT_KEYS, with_loader, written_out
from aape.suggest import nearest

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds common.py


def _safe_name(name: str) -> str:
    """Names of tasks, models and figures become names of folders and files, which must not lead elsewhere."""
    if not name or name[0] == "." or set(name) & set("/\\") or not name.isprintable():
        raise ValueError(
            f"expected a name that has no slash and does not start with a dot, found {name!r}"
        )
    return name


Name = Annotated[str, AfterValidator(_safe_name)]
Share = Annotated[float, Field(gt=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        for key in content:
            if key in cls.model_fields:
                continue
            known = sorted({*cls.model_fields, *SHORT_KEYS} - {key, "base"})
            hint = (
                "; arguments of a loader belong under `options`"
                if "options" in cls.model_fields
                else ""
            )
            raise ValueError(f"{key!r} is not a valid key here; {nearest(str(key), known)}{hint}")
        return content


class Loader(_Strict):
    """A function, `package.module:function`, and its keyword arguments. Short forms are written out as such."""

    loader: str
    options: dict[str, Any] = Field(default_factory=dict)


class ModelSpec(Loader):
    """How a model is loaded, and what tables and folders call it.

    `role` says what the model is compared as. `label` is its name in tables and figures. A model with `seeds` is loaded
    once for each of them, as `options.seed`, into a folder of its own; a table has one row for all of them.
    """

    role: Literal["ssl", "sl", "untrained"] | None = None
    label: str
    folder: Name
    seeds: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _each_seed_once(self) -> ModelSpec:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: expected different seeds, found {list(self.seeds)}")
        if self.seeds and "seed" in self.options:
            raise ValueError(
                "seeds: a model with `seeds` cannot also have `options.seed`; remove one of the two"
            )
        return self

    def with_seed(self, seed: int) -> ModelSpec:
        """The entry of one seed."""
        return self.model_copy(
            update={
                "label": f"{self.label}, seed {seed}",
                "folder": f"{self.folder}-{seed}",
                "seeds": (),
                "options": self.options | {"seed": seed},
            }
        )


class TaskSpec(Loader):
    """How a task is loaded, and what tables call it.

    A task with `same_clips_as` has clips of another task with other labels. Its artifacts are made from the other task's
    artifacts, without a forward pass. Its loader can be left out; then it is the other task's.
    """

    title: str
    kind: Literal["pitch"] | None = None  # classes are MIDI pitches, and octaves are compared
    rate: Share | None = None  # share of neurons that the AAPE rank keeps; None: the study's
    same_clips_as: str | None = None
    draw: dict[Literal["clips", "per_class"], int] | None = (
        None  # a seeded draw: so many clips, or so many per class
    )
    unite: Literal["octave"] | dict[str, list[str]] | None = (
        None  # new class -> the classes that it unites
    )


class CollectSettings(_Strict):
    """The collecting pass."""

    batch_size: int = Field(default=32, ge=1)
    splits: list[str] | None = None


class SelectionSettings(_Strict):
    """Thresholds of the selection (paper, LAPE)."""

    rate: Share = 0.01
    quantile: float = Field(default=0.95, gt=0, le=1)
    weak_filter: Literal["lape", "paper"] = "lape"


class ChanceSettings(_Strict):
    """Permutations and calibrated selection."""

    permutations: int = Field(default=1000, ge=20)
    q: float = Field(default=0.05, gt=0, lt=1)
    effect: float = Field(
        default=0.1, ge=0, le=1
    )  # smallest difference of p inside and outside the class


class SharingFigure(_Strict):
    """One figure of shared neurons; within a task where rows and columns are the same."""

    name: Name
    rows: str
    columns: str
    title: str


class AblationTarget(_Strict):
    """Neurons to silence, stated before any result is seen."""

    task: str
    classes: list[str]
    mode: Literal["specific", "shared", "all"]
    exclusive: bool = False  # specific to exactly these classes


class AblationSettings(_Strict):
    """The deactivation experiment (`aape.study.ablation`)."""

    models: tuple[str, ...] | None = None  # None: all of the study
    targets: list[AblationTarget] = Field(default_factory=list)
    identify: Literal["train", "all"] = (
        "train"  # which clips choose the neurons; the paper's way is "all"
    )
    modes: tuple[Literal["mean", "zero"], ...] = Field(default=("mean", "zero"), min_length=1)
    # Activity-matched random sets in the first mode; None: so many that one class alone can reach q < 0.05, at least 199.
    controls: int | None = Field(default=None, ge=0)
    other_modes: int = Field(default=39, ge=0)  # activity-matched random sets in each other mode
    disjoint: int = Field(
        default=39, ge=0
    )  # activity-matched sets without the target's neurons, in the first mode
    # Test clips of each other class in which the change of other classes is measured; None: all.
    panel: int | None = Field(default=None, ge=1)
    gains: list[float] = Field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0])
    off_target: bool = True  # change each class's neurons, measure every class
    bootstrap: int = Field(default=2000, ge=0)

    @model_validator(mode="after")
    def _once(self) -> AblationSettings:
        for i, target in enumerate(self.targets):
            if target in self.targets[:i]:
                raise ValueError(
                    f"target {', '.join(target.classes)} of {target.task} ({target.mode}) is stated twice"
                )
        return self


class Study(Displayed, _Strict):
    """See the module's docstring. `base` is the folder that paths and outputs are relative to."""

    name: str
    description: str
    base: Path = Field(default=ROOT, exclude=True)
    substitute: bool = (
        False  # substitute models or synthetic sounds; said wherever a number is shown
    )
    reproduces_paper: bool = False  # compare with the published values
    note: str = ""
    output: Name  # below `outputs`
    seed: int = 0
    models: dict[Name, ModelSpec] = Field(min_length=1)
    tasks: dict[Name, TaskSpec] = Field(min_length=1)
    collect: CollectSettings = Field(default_factory=CollectSettings)
    selection: SelectionSettings = Field(default_factory=SelectionSettings)
    chance: ChanceSettings = Field(default_factory=ChanceSettings)
    sharing: list[SharingFigure] = Field(default_factory=list)
    ablation: AblationSettings = Field(default_factory=AblationSettings)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, content: Any) -> Any:
        """Fill in what follows from names: description, output, labels, titles and folders."""
        content = {"description": content.get("name"), "output": content.get("name")} | content
        for kind in ("models", "tasks"):
            if isinstance(content.get(kind), dict):
                content[kind] = {
                    name: written_out(kind, name, entry) for name, entry in content[kind].items()
                }
        if isinstance(content.get("tasks"), dict):
            content["tasks"] = {
                name: with_loader(entry, content["tasks"])
                for name, entry in content["tasks"].items()
            }
        return {key: value for key, value in content.items() if value is not None}

    @model_validator(mode="after")
    def _references(self) -> Study:
        for figure in self.sharing:
            self.task(figure.rows)
            self.task(figure.columns)
        for target in self.ablation.targets:
            self.task(target.task)
        for model in self.ablation.models or ():
            self.copies(model)
        for name, spec in self.tasks.items():
            if spec.same_clips_as is None:
                continue
            if (
                spec.same_clips_as == name
                or self.task(spec.same_clips_as).same_clips_as is not None
            ):
                raise ValueError(
                    f"tasks.{name}.same_clips_as: expected a task that has a pass of its own"
                )
        folders = [spec.folder for spec in self.encoders.values()]
        if len(set(folders)) < len(folders):
            raise ValueError(
                f"two models share a folder ({', '.join(folders)}); give each its own `folder`"
            )
        labels = [spec.label for spec in self.models.values()]
        if len(set(labels)) < len(labels):
            raise ValueError(
                f"two models share a label ({', '.join(labels)}); give each its own `label`"
            )
        return self

    @property
    def directory(self) -> Path:
        """Where the study's results are; $AAPE_OUTPUT replaces `outputs` in front of relative paths."""
        return self.base / os.environ.get("AAPE_OUTPUT", "outputs") / self.output

    @property
    def encoders(self) -> dict[str, ModelSpec]:
        """What is collected: every model; one of several seeds as `name-0`, `name-1`, ..."""
        encoders: dict[str, ModelSpec] = {}
        for name, spec in self.models.items():
            if spec.seeds:
                encoders |= {f"{name}-{seed}": spec.with_seed(seed) for seed in spec.seeds}
            else:
                encoders[name] = spec
        return encoders

    def copies(self, model: str) -> list[str]:
        """The names under which a model is collected: its own, or one per seed. Raises ValueError as `encoder`."""
        if model in self.models and self.models[model].seeds:
            return [f"{model}-{seed}" for seed in self.models[model].seeds]
        self.encoder(model)
        return [model]

    def artifacts_directory(self, task: str, model: str) -> Path:
        """Folder of one encoder's artifacts on one task. Raises ValueError as `encoder` and `task`."""
        self.task(task)
        return self.directory / f"{task}_{self.encoder(model).folder}"

    def encoder(self, name: str) -> ModelSpec:
        """The entry of a model, or of one seed of it (`untrained-0`). Raises ValueError with the nearest name."""
        if name not in self.encoders:
            raise ValueError(
                f"study {self.name!r} has no model {name!r}; {nearest(name, self.encoders)}"
            )
        return self.encoders[name]

    def task(self, name: str) -> TaskSpec:
        """A task's entry. Raises ValueError with the nearest name."""
        if name not in self.tasks:
            raise ValueError(
                f"study {self.name!r} has no task {name!r}; {nearest(name, self.tasks)}"
            )
        return self.tasks[name]

    def rate(self, task: str) -> float:
        """Share of neurons that the AAPE rank keeps on a task."""
        return self.task(task).rate or self.selection.rate

    def select_by(self, task: str) -> dict[str, Any]:
        """Arguments of `select` for a task: rate, quantile and weak_filter."""
        return self.selection.model_dump() | {"rate": self.rate(task)}

    def caution(self) -> str:
        """What a reader must know before any number: the study's note, and whether models or sounds are substitutes."""
        if self.substitute:
            return f"**Substitute models or sounds.** {self.note}".strip()
        return self.note

    def heading(self, model: str | None = None, task: str | None = None) -> str:
        """Markdown for the top of a notebook: what it shows, and the caution."""
        shown = self.description
        if model and task:
            shown = f"{self.encoder(model).label} on {self.task(task).title}"
        return f"## {shown}\n\n{self.caution()}".strip()

    def _facts(self) -> dict[str, Any]:
        return {
            "models": ", ".join(f"{name} ({spec.label})" for name, spec in self.models.items()),
            "tasks": ", ".join(self.tasks),
            "results in": self.directory,
            "note": self.note or "-",
        }

    def _title(self) -> str:
        return f"Study {self.name!r}: {self.description}"

    __str__ = Displayed.__repr__


def load_study(name_or_path: str | Path | Study) -> Study:
    """Load a study by name (a file in `studies/` of the clone) or from a YAML file. A loaded study is returned as it is.

    Raises:
        FileNotFoundError: there is no such study.
        ValueError: an unknown key (with the nearest known one), an invalid value, or a reference to a task or model that
            the study does not have.
    """
    if isinstance(name_or_path, Study):
        return name_or_path
    path = Path(name_or_path)
    shipped = ROOT / "studies"
    if path.suffix not in (".yaml", ".yml"):
        path = shipped / f"{name_or_path}.yaml"
    if not path.is_file():
        names = (
            ", ".join(sorted(p.stem for p in shipped.glob("*.yaml")))
            or "none, they need a clone of the repository"
        )
        raise FileNotFoundError(
            f"no study {str(name_or_path)!r} at {path}; shipped: {names}; or give a YAML file"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected the keys of a study, such as `models` and `tasks`")
    if "base" in content:
        raise ValueError(
            f"{path}: 'base' is not a valid study key; paths are relative to the study file"
        )
    base = ROOT if path.resolve().parent == shipped else path.resolve().parent
    try:
        return Study.model_validate({"name": path.stem} | content | {"base": base})
    except ValidationError as error:
        raise ValueError(f"{path}: " + "; ".join(_explained(e) for e in error.errors())) from None


def _explained(error: Any) -> str:
    """One of pydantic's errors as a sentence."""
    where = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    text = f"{where}: {message}" if where else message
    if error["type"] in ("value_error", "missing"):
        return text
    text += f", found {str(error.get('input'))[:80]!r}"
    if error["type"] == "string_type" and isinstance(error["input"], (bool, int, float)):
        text += "; put it in quotes, because YAML reads yes, no and numbers as other types"
    return text
