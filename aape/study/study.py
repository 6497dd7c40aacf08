"""A study: models, tasks, thresholds, figures and ablation targets, in one validated YAML file.

The shortest one names two things, everything else has a default:

    models:
      whisper: {hub: openai/whisper-tiny}
    tasks:
      digits: {folder: recordings, pattern: "{label}_{group}_{take}.wav", clip_seconds: 1.0}

Models and tasks take any names, at any number. Besides `hub` (a model by name or folder), `folder` (sounds in class
folders, or named by a pattern) and `metadata` (a CSV), `loader: package.module:function` with `options` calls any
Python function, also of a module beside the study's file. **A study file is therefore code: run only those that you
trust.** Paths are relative to the study file, `~`, `$NAME` and `${NAME:-default}` are expanded; the shipped studies
(`studies/` of the clone) count from the repository's root. Results lie in `outputs/<study>/` at the same place;
$AAPE_OUTPUT replaces `outputs`.
"""

from __future__ import annotations

import inspect
import os
import pkgutil
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from aape.display import Displayed
from aape.suggest import nearest

if TYPE_CHECKING:
    from aape.encoders.encoder import Encoder
    from aape.sounds.task import Task

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds common.py
_LOADING = threading.Lock()
ROLE_FOLDERS = {"ssl": "analysis", "sl": "vit", "untrained": "untrained"}


def _one_name(name: str) -> str:
    """Task, model and figure names become names of folders and files, none of which may lead elsewhere."""
    if not name or name[0] == "." or set(name) & set("/\\") or not name.isprintable():
        raise ValueError(f"expected a name without slashes that starts with no dot, found {name!r}")
    return name


Name = Annotated[str, AfterValidator(_one_name)]
Share = Annotated[float, Field(gt=0, le=1)]

# Short form of an entry -> the function that it stands for, and which keys of the entry are arguments of what name.
_SHORT = {
    "hub": ("aape.encoders.hub:from_hub", {"hub": "name_or_folder"}),
    "folder": ("aape.sounds.task:from_folder", {k: k for k in ("folder", "pattern", "clip_seconds")}),
    "metadata": (
        "aape.sounds.task:from_metadata",
        {"metadata": "csv_path"} | {k: k for k in ("audio_dir", "clip_seconds")},
    ),
}
_SHORT_KEYS = {key for _, arguments in _SHORT.values() for key in arguments}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, content: Any) -> Any:
        for key in content if isinstance(content, dict) else ():
            if key not in cls.model_fields:
                known = sorted({*cls.model_fields, *_SHORT_KEYS} - {key, "base"})
                more = "; what its loader takes stands under `options`" * ("options" in cls.model_fields)
                raise ValueError(f"{key!r} is no key here; {nearest(str(key), known)}{more}")
        return content


class Loader(_Strict):
    """A function, `package.module:function`, and its keyword arguments; the short forms are written out as such."""

    loader: str
    options: dict[str, Any] = Field(default_factory=dict)


class ModelSpec(Loader):
    """A model of the study: how it is loaded, and what tables and folders call it.

    `role` says what it is compared as, `label` is its name in tables and figures. `seeds`: it is loaded once for each,
    as `options.seed`, into folders of their own, and has one row of a table, mean and range.
    """

    role: Literal["ssl", "sl", "untrained"] | None = None
    label: str
    folder: Name
    # task -> splits that the weights were trained on, marked as in-sample wherever they are tested
    heard: dict[str, list[str]] = Field(default_factory=dict)
    seeds: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _each_seed_once(self) -> ModelSpec:
        if len(set(self.seeds)) < len(self.seeds) or (self.seeds and "seed" in self.options):
            raise ValueError(f"seeds: each once, and no options.seed beside them; found {list(self.seeds)}")
        return self

    def with_seed(self, seed: int) -> ModelSpec:
        """The entry of one seed."""
        own = {"label": f"{self.label}, seed {seed}", "folder": f"{self.folder}-{seed}", "seeds": ()}
        return self.model_copy(update=own | {"options": self.options | {"seed": seed}})


class TaskSpec(Loader):
    """A task of the study: how it is loaded, and what tables call it."""

    title: str
    kind: Literal["event", "pitch", "genre", "language", "gender", "country", "emotion", "other"] = "other"
    rate: Share | None = None  # share of neurons that survive the AAPE rank; None: the study's


def _written_out(kind: str, name: str, entry: Any) -> Any:
    """An entry of `models` or `tasks` with what follows from its name and its short form written out."""
    if not isinstance(entry, dict):
        return entry
    forms = ("loader", "hub") if kind == "models" else ("loader", "folder", "metadata")
    given = [form for form in forms if entry.get(form) is not None]
    if len(given) != 1:
        raise ValueError(f"{kind}.{name}: expected one of {', '.join(forms)}; found {' and '.join(given) or 'none'}")
    folder = ROLE_FOLDERS.get(str(entry.get("role")), name)
    entry = ({"label": name, "folder": folder} if kind == "models" else {"title": name}) | entry
    if given == ["loader"]:
        return entry
    if "metadata" in entry:
        entry.setdefault("audio_dir", str(Path(_filled(str(entry["metadata"]))).parent))
    loader, arguments = _SHORT[given[0]]
    options = {} if kind == "models" else {"name": name}
    options |= {argument: entry.pop(key) for key, argument in arguments.items() if key in entry}
    return entry | {"loader": loader, "options": options | entry.get("options", {})}


class CollectSettings(_Strict):
    """The collecting pass."""

    batch_size: int = Field(default=32, ge=1)
    splits: list[str] | None = None
    keep_clips: int | None = Field(default=None, ge=1)
    on_bad_clip: Literal["stop", "skip"] = "stop"


class SelectionSettings(_Strict):
    """Thresholds of the selection (paper, LAPE)."""

    rate: Share = 0.01
    quantile: float = Field(default=0.95, gt=0, le=1)
    weak_filter: Literal["lape", "paper"] = "lape"


class ChanceSettings(_Strict):
    """Permutations and calibrated selection."""

    permutations: int = Field(default=1000, ge=20)
    q: float = Field(default=0.05, gt=0, lt=1)
    effect: float = Field(default=0.1, ge=0, le=1)  # least difference of p inside and outside the class
    resamples: int = Field(default=20, ge=1)  # of equal clips per class, and of halves of the groups


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
    identify: Literal["train", "all"] = "train"  # which clips choose the neurons; the paper's way is "all"
    modes: tuple[Literal["mean", "zero"], ...] = Field(default=("mean", "zero"), min_length=1)
    # Activity-matched random sets in the first mode; None: so many that one class alone can reach q < 0.05, at least 199.
    controls: int | None = Field(default=None, ge=0)
    other_modes: int = Field(default=39, ge=0)  # activity-matched random sets in each other mode
    disjoint: int = Field(default=39, ge=0)  # activity-matched sets without the target's neurons, in the first mode
    # Test clips of each other class in which the change of other classes is measured; None: all.
    panel: int | None = Field(default=None, ge=1)
    gains: list[float] = Field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0])
    off_target: bool = True  # change each class's neurons, measure every class
    bootstrap: int = Field(default=2000, ge=0)

    @model_validator(mode="after")
    def _once(self) -> AblationSettings:
        for i, target in enumerate(self.targets):
            if target in self.targets[:i]:
                raise ValueError(f"target {', '.join(target.classes)} of {target.task} ({target.mode}) is stated twice")
        return self


class Study(Displayed, _Strict):
    """See the module's docstring. `base` is the folder that paths and outputs are relative to."""

    name: str
    description: str
    base: Path = Field(default=ROOT, exclude=True)
    stand_in: bool = False  # results of stand-in sounds or models, said wherever a number is shown
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
        """What follows from names: description, output, labels, titles and folders."""
        content = {"description": content.get("name"), "output": content.get("name")} | content
        for kind in ("models", "tasks"):
            if isinstance(content.get(kind), dict):
                content[kind] = {name: _written_out(kind, name, entry) for name, entry in content[kind].items()}
        return {k: v for k, v in content.items() if v is not None}

    @model_validator(mode="after")
    def _references(self) -> Study:
        for task in [t for f in self.sharing for t in (f.rows, f.columns)] + [t.task for t in self.ablation.targets]:
            self.task(task)
        for model in self.ablation.models or ():
            self.copies(model)
        folders = [spec.folder for spec in self.encoders.values()]
        if len(set(folders)) < len(folders):
            raise ValueError(f"two models share a folder ({', '.join(folders)}); give each its own `folder`")
        labels = [spec.label for spec in self.models.values()]
        if len(set(labels)) < len(labels):
            raise ValueError(f"two models share a label ({', '.join(labels)}); tables could not tell them apart")
        return self

    @property
    def directory(self) -> Path:
        """Where the study's results lie; $AAPE_OUTPUT replaces `outputs` in front of relative paths."""
        return self.base / os.environ.get("AAPE_OUTPUT", "outputs") / self.output

    @property
    def encoders(self) -> dict[str, ModelSpec]:
        """What is collected: the models, one of several seeds as `name-0`, `name-1`, ..."""
        found: dict[str, ModelSpec] = {}
        for name, spec in self.models.items():
            found |= {f"{name}-{seed}": spec.with_seed(seed) for seed in spec.seeds} or {name: spec}
        return found

    def copies(self, model: str) -> list[str]:
        """The names under which a model is collected: itself, or one a seed. Raises ValueError as `encoder`."""
        if model in self.models and self.models[model].seeds:
            return [f"{model}-{seed}" for seed in self.models[model].seeds]
        return [model] if self.encoder(model) else []

    def artifacts_directory(self, task: str, model: str) -> Path:
        """Folder of one encoder's artifacts on one task. Raises ValueError as `encoder` and `task`."""
        self.task(task)
        return self.directory / f"{task}_{self.encoder(model).folder}"

    def encoder(self, name: str) -> ModelSpec:
        """The entry of a model, or of one seed of it (`untrained-0`). Raises ValueError with the nearest name."""
        if name not in self.encoders:
            raise ValueError(f"study {self.name!r} has no model {name!r}; {nearest(name, self.encoders)}")
        return self.encoders[name]

    def task(self, name: str) -> TaskSpec:
        """A task's entry. Raises ValueError with the nearest name."""
        if name not in self.tasks:
            raise ValueError(f"study {self.name!r} has no task {name!r}; {nearest(name, self.tasks)}")
        return self.tasks[name]

    def rate(self, task: str) -> float:
        """Share of neurons that survive the AAPE rank on a task."""
        return self.task(task).rate or self.selection.rate

    def select_by(self, task: str) -> dict[str, Any]:
        """Arguments of `select` for a task: rate, quantile and weak_filter."""
        return self.selection.model_dump() | {"rate": self.rate(task)}

    def heading(self, model: str | None = None, task: str | None = None) -> str:
        """Markdown for the top of a notebook: what it shows, and whether that stands in for something else."""
        what = f"{self.encoder(model).label} on {self.task(task).title}" if model and task else self.description
        mark = " (stand-in)" if self.stand_in and "stand-in" not in what.lower() else ""
        return f"## {what}{mark}" + f"\n\n{self.note}" * bool(self.note)

    def _facts(self) -> dict[str, Any]:
        models = ", ".join(f"{name} ({spec.label})" for name, spec in self.models.items())
        return {
            "models": models,
            "tasks": ", ".join(self.tasks),
            "results in": self.directory,
            "note": self.note or "-",
        }

    def _title(self) -> str:
        return f"Study {self.name!r}: {self.description}"

    __str__ = Displayed.__repr__


class _Loader(yaml.SafeLoader):
    """Plain data only; refuses what hides a mistake (a key twice) or grows without end (aliases)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError("aliases are not for studies: write it out", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: list[Any] = []  # a key can itself be a list, which is refused below
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(f"the key {key.value!r} stands twice", key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


def load_study(name_or_path: str | Path | Study) -> Study:
    """A study by name (a file in `studies/` of the clone) or from a YAML file; one that is loaded comes back as it is.

    Raises:
        FileNotFoundError: no such study.
        ValueError: a key that is not known (with the nearest one) or stands twice, a value that does not fit, a
            reference to a task or model that the study does not have.
    """
    if isinstance(name_or_path, Study):
        return name_or_path
    path, shipped = Path(name_or_path), ROOT / "studies"
    if path.suffix not in (".yaml", ".yml"):
        path = shipped / f"{name_or_path}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in shipped.glob("*.yaml"))) or "none, they need a clone of the repository"
        raise FileNotFoundError(f"no study {str(name_or_path)!r} at {path}; shipped: {names}; or give a YAML file")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if not isinstance(content, dict) or "base" in content:  # which is ours to say
            raise ValueError("expected the keys of a study, of which 'base' is none")
        base = ROOT if path.resolve().parent == shipped else path.resolve().parent
        return Study.model_validate({"name": path.stem} | content | {"base": base})
    except ValidationError as error:
        raise ValueError(f"{path}: " + "; ".join(_explain(e) for e in error.errors())) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a study: {error}") from None


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    found = "" if error["type"] in ("value_error", "missing") else f", found {str(error.get('input'))[:80]!r}"
    if error["type"] == "string_type" and not isinstance(error["input"], (dict, list)):
        found += "; put it in quotes, without which YAML makes yes, no and numbers something else"
    return f"{where}: {error['msg']}{found}".replace("Value error, ", "").removeprefix(": ")


def _filled(path: str) -> str:
    """A path with `$NAME` and `${NAME:-default}` filled in; a variable that is not set stays."""
    return os.path.expandvars(re.sub(r"\$\{(\w+):-([^}]*)\}", lambda m: os.environ.get(m[1]) or m[2], path))


def resolve(key: str, value: Any, base: Path) -> Any:
    """An option's value, paths (keys that end in `_path`, `_dir` or `folder`) expanded and counted from `base`.

    "random" stays as it is, and so does a `name_or_folder` that is no folder.

    Raises:
        ValueError: an environment variable that is not set.
    """
    if not isinstance(value, str) or value == "random" or not key.endswith(("_path", "_dir", "folder")):
        return value
    expanded = os.path.expanduser(_filled(value))
    if "$" in expanded:
        raise ValueError(f"{key}: {value!r} needs an environment variable that is not set; set it or write the path")
    path = base / expanded  # an absolute path stays absolute
    return expanded if key == "name_or_folder" and not path.is_dir() else path


def prepare(study: Study, name: str, spec: Loader) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function that an entry of the study names, and its keyword arguments with paths resolved.

    Raises:
        ValueError: no such module or function, a module of that name elsewhere, an option that it does not take, a
            variable that is not set.
    """
    if (folder := str(study.base)) not in sys.path:
        sys.path.append(folder)
    try:
        made = pkgutil.resolve_name(spec.loader)
        taken = inspect.signature(made)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"loader {spec.loader!r}: expected package.module:function ({error})") from error
    top = re.split(r"[.:]", spec.loader)[0]
    beside, found = study.base / f"{top}.py", getattr(sys.modules.get(top), "__file__", None)
    if beside.is_file() and found and Path(found).resolve() != beside.resolve():
        raise ValueError(
            f"loader {spec.loader!r}: expected {beside}, found a module {top!r} at {found}. Give yours another name."
        )
    resolved = {key: resolve(key, value, study.base) for key, value in spec.options.items()}
    try:
        taken.bind(**resolved)
    except TypeError as error:
        raise ValueError(f"{name}: {spec.loader} has {error}; it takes {', '.join(taken.parameters)}") from None
    return made, resolved


def _load(study: Study, name: str, spec: Loader, expected: type) -> Any:
    made, options = prepare(study, name, spec)
    if not isinstance(loaded := made(**options), expected):
        raise ValueError(f"{spec.loader} returned a {type(loaded).__name__}, expected {expected.__name__}")
    return loaded


def load_encoder(study: Study, model: str) -> Encoder:
    """One of the study's encoders, by a name of `study.encoders`; in threads one after the other.

    Raises:
        ValueError: no such model, no such loader, or what it returned is no Encoder.
    """
    from aape.encoders.encoder import Encoder

    with _LOADING:  # weights that are drawn come from torch's one generator
        return _load(study, model, study.encoder(model), Encoder)


def load_task(study: Study, task: str) -> Task:
    """One of the study's tasks.

    Raises:
        ValueError: no such task, no such loader, or what it returned is no Task.
    """
    from aape.sounds.task import Task

    return _load(study, task, study.task(task), Task)
