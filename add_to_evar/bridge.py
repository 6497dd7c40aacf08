"""Any model of EVAR (https://github.com/nttcslab/eval-audio-repr) as an `Encoder`, any of its tasks as a `Task`.

The environment variable EVAR points to a clone, as EVAR itself has it. Nothing of EVAR is imported before `load` is
called, and what the clone or this Python lacks is named with the command that gets it. The task table is read, not
run, so that tasks need nothing of EVAR installed.

    EVAR=~/evar python -c "
    from add_to_evar import bridge as evar
    encoder = evar.load('config/m2d.yaml', options={'weight_file': '/data/m2d_vit_base-.../checkpoint-300.pth'})
    task = evar.load_task('cremad')"
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.util
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from aape.encoders.encoder import Encoder, sha256_of_state
from aape.encoders.module import from_module
from aape.files import sha256_of, write_text
from aape.sounds.loading import from_metadata
from aape.sounds.task import Task

_RAW = "https://raw.githubusercontent.com"
_MLP = f"{_RAW}/daisukelab/general-learning/a3391e8d526e3cde2a5e4b765f832c6b83934416/MLP/torch_mlp_clf2.py"
_CLF = f"{_RAW}/daisukelab/sound-clf-pytorch/85105ca51f4d5d378fb337dd1e21cde0396df756/for_evar"
_M2D = "https://github.com/nttcslab/m2d"  # its README, section 1, lists the files of MAE that the patch applies to

# Neurons of the models whose MLP activations are modules of their own: audio_repr module -> pattern.
NEURONS = {
    "ar_m2d": "runtime.backbone.blocks.*.mlp.act",
    "ar_whisper": "model.encoder.layers.*.activation_fn",
    "ar_hubert": "backbone.encoder.layers.*.feed_forward.intermediate_act_fn",
    "ar_wavlm": "backbone.encoder.layers.*.feed_forward.intermediate_act_fn",
    "ar_data2vec": "backbone.encoder.layers.*.feed_forward.intermediate_act_fn",
    "ar_wav2vec2": "backbone.wav2vec2.encoder.layers.*.feed_forward.intermediate_act_fn",
}

# What lineareval.py and M2D's runtime read from a configuration: M2D's front end and EVAR's
# settings for its linear evaluation.
_M2D_SETTINGS: dict[str, Any] = {
    "feature_d": 3840,
    "sample_rate": 16000,
    "n_fft": 400,
    "window_size": 400,
    "hop_size": 160,
    "n_mels": 80,
    "f_min": 50,
    "f_max": 8000,
    "window": "hanning",
    "mean": -7.1,
    "std": 4.2,
    "output_layers": [-1],
    "encoder_only": True,
    "dur_frames": None,
    "freeze_embed": None,
    "flat_features": False,
    "batch_size": 128,
    "lr_lineareval": 0.00003,
    "report_per_epochs": 50,
    "early_stop_epochs": 20,
    "training_mask": 0.0,
    "warmup_epochs": 5,
}

_FOLDERS = {
    16000: "16k",
    22000: "22k",
    32000: "32k",
    44100: "44k",
    48000: "48k",
}  # evar/ds_tasks.py, _fs_table


@dataclass(frozen=True)
class Requirement:
    """Something that EVAR needs and does not contain: what, whether it is there, and how to get it."""

    what: str
    present: bool
    command: str
    needed_for: str


def clone(path: str | Path | None = None) -> Path:
    """The EVAR clone: `path`, or what the environment variable EVAR points to.

    Raises:
        FileNotFoundError: neither is given, or the folder is no EVAR clone.
    """
    given = path or os.environ.get("EVAR")
    get = "git clone https://github.com/nttcslab/eval-audio-repr.git evar"
    if not given:
        raise FileNotFoundError(
            f"The environment variable EVAR is not set. It must point to a clone of EVAR: {get} && export EVAR=$PWD/evar"
        )
    root = Path(given).expanduser().resolve()
    if not (root / "evar" / "ds_tasks.py").is_file():
        raise FileNotFoundError(
            f"EVAR={root} is no EVAR clone: expected {root / 'evar' / 'ds_tasks.py'}, found "
            f"{'a folder without it' if root.is_dir() else 'no such folder'}. Get one with: {get}"
        )
    return root


def has_package(name: str) -> bool:
    """Whether this Python has a package, without importing it."""
    return importlib.util.find_spec(name) is not None


def requirements(root: Path) -> list[Requirement]:
    """Everything outside the clone's own files that EVAR needs, present or not."""
    pip = f"{sys.executable} -m pip install"
    packages = {
        "torchaudio": (
            "--no-deps torchaudio==2.11.0  # --no-deps leaves torch alone",
            "all of EVAR",
        ),
        "easydict": ("easydict", "all of EVAR"),
        "nnAudio": ("nnAudio", "all of EVAR"),
        "einops": ("einops", "ar_m2d"),
        "fire": ("fire", "lineareval.py"),
        "torchlibrosa": ("--no-deps torchlibrosa", "ar_cnn14"),
    }
    borrowed = {
        "evar/utils/torch_mlp_clf2.py": (_MLP, "lineareval.py"),
        "evar/sampler.py": (f"{_CLF}/sampler.py", "lineareval.py"),
        "evar/cnn14_decoupled.py": (f"{_CLF}/cnn14_decoupled.py", "ar_cnn14"),
    }
    runtime = root / "external" / "m2d" / "m2d"
    borrowed_by_m2d = ("models_mae.py", "pos_embed.py", "timm_layers_pos_embed.py")
    whole = all((runtime / f).is_file() for f in ("runtime_audio.py", *borrowed_by_m2d))
    get_m2d = f"git clone {_M2D} {runtime.parent}  # then its README, section 1: the curl lines and the patch"
    return [
        *(
            Requirement(f"the package {name}", has_package(name), f"{pip} {what}", purpose)
            for name, (what, purpose) in packages.items()
        ),
        *(
            Requirement(
                str(root / name),
                (root / name).is_file(),
                f"curl -fL {address} -o {root / name}",
                purpose,
            )
            for name, (address, purpose) in borrowed.items()
        ),
        Requirement(f"{runtime} with {', '.join(borrowed_by_m2d)}", whole, get_m2d, "ar_m2d"),
    ]


def require(root: Path, *purposes: str) -> None:
    """Raise ImportError naming all that is missing for `purposes` ("lineareval.py", "ar_m2d", ...), with commands."""
    wanted = ("all of EVAR", *purposes)
    lacking = [r for r in requirements(root) if not r.present and r.needed_for in wanted]
    if lacking:
        lines = "\n".join(f"  {r.what} (for {r.needed_for}): {r.command}" for r in lacking)
        raise ImportError(
            f"EVAR at {root} lacks {len(lacking)} thing(s) for {', '.join(purposes) or 'anything'}:\n{lines}"
        )


@contextlib.contextmanager
def importable(root: Path) -> Iterator[None]:
    """Within: `import evar` finds the clone, and relative paths are the clone's, as EVAR's code expects.

    EVAR appends folders to sys.path when it is imported (M2D's folder has a common.py of its own): they are gone
    afterwards. Raises ImportError where another `evar` has been imported already.
    """
    loaded = sys.modules.get("evar")
    where = next(iter(getattr(loaded, "__path__", [])), None) or getattr(loaded, "__file__", None)
    if loaded is not None and Path(str(where)).resolve() not in (
        root / "evar",
        root / "evar" / "__init__.py",
    ):
        raise ImportError(
            f"expected the package evar of {root}, but {where} is imported already: start a new process"
        )
    paths, folder, before = list(sys.path), os.getcwd(), os.environ.get("EVAR")
    sys.path.insert(0, str(root))
    os.environ["EVAR"] = str(root)  # ar_m2d.py looks for external/m2d there
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(folder)
        sys.path[:] = paths
        if before is None:
            del os.environ["EVAR"]
        else:
            os.environ["EVAR"] = before


def read_config(
    root: Path, config: str | Path, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """An EVAR configuration file with options on top, as lineareval.py has them.

    Args:
        root: the clone; a relative `config` is looked for here first, then in the working directory.
        options: settings by name. Names must be in the file already, new ones start with "+".

    Raises:
        FileNotFoundError: no such configuration.
        ValueError: not a mapping with `audio_repr` and `sample_rate`, or an unknown key (the nearest is named).
    """
    config = Path(config)
    path = next((p for p in (root / config, config) if p.is_file()), None)
    if path is None:
        there = sorted(p.stem for p in (root / "config").glob("*.yaml"))
        near = difflib.get_close_matches(config.stem, there, 3)
        raise FileNotFoundError(
            f"no EVAR configuration {root / config}. {'Did you mean' if near else 'There are'}: {', '.join(near or there)}"
        )
    settings = yaml.safe_load(path.read_text())
    if not isinstance(settings, dict) or not {"audio_repr", "sample_rate"} <= set(settings):
        raise ValueError(
            f"{path}: expected an EVAR configuration, a mapping with audio_repr and sample_rate"
        )
    for key, value in (options or {}).items():
        name = key.removeprefix("+")
        if name == key and name not in settings:
            near = difflib.get_close_matches(name, settings, 1)
            raise ValueError(
                f"{path} has no setting {name!r}{f', did you mean {near[0]!r}' if near else ''}? "
                f"Write '+{name}' to add a new one."
            )
        settings[name] = value
    return settings


class _NoData:
    """Stands for the training data where none was given; says so when a model wants to look at it."""

    batch_size = 0

    def __iter__(self) -> Iterator[Tensor]:
        raise ValueError(
            "this EVAR model normalises with statistics of the training data: pass task=, or options with mean and std"
        )


class _TrainWaves(torch.utils.data.Dataset):
    """The training split's waves, cut or padded as the task says."""

    def __init__(self, task: Task, sample_rate: int) -> None:
        self.task, self.sample_rate = task, sample_rate
        held_out = {
            "test",
            "valid",
            "fold1",
        }  # five-fold tasks: EVAR's first pass holds out the first fold
        self.rows = [i for i, split in enumerate(task.splits) if split not in held_out]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return torch.as_tensor(self.task.read(self.rows[index], self.sample_rate)[0])


class _Embed(nn.Module):
    """Wave -> clip embedding through an AR_* model, whose answer is checked once per call."""

    def __init__(self, ar: nn.Module) -> None:
        super().__init__()
        self.ar = ar

    def forward(self, wave: Tensor) -> Tensor:
        out = self.ar(wave)
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(wave):
            found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"{type(self.ar).__name__}: expected embeddings [{len(wave)}, dim], found {found}"
            )
        return out


def load(
    config: str | Path = "config/m2d.yaml",
    *,
    options: Mapping[str, Any] | None = None,
    activations: str | None = None,
    task: Task | None = None,
    clip_seconds: float | None = None,
    name: str | None = None,
    seed: int = 0,
    path: str | Path | None = None,
) -> Encoder:
    """An EVAR model, built by EVAR's own code, as an Encoder.

    Args:
        config: an EVAR configuration file, e.g. "config/m2d.yaml", relative to the clone.
        options: settings on top, e.g. {"weight_file": "/data/.../checkpoint-300.pth"}.
        activations: glob over the AR_* model's modules, see `aape.from_module`; None: known for the models in
            `NEURONS`.
        task: gives the clip length, and training data to models that normalise with its statistics. EVAR draws random
            crops of shuffled clips for these; here the first 5,000 training clips in order are used.
        clip_seconds: the longest wave, s; by default the task's, or 10 s. M2D cuts longer waves itself.
        name: what tables call it; by default the AR_* class.
        seed: for models that draw weights (M2D with a weight_file that ends in "random").
        path: the clone, instead of the environment variable EVAR.

    Raises:
        FileNotFoundError: no clone, configuration or weight file.
        ImportError: something that EVAR needs is missing; named with the command that gets it.
        ValueError: unknown option or AR_* class, a model that reads files instead of waves, or no known neurons.
    """
    root = clone(path)
    settings = read_config(root, config, options)
    module_name, _, class_name = str(settings["audio_repr"]).partition(".")
    require(root, module_name)
    sample_rate = int(settings["sample_rate"])
    seconds = clip_seconds or (task.clip_seconds if task is not None else 10.0)
    settings.setdefault("mean", None)
    settings.setdefault("std", None)
    settings.setdefault("return_filename", False)
    if settings["return_filename"]:
        raise ValueError(
            f"{config}: this model reads files, not waves (return_filename), and cannot be wrapped"
        )
    settings.update(
        unit_samples=int(sample_rate * seconds), task_name=task.name if task is not None else ""
    )
    weight_file = settings.get("weight_file")
    if weight_file and Path(str(weight_file)).suffix in {
        ".pth",
        ".pt",
        ".ckpt",
        ".bin",
        ".pkl",
        ".safetensors",
    }:
        found = next(
            (
                p
                for p in (Path(weight_file).expanduser().absolute(), root / weight_file)
                if p.is_file()
            ),
            None,
        )
        if found is None:
            # Some AR_* classes would start a download here, others fail far from the cause.
            raise FileNotFoundError(
                f"{config} names the weights {weight_file}: no such file there or under {root}. Preparing-models.md in "
                "the clone says where to get them; options={'weight_file': ...} names another place."
            )
        settings["weight_file"] = str(found)
    if activations is None and module_name not in NEURONS:
        raise ValueError(
            f"{config}: which modules of {settings['audio_repr']} are neurons is not known here; pass activations=, "
            f"a pattern over its modules. Known are: {', '.join(NEURONS)}"
        )
    with importable(root):
        ar = _build(root, module_name, class_name, settings, seed)
        if module_name == "ar_m2d":  # it cuts longer waves itself
            seconds = clip_seconds or float(ar.cfg.input_size[1] * ar.cfg.hop_size / sample_rate)
        loader = _NoData() if task is None else _loader(task, sample_rate)
        ar.eval()
        ar.precompute(torch.device("cpu"), loader)
    ar.requires_grad_(False)
    model = _Embed(ar)
    pattern = activations or NEURONS[module_name]
    try:
        encoder = from_module(
            model,
            activations=f"ar.{pattern}",  # the AR_* model sits in _Embed.ar
            embed=model,
            sample_rate=sample_rate,
            clip_seconds=seconds,
            name=name or class_name,
            weights=_provenance(ar, settings, config),
            chunks=module_name == "ar_m2d",
        )
    except ValueError as error:
        raise ValueError(f"{settings['audio_repr']} of EVAR: {error}") from error
    # the layers are named as in EVAR's own class
    activations_of_ar = {
        layer.removeprefix("ar."): module for layer, module in encoder.activations.items()
    }
    return replace(encoder, activations=activations_of_ar)


def _build(
    root: Path, module_name: str, class_name: str, settings: Mapping[str, Any], seed: int
) -> Any:
    try:
        module = importlib.import_module(f"evar.{module_name}")
    except ModuleNotFoundError as error:
        if error.name == f"evar.{module_name}":
            there = sorted(p.stem for p in (root / "evar").glob("ar_*.py"))
            raise ValueError(
                f"EVAR at {root} has no model {module_name!r}; it has {', '.join(there)}"
            ) from error
        raise ImportError(
            f"evar.{module_name} needs the package {error.name!r}: {sys.executable} -m pip install {error.name}"
        ) from error
    cls = getattr(module, class_name, None)
    if cls is None:
        there = [n for n in vars(module) if n.startswith("AR_")]
        raise ValueError(
            f"evar.{module_name} has no class {class_name!r}; it has {', '.join(there)}"
        )
    easydict = importlib.import_module("easydict").EasyDict
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # timm.models.layers, in M2D's code
        torch.manual_seed(seed)
        try:
            return cls(easydict(settings))
        except NameError as error:
            sys.modules.pop(f"evar.{module_name}", None)  # so that another try imports it again
            # EVAR swallows failed imports of what a model needs; they come back as undefined names (m2d issue 12).
            raise ImportError(
                f"{module_name}.{class_name} of EVAR at {root}: {error}. An import that this model needs has failed "
                "silently; Preparing-models.md in the clone says what to install for it."
            ) from error


def _loader(task: Task, sample_rate: int) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(_TrainWaves(task, sample_rate), batch_size=16, shuffle=False)


def _provenance(ar: nn.Module, settings: Mapping[str, Any], config: str | Path) -> dict[str, Any]:
    weight_file = settings.get("weight_file")
    if weight_file and Path(str(weight_file)).is_file():
        return {
            "source": str(weight_file),
            "sha256": sha256_of(Path(weight_file)),
            "evar": str(config),
        }
    source = str(weight_file or settings.get("pretrained_model") or settings["audio_repr"])
    return {"source": source, "sha256": sha256_of_state(ar), "evar": str(config)}


def write_config(
    path: str | Path,
    neurons: Any,
    *,
    gain: float = 0.0,
    weight_file: str = "external/m2d/m2d_vit_base-80x608p16x16-221006-mr7/checkpoint-300.pth",
    note: str = "",
) -> Path:
    """Write an EVAR configuration that steers these neurons of M2D, for lineareval.py and add_to_evar/le_eval_only.py.

        selection = select(probabilities, classes=classes)
        write_config("config/cremad_ang.yaml", selection.neurons("ANG"), note="cremad: ANG")

    Args:
        path: the .yaml to write, usually in the clone's config folder.
        neurons: integers [k, 2] of (layer, neuron), both from 0, e.g. `Selection.neurons(...)`; their intersection for
            two classes is `np.argwhere(members[:, :, a] & members[:, :, b])`. Empty: the unchanged model.
        gain: factor on their activations, `int_gain`.
        weight_file: of M2D, relative to the clone or absolute.
        note: a line for the reader, written as a comment.

    Raises:
        ValueError: not integers [k, 2], a pair twice or negative, or a gain that is no number of 0 or more.
    """
    pairs = np.asarray(neurons)
    pairs = pairs if pairs.size else np.empty((0, 2), dtype=np.int64)
    whole = (
        pairs.ndim == 2
        and pairs.shape[1] == 2
        and np.issubdtype(pairs.dtype, np.integer)
        and (pairs >= 0).all()
    )
    if not whole or len(np.unique(pairs, axis=0)) < len(pairs):
        found = f"{pairs.dtype} {list(pairs.shape)}: {pairs.tolist()}"[:200]
        raise ValueError(
            f"neurons must be integers [k, 2] of (layer, neuron), both from 0, each pair once; found {found}"
        )
    if not (math.isfinite(gain) and gain >= 0):
        raise ValueError(f"gain must be 0 or more (0 silences, 1 changes nothing), found {gain}")
    ordered = sorted(pairs.tolist())
    settings = {
        "audio_repr": "ar_m2d.AR_M2D_Steering_Neurons",
        "weight_file": weight_file,
    } | _M2D_SETTINGS
    lines = [
        f"# {line}"
        for line in (f"{len(ordered)} neurons of M2D times {gain:g}", *note.splitlines())
    ]
    lines += [yaml.safe_dump(settings, sort_keys=False).rstrip()]
    lines += [
        f"int_gain: {float(gain)}",
        f"int_neurons: [{', '.join(f'[{i}, {j}]' for i, j in ordered)}]",
    ]
    write_text(Path(path), "\n".join(lines) + "\n")
    return Path(path)


@dataclass(frozen=True)
class Definition:
    """One line of EVAR's task table: number of folds (1: train, valid, test), clip length in s, folder under work/."""

    folds: int
    clip_seconds: float
    folder: str
    balanced: bool


def definitions(path: str | Path | None = None) -> dict[str, Definition]:
    """EVAR's task table (`_defs` in evar/ds_tasks.py) by task name, additions of register_tasks.py included.

    Raises:
        FileNotFoundError: no clone.
        ValueError: the table is not where it was in 2026, or an entry has another form.
    """
    source = clone(path) / "evar" / "ds_tasks.py"
    table: dict[str, Any] = {}
    for node in ast.parse(source.read_text(encoding="utf-8"), str(source)).body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", None) for t in node.targets] == [
            "_defs"
        ]:
            table |= ast.literal_eval(node.value)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = node.value
            if ast.unparse(call.func) == "_defs.update" and len(call.args) == 1:
                table |= ast.literal_eval(call.args[0])
    if not table:
        raise ValueError(
            f"{source}: expected a table _defs = {{task: [folds, seconds, folder, balanced]}}, found none"
        )
    found = {}
    for name, entry in table.items():
        if not isinstance(entry, (list, tuple)) or len(entry) != 4:
            raise ValueError(
                f"{source}: task {name!r} is {entry!r}, expected [folds, seconds, folder, balanced]"
            )
        found[name] = Definition(int(entry[0]), float(entry[1]), entry[2] or name, bool(entry[3]))
    return found


def load_task(task: str, *, sample_rate: int = 16000, path: str | Path | None = None) -> Task:
    """A task of the EVAR clone: evar/metadata/<task>.csv and work/<rate>/<folder>, clip length of its task table.

    Args:
        task: EVAR's name, e.g. "cremad". gise51, vc1_gender and vc1_country: see add_to_evar/README.md.
        sample_rate: which of the clone's resampled copies to read, Hz.
        path: the clone, instead of the environment variable EVAR.

    Raises:
        FileNotFoundError: no clone, metadata, folder or file; the EVAR command that makes it is named.
        ValueError: a task that EVAR does not know, or a rate that it keeps no folder for.
    """
    root = clone(path)
    known = definitions(root)
    if task not in known:
        near = difflib.get_close_matches(task, known, 3)
        ours = task in ("gise51", "vc1_gender", "vc1_country")
        raise ValueError(
            f"EVAR at {root} knows no task {task!r}. "
            + ("Register it: python add_to_evar/register_tasks.py. " if ours else "")
            + f"{'Did you mean' if near else 'It knows'}: {', '.join(near or sorted(known))}"
        )
    if sample_rate not in _FOLDERS:
        raise ValueError(
            f"EVAR keeps audio at {sorted(_FOLDERS)} Hz, found sample_rate={sample_rate}"
        )
    definition = known[task]
    table = root / "evar" / "metadata" / f"{task}.csv"
    doubled = table.with_name(
        f"{task}.csv.csv"
    )  # make_metadata.py adds .csv twice for nspitch and nsvelocity
    if not table.is_file() and doubled.is_file():
        table = doubled
    if not table.is_file():
        raise FileNotFoundError(
            f"no metadata {table}. In {root}: python evar/utils/make_metadata.py {task} <folder of the dataset>, "
            "see its Preparing-datasets.md, or `aape metadata`"
        )
    audio = root / "work" / _FOLDERS[sample_rate] / definition.folder
    if not audio.is_dir():
        raise FileNotFoundError(
            f"no audio folder {audio}. In {root}: python prepare_wav.py <folder of the dataset> "
            f"{audio.relative_to(root)} {sample_rate}"
        )
    return from_metadata(table, audio, clip_seconds=definition.clip_seconds, name=task)
