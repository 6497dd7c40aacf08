"""Linear evaluation of a steered model with the classifier of an earlier run. Copy this file into an EVAR clone.

NAME
    le_eval_only.py

SYNOPSIS
    le_eval_only.py CONFIG_FILE TASK RUN_FOLDER <flags>

POSITIONAL ARGUMENTS
    CONFIG_FILE
        Steering configuration, e.g. config/m2d_abl_neuron1.yaml: its int_neurons are multiplied by int_gain.
    TASK
    RUN_FOLDER
        logs/<run folder> of `lineareval.py CONFIG TASK` with the unsteered configuration.

FLAGS
    --options=OPTIONS
        As for lineareval.py. What the run was given (weight_file=...) must be given here too.

The program embeds the test split twice with the configured model, once with its steering switched off and once with it
switched on, and applies the run's unchanged classifier to both. It prints EVAR's class-wise table with differences to the
unsteered pass and writes two CSV files into the run folder: le_eval_only-<config>-<hash>.csv (by class) and
...-predictions.csv (by clip, before and after).

Before any difference is printed, the unsteered embeddings are compared with those that the classifier was trained with. A
model with other weights is an error, and so is a weight_file that is not a file: EVAR draws such weights anew each time.

The classifier is the one that EVAR saved, if its TorchMLPClassifier2 has save and load. The public class (seen on
2026-11-22) has neither, and `lineareval.py --save` ends with an AttributeError. The run is then repeated here with the
settings and the seed in its log.txt, and the classifiers of all folds are kept in le_eval_only.pt. The program reports
whether the predictions equal the run's. `lineareval.py` without --save is enough for this.

Cross-validated tasks: lineareval.py saves and reports classes for the last fold only, while its score is the mean over
folds. The first table is for the last fold, as EVAR's is. If the classifiers come from le_eval_only.pt, a second table
covers all folds, with each clip tested once.

Tasks with two classes: the public TorchMLPClassifier2 turns their labels into one column, and its scores are meaningless
(0.52 on separable data, with every ground truth the first class). This program uses two columns.
"""

import ast
import contextlib
import hashlib
import importlib
import json
import os
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import lineareval
import numpy as np
import pandas as pd
import torch
from evar.common import EasyDict, logging, seed_everything
from evar.data import create_dataloader
from evar.ds_tasks import get_defs
from evar.utils.torch_mlp_clf2 import MLP, TorchMLPClassifier2
from sklearn.preprocessing import LabelBinarizer, StandardScaler

SAVED = "le_eval_only.pt"
FORMAT = 2  # of that file
# Settings that make an embedding what it is. The classifier fits only embeddings made with the same ones.
EMBEDDING_KEYS = (
    "sample_rate", "n_fft", "window_size", "hop_size", "n_mels", "f_min", "f_max", "mean", "std", "output_layers",
    "flat_features", "dur_frames", "encoder_only", "task_metadata", "task_data",
)  # fmt: skip


class Classifier(TorchMLPClassifier2):
    """EVAR's classifier, with two label columns for two classes, and a state that can be written and read."""

    def switch_regime(self, y, y_val):
        metric, criterion, n_class, labels, labels_val = super().switch_regime(y, y_val)
        if metric == "acc" and n_class == 2:  # LabelBinarizer gives one column for two classes
            labels, labels_val = (
                None if v is None else np.hstack([1 - v, v]) for v in (labels, labels_val)
            )
        return metric, criterion, n_class, labels, labels_val

    def state(self):
        """Tensors and plain values only, so that reading it back runs no code."""
        scaler = self.standard_scaler
        return {
            "hidden": list(self.hidden_layer_sizes),
            "weights": {k: v.cpu() for k, v in self.model.state_dict().items()},
            "labels": [int(c) for c in self.oh_enc.classes_],
            "scaler": None if scaler is None else {k: torch.as_tensor(getattr(scaler, k)) for k in ("mean_", "scale_", "var_")},
        }  # fmt: skip

    @classmethod
    def from_state(cls, state):
        clf = cls(
            hidden_layer_sizes=tuple(state["hidden"]), standard_scaler=state["scaler"] is not None
        )
        weights = [v for k, v in state["weights"].items() if k.endswith("weight")]
        clf.model = MLP(weights[0].shape[1], clf.hidden_layer_sizes, weights[-1].shape[0]).to(
            clf.device
        )
        clf.model.load_state_dict(state["weights"])
        clf.oh_enc = LabelBinarizer().fit(np.array(state["labels"]))
        clf.criterion = clf.switch_regime(np.array(state["labels"]), None)[1]
        if state["scaler"] is not None:
            clf.standard_scaler = StandardScaler()
            for key, value in state["scaler"].items():
                setattr(clf.standard_scaler, key, value.numpy())
            clf.standard_scaler.n_features_in_ = clf.input_size = weights[0].shape[1]
        return clf


def input_size(clf):
    """Embedding size that a classifier takes."""
    return next(v for k, v in clf.model.state_dict().items() if k.endswith("weight")).shape[1]


def read_run(folder):
    """The configuration of the last run in a log folder, as lineareval.py wrote it into log.txt."""
    log = Path(folder) / "log.txt"
    if not log.is_file():
        raise FileNotFoundError(
            f"{log}: not found. RUN_FOLDER is the folder under logs/ of `python lineareval.py <config> <task>`."
        )
    found = None
    for line in log.read_text(encoding="utf-8").splitlines():
        match = re.search(r"INFO (\{'.*'runtime_cfg': .*\})$", line)
        if match:
            found = match.group(1)
    if found is None:
        raise ValueError(
            f"{log}: expected a line with the run's configuration (a dict with runtime_cfg), found none"
        )
    return EasyDict(ast.literal_eval(found))


def build(cfg, device, train_loader):
    """The configured model, with its statistics, in evaluation mode, as lineareval.py has it."""
    module_name, class_name = cfg.audio_repr.split(".")
    ar = getattr(importlib.import_module(f"evar.{module_name}"), class_name)(cfg).to(device)
    ar.precompute(device, train_loader)
    return ar, torch.nn.DataParallel(ar).to(device)


def check_same_embeddings(run, cfg):
    """Raise ValueError if the steering configuration makes other embeddings than those of the run."""

    def hash_of(path):
        return (
            hashlib.sha256(Path(path).read_bytes()).hexdigest()
            if Path(path).is_file()
            else str(path)
        )

    configured, of_run = cfg.get("weight_file"), run.get("weight_file")
    for whose, weights in (("The run", of_run), ("This configuration", configured)):
        if weights and not Path(weights).is_file():
            raise ValueError(
                f"{whose} has weight_file={weights}, which is not a file: EVAR draws random weights for it, and draws others "
                "each time, so a classifier never meets the model that it was trained with.\nGive lineareval.py and this "
                "program the same checkpoint: --options=weight_file=external/m2d/<model>/checkpoint-300.pth"
            )
    if configured != of_run and hash_of(configured) != hash_of(of_run):
        raise ValueError(
            f"The classifier was trained on embeddings of {of_run}, but this configuration has the weights {configured}. "
            f"If the run was given options, give them here too: --options=weight_file={of_run}"
        )
    for key in EMBEDDING_KEYS:
        values = [settings.get(key) for settings in (run, cfg)]
        if key.startswith(
            "task_"
        ):  # with and without the environment variable EVAR these are written differently
            values = [value and str(Path(value).resolve()) for value in values]
        if values[0] != values[1]:
            raise ValueError(
                f"The run had {key}={run.get(key)!r}, this configuration has {cfg.get(key)!r}: other embeddings."
            )


@contextlib.contextmanager
def unsteered(ar):
    """Switch the steering of a model off: the forward hooks of its MLP activations do nothing within the block."""
    modules = ar.runtime.backbone.named_modules() if hasattr(ar, "runtime") else []
    hooked = [
        module for name, module in modules if name.endswith(".mlp.act") and module._forward_hooks
    ]
    hooks = [module._forward_hooks for module in hooked]
    try:
        for module in hooked:
            module._forward_hooks = type(module._forward_hooks)()
        yield
    finally:
        for module, kept in zip(hooked, hooks, strict=True):
            module._forward_hooks = kept


def check_unsteered(folder, entry, X, df):
    """Raise ValueError if the unsteered model is not the one that the classifier was trained with.

    The embeddings are compared where they are known (from le_eval_only.pt), else the predictions with the run's own.
    """
    if "embeddings" in entry:
        known = entry["embeddings"].numpy()
        off, largest = np.abs(X[: len(known)] - known).max(), np.abs(known).max()
        if not off <= 1e-3 * largest:
            raise ValueError(
                f"{folder}: without steering, the configured model embeds the test clips up to {off:.3g} away from what the "
                f"classifier was trained with (largest value {largest:.3g}). It has other weights or another front end, so "
                "no difference would mean anything."
            )
        return
    written = sorted(folder.glob("*-LE_*.csv"), key=lambda p: p.stat().st_mtime)
    if written and df.GT.nunique() > 2:
        known = pd.read_csv(written[-1], dtype=str).prediction.to_numpy()
        same = (
            (known == df.prediction.astype(str).to_numpy()).mean() if len(known) == len(df) else 0.0
        )
        if same < 0.95:
            raise ValueError(
                f"{folder}: without steering, {same:.0%} of the predictions are those in {written[-1].name}, expected at least "
                "95 %. The model or the classifier is not that of the run."
            )


def check_neurons(cfg, ar):
    """Raise ValueError where a neuron to steer does not exist: EVAR passes over such layers in silence."""
    neurons = [tuple(pair) for pair in cfg.get("int_neurons") or []]
    modules = dict(ar.runtime.backbone.named_modules()) if hasattr(ar, "runtime") else {}
    for layer, neuron in neurons:
        fc1 = next((m for n, m in modules.items() if n.endswith(f".{layer}.mlp.fc1")), None)
        if fc1 is None:
            raise ValueError(
                f"int_neurons [{layer}, {neuron}]: the model has no MLP in layer {layer}, counted from 0"
            )
        if not 0 <= neuron < fc1.out_features:
            raise ValueError(
                f"int_neurons [{layer}, {neuron}]: layer {layer} has neurons 0 to {fc1.out_features - 1}"
            )
    twice = sorted({n for n in neurons if neurons.count(n) > 1})
    if twice:
        raise ValueError(f"int_neurons names {list(twice[0])} {neurons.count(twice[0])} times")
    hooked = {n for n, m in modules.items() if n.endswith(".mlp.act") and m._forward_hooks}
    if {layer for layer, _ in neurons} - {int(n.split(".")[-3]) for n in hooked}:
        raise ValueError(
            f"{cfg.audio_repr} put no hook on some layers of int_neurons: expected a *_Steering_Neurons class"
        )
    if not neurons:
        print(" ** int_neurons is empty: this evaluates the unchanged model. **")
    return neurons


def fit(run, task, folder, n_folds, device):
    """Repeat the run up to its classifiers, in lineareval.py's order so that the random numbers are the same."""
    settings = run.runtime_cfg
    print(f"No saved classifier: repeating the run with seed {settings.seed} on {device}.")
    seed_everything(settings.seed)
    emb_ar, folds = None, []
    for fold in range(1, n_folds + 1):
        loaders = create_dataloader(
            run, fold=fold, seed=settings.seed, balanced_random=False, pin_memory=False
        )
        if loaders[3]:
            raise ValueError(
                f"{task} is a multi-label task: it has no class-wise accuracy to compare"
            )
        if emb_ar is None:
            _, emb_ar = build(run, device, loaders[0])
        (X, y), (X_val, y_val), (X_test, y_test) = (
            lineareval.to_embeddings(emb_ar, loader, device, run.id, fold=fold)
            for loader in loaders[:3]
        )
        clf = Classifier(
            hidden_layer_sizes=tuple(settings.hidden), max_iter=settings.epochs, learning_rate_init=settings.lr,
            early_stopping=settings.early_stop_epochs > 0, n_iter_no_change=settings.early_stop_epochs,
            standard_scaler=settings.standard_scaler, mixup=settings.mixup,
        )  # fmt: skip
        clf.fit(X, y, X_val=X_val, y_val=y_val)
        classes = list(loaders[0].dataset.classes)
        score, df = clf.score(X_test, y_test, classes)
        folds.append({
            "fold": fold, "score": float(score), "classifier": clf.state(), "classes": [str(c) for c in classes],
            "files": [str(f) for f in loaders[2].dataset.df.file_name],
            "embeddings": torch.from_numpy(X_test[:64].copy()),
        })  # fmt: skip
    state = {"format": FORMAT, "task": task, "run": json.dumps(settings), "folds": folds}
    partial = folder / f"{SAVED}.part"
    torch.save(state, partial)
    os.replace(partial, folder / SAVED)
    compare_with_run(folder, df, np.mean([f["score"] for f in folds]), len(folds[0]["classes"]))
    return state


def compare_with_run(folder, df, score, n_classes):
    """Say whether the repeated run gave what lineareval.py left in the folder: last fold's predictions, mean score."""
    written = sorted(folder.glob("*-LE_*.csv"), key=lambda p: p.stat().st_mtime)
    if n_classes == 2:
        print(
            " ** Two classes: lineareval.py's own score of this run means nothing with the public classifier. **"
        )
    elif written:
        theirs = pd.read_csv(written[-1], dtype=str)
        same = 0
        if len(theirs) == len(df):
            same = int((theirs.prediction.values == df.prediction.astype(str).values).sum())
        print(
            f"Repeated run: score {score:.5f}, lineareval.py's {written[-1].stem.split('_')[-1]}; of the last fold's "
            f"or the test split's {len(theirs)} predictions {same} are the same."
        )


def saved_by_evar(folder):
    """The classifier that EVAR's own save left in the folder, or None where it cannot save and load."""
    load = getattr(TorchMLPClassifier2, "load", None)
    if load is None or not hasattr(TorchMLPClassifier2, "save"):
        return None
    try:
        if isinstance(vars(TorchMLPClassifier2).get("load"), (classmethod, staticmethod)):
            return load(folder)
        clf = TorchMLPClassifier2()
        return clf.load(folder) or clf
    except FileNotFoundError:
        return None


def class_table(df):
    """Accuracy per class before and after, from a data frame GT, before, prediction: class, clips, accuracy, difference."""
    truth = df.GT.astype(str)
    after = (truth == df.prediction.astype(str)).groupby(truth)
    table = pd.DataFrame({"clips": after.size(), "accuracy": after.mean()})
    table["accuracy_before"] = accuracy_before(df)
    table["difference_points"] = 100 * (table.accuracy - table.accuracy_before)
    return table.rename_axis("class").reset_index()


def accuracy_before(df):
    """Accuracy per class of the unsteered pass."""
    truth = df.GT.astype(str)
    return (truth == df.before.astype(str)).groupby(truth).mean()


def report(df):
    """EVAR's class-wise table, with differences to the unsteered pass."""
    classes = {str(c): c for c in df.GT}
    before = accuracy_before(df).rename(classes)
    lineareval.report_classwise_accuracy(
        df[["GT", "prediction"]].copy(), pd.DataFrame([before.to_dict()])
    )


def le_eval_only(config_file, task, run_folder, options=""):
    folder = Path(run_folder)
    run = read_run(folder)
    if run.task_name != task:
        raise ValueError(f"{folder} is a run of {run.task_name}, not of {task}")
    cfg, n_folds, _ = lineareval.make_cfg(config_file, task, options)
    cfg.unit_samples, cfg.batch_size = (
        run.unit_samples,
        run.batch_size,
    )  # rounding depends on the batch too
    check_same_embeddings(run, cfg)
    n_folds = get_defs(cfg, task)[2]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    evar_clf = saved_by_evar(folder)
    if evar_clf is not None:
        folds = [{"fold": n_folds, "classifier": None}]
        if n_folds > 1:
            print(
                f" ** EVAR saved the classifier of fold {n_folds} only: the other folds cannot be evaluated. **"
            )
    else:
        saved = folder / SAVED
        state = (
            torch.load(saved, weights_only=True)
            if saved.is_file()
            else fit(run, task, folder, n_folds, device)
        )
        if state["format"] != FORMAT or state["run"] != json.dumps(run.runtime_cfg):
            print(f"{saved} is of an earlier run in this folder.")
            state = fit(run, task, folder, n_folds, device)
        folds = state["folds"]

    emb_ar, frames, scores = None, [], []
    for entry in folds:
        loaders = create_dataloader(
            cfg, fold=entry["fold"], seed=run.runtime_cfg.seed, pin_memory=False
        )
        classes = list(loaders[0].dataset.classes)
        if emb_ar is None:
            ar, emb_ar = build(cfg, device, loaders[0])
            neurons = check_neurons(cfg, ar)
        clf = evar_clf or Classifier.from_state(entry["classifier"])
        if entry.get("classes", [str(c) for c in classes]) != [str(c) for c in classes]:
            raise ValueError(
                f"{folder}: the classifier knows the classes {entry['classes']}, {task} has {classes}"
            )
        X, y = lineareval.to_embeddings(emb_ar, loaders[2], device, cfg.id, fold=entry["fold"])
        if X.shape[1] != input_size(clf):
            raise ValueError(
                f"{folder}: the classifier takes embeddings of {input_size(clf)}, the model gives {X.shape[1]}"
            )
        files = [str(f) for f in loaders[2].dataset.df.file_name]
        if entry.get("files", files) != files:
            raise ValueError(
                f"{folder}: the test split of {task} has changed since the classifier was trained"
            )
        with unsteered(ar):
            X_before, _ = lineareval.to_embeddings(
                emb_ar, loaders[2], device, cfg.id, fold=entry["fold"]
            )
        score_before, before = clf.score(X_before, y, classes)
        check_unsteered(folder, entry, X_before, before)
        score, df = clf.score(X, y, classes)
        scores.append((score_before, score))
        frames.append(
            df.assign(file_name=files, fold=entry["fold"], before=before.prediction.to_numpy())
        )

    if n_folds > 1:
        print(f"\nFold {folds[-1]['fold']} of {n_folds} (lineareval.py's classes are this fold's):")
    report(frames[-1])
    table = class_table(frames[-1])
    table.insert(0, "scope", "test" if n_folds == 1 else f"fold {folds[-1]['fold']}")
    every = pd.concat(frames, ignore_index=True)
    if len(folds) > 1:
        print(
            f"\nAll {len(folds)} folds, each clip tested once, relative to the same classifiers without steering:"
        )
        report(every)
        table = pd.concat([table, class_table(every).assign(scope="all folds")], ignore_index=True)
    stem = f"le_eval_only-{Path(config_file).stem}-"
    stem += hashlib.sha256(repr((neurons, cfg.get("int_gain"))).encode()).hexdigest()[:8]
    table.to_csv(folder / f"{stem}.csv", index=None)
    every[["file_name", "fold", "GT", "before", "prediction"]].to_csv(
        folder / f"{stem}-predictions.csv", index=None
    )
    score_before, score = np.mean(scores, axis=0)
    gain = cfg.get("int_gain")
    print(
        f"{task}: {len(neurons)} neurons with gain {gain}: score {score:.5f}, unsteered {score_before:.5f}"
    )
    print(f" -> {folder / stem}.csv")


if __name__ == "__main__":
    import fire

    logging.basicConfig(format="%(message)s", level=logging.INFO)
    fire.Fire(le_eval_only)
