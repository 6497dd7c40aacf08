"""add_to_evar: le_eval_only.py and register_tasks.py, in a small stand-in for an EVAR clone written here.

The stand-in has EVAR's names and nothing of its code: a model with MLPs in layers, a linear classifier, a table of
tasks. What le_eval_only.py does in a real clone is written down in benchmarks/evar.md.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from add_to_evar import bridge
from add_to_evar import tasks as evar_tasks

ROOT = Path(__file__).resolve().parents[1]

FILES = {
    "fire.py": """
import sys

def Fire(function):
    plain = [a for a in sys.argv[1:] if not a.startswith("--")]
    flags = dict(a[2:].split("=", 1) for a in sys.argv[1:] if a.startswith("--"))
    function(*plain, **flags)
""",
    "evar/__init__.py": "",
    "evar/utils/__init__.py": "",
    "evar/common.py": """
import logging
import numpy as np
import torch


class EasyDict(dict):
    def __init__(self, values=()):
        for k, v in dict(values).items():
            self[k] = EasyDict(v) if isinstance(v, dict) else v

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


def seed_everything(seed):
    np.random.seed(seed)
    torch.manual_seed(seed)
""",
    "evar/ds_tasks.py": """
_defs = {'three': [1, 0.5, None, False], 'two': [1, 0.5, None, False], 'folds': [3, 0.5, None, False]}


def get_defs(cfg, task, original_data=False):
    folds, seconds, folder, balanced = _defs[task]
    return f'evar/metadata/{task}.csv', f'work/16k/{folder or task}', folds, seconds, balanced
""",
    "evar/data.py": """
import pandas as pd
import torch


class Clips(torch.utils.data.Dataset):
    def __init__(self, cfg, split, fold, classes=None):
        df = pd.read_csv(cfg.task_metadata)
        if 'split' not in df:
            df['split'] = ['test' if f == fold else 'train' for f in df.fold]
        self.df = df[df.split == split].reset_index(drop=True)
        self.classes = classes or sorted(self.df.label.unique())
        self.multi_label = self.df.label.astype(str).str.contains(',').any()
        self.random = split == 'train'

    def __len__(self):
        return len(self.df)

    def __getitem__(self, i):
        name, label = self.df.file_name[i], self.df.label[i]
        wave = torch.randn(16, generator=torch.Generator().manual_seed(int(name.split('.')[0])))
        wave[self.classes.index(label) * 4] += 2.5
        if self.random:
            wave = wave + 0.1 * torch.randn(16)  # as EVAR's random crops: the seed matters
        return wave, self.classes.index(label)


def create_dataloader(cfg, fold=1, seed=42, batch_size=None, balanced_random=False, pin_memory=True):
    train = Clips(cfg, 'train', fold)
    loaders = [torch.utils.data.DataLoader(d, batch_size=cfg.batch_size, shuffle=d is train) for d in (
        train, Clips(cfg, 'valid', fold, train.classes), Clips(cfg, 'test', fold, train.classes))
        if len(d)]
    if len(loaders) == 2:
        loaders.insert(1, [])
    return (*loaders, train.multi_label)
""",
    "evar/ar_m2d.py": """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.act, self.mlp.fc2 = nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16)

    def forward(self, x):
        return x + self.mlp.fc2(self.mlp.act(self.mlp.fc1(x)))


class AR_M2D(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg, self.runtime = cfg, nn.Module()
        self.runtime.backbone = nn.Module()
        self.runtime.backbone.blocks = nn.Sequential(*[Block() for _ in range(12)])
        self.load_state_dict(torch.load(cfg.weight_file, weights_only=True))

    def precompute(self, device, loader):
        self.mean = self.cfg.mean

    def forward(self, x):
        return self.runtime.backbone.blocks(x - self.mean)


class AR_M2D_Steering_Neurons(AR_M2D):
    def __init__(self, cfg):
        super().__init__(cfg)
        for layer in {pair[0] for pair in cfg.int_neurons} & set(range(12)):
            gains = torch.ones(24)
            gains[[n for at, n in cfg.int_neurons if at == layer and n < 24]] = cfg.int_gain
            self.runtime.backbone.blocks[layer].mlp.act.register_forward_hook(lambda m, a, out, g=gains: out * g)
""",
    "evar/utils/torch_mlp_clf2.py": """
import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import LabelBinarizer, StandardScaler


class MLP(torch.nn.Module):
    def __init__(self, input_size, hidden_sizes, output_size):
        super().__init__()
        self.mlp = torch.nn.Sequential(torch.nn.Linear(input_size, output_size))

    def forward(self, x):
        return self.mlp(x)


def loss(logits, truth):
    return -(truth * logits.log_softmax(-1)).mean()


class TorchMLPClassifier2:
    def __init__(self, hidden_layer_sizes=(), max_iter=100, learning_rate_init=0.05, early_stopping=False,
                 n_iter_no_change=10, standard_scaler=True, mixup=False, debug=False):
        self.hidden_layer_sizes, self.max_iter, self.lr = hidden_layer_sizes, max_iter, learning_rate_init
        self.standard_scaler = StandardScaler() if standard_scaler else None
        self.device, self.oh_enc = torch.device('cpu'), None

    def switch_regime(self, y, y_val):
        if self.oh_enc is None:
            self.oh_enc = LabelBinarizer().fit(y)
        y = self.oh_enc.transform(y)
        return 'acc', loss, len(self.oh_enc.classes_), y, None if y_val is None else self.oh_enc.transform(y_val)

    def fit(self, X, y, X_val=None, y_val=None):
        _, self.criterion, n_class, y, _ = self.switch_regime(y, y_val)
        X = torch.Tensor(self.standard_scaler.fit_transform(X))
        self.model = MLP(X.shape[1], self.hidden_layer_sizes, n_class)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.lr)
        for _ in range(self.max_iter):
            optimizer.zero_grad()
            self.criterion(self.model(X), torch.Tensor(y)).backward()
            optimizer.step()

    def score(self, X, y, classes=None):
        truth = self.switch_regime(y, None)[3].argmax(-1)
        with torch.no_grad():
            found = self.model(torch.Tensor(self.standard_scaler.transform(X))).argmax(-1).numpy()
        return (truth == found).mean(), pd.DataFrame({'GT': [classes[i] for i in truth],
                                                      'prediction': [classes[i] for i in found]})
""",
    "lineareval.py": """
import importlib
import logging
from pathlib import Path
import numpy as np
import pandas as pd
import torch
import yaml
from evar.common import EasyDict, seed_everything
from evar.data import create_dataloader
from evar.ds_tasks import get_defs
from evar.utils.torch_mlp_clf2 import TorchMLPClassifier2


def make_cfg(config_file, task, options):
    cfg = EasyDict(yaml.safe_load(Path(config_file).read_text()))
    for item in filter(None, options.split(',')):
        cfg[item.split('=')[0]] = yaml.safe_load(item.split('=')[1])
    cfg.task_metadata, cfg.task_data, folds, seconds, balanced = get_defs(cfg, task)
    cfg.unit_samples, cfg.id, cfg.task_name = int(seconds * 16000), f'run_{task}', task
    return cfg, folds, balanced


def to_embeddings(emb_ar, loader, device, _id=None, fold=1, cache=False):
    if len(loader) == 0:
        return None, None
    with torch.no_grad():
        pairs = [(emb_ar(x).numpy(), y.numpy()) for x, y in loader]
    return tuple(np.concatenate(part) for part in zip(*pairs))


def report_classwise_accuracy(df, last_score=None):
    right = (df.GT == df.prediction).groupby(df.GT).mean().to_dict()
    print('[Class-wise Results]')
    for name, value in right.items():
        known = last_score is not None and name in last_score
        print(f'{name} {value:.4f} ' + (f'{value - float(last_score[name].iloc[0]):+.4f}' if known else 'n/a'))
    return right


def run(config_file, task, options='', seed=42):
    cfg, folds, _ = make_cfg(config_file, task, options)
    cfg.runtime_cfg = EasyDict({'lr': 0.05, 'seed': seed, 'hidden': (), 'standard_scaler': True, 'mixup': False,
                                'epochs': 20, 'early_stop_epochs': 20})
    folder = Path('logs') / cfg.id
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'log.txt', 'a') as log:
        log.write(f'2026-11-22 00:00:00 INFO {cfg}\\n2026-11-22 00:00:01 INFO other {{}}\\n')
    seed_everything(seed)
    ar, scores = None, []
    for fold in range(1, folds + 1):
        train, valid, test, _ = create_dataloader(cfg, fold=fold)
        if ar is None:
            ar = importlib.import_module('evar.ar_m2d').AR_M2D(cfg)
            ar.precompute(None, None)
        (X, y), (Xv, yv), (Xt, yt) = (to_embeddings(ar, loader, None) for loader in (train, valid, test))
        clf = TorchMLPClassifier2(max_iter=20)
        clf.fit(X, y, X_val=Xv, y_val=yv)
        score, df = clf.score(Xt, yt, train.dataset.classes)
        scores.append(score)
        getattr(clf, 'save', lambda folder: None)(folder)
    df.to_csv(folder / f'run-LE_12345678_{np.mean(scores):.5f}.csv', index=False)
    pd.DataFrame([report_classwise_accuracy(df)]).to_csv(folder / 'last_score_by_class.csv', index=None)
    return folder, float(np.mean(scores))
""",
}
PLAIN = {"audio_repr": "ar_m2d.AR_M2D", "weight_file": "external/m2d.pth", "sample_rate": 16000, "mean": 0.0, "std": 1.0,
         "batch_size": 8}  # fmt: skip
SAVES = """

def _save(self, folder):
    torch.save([self.model.state_dict(), self.standard_scaler], f'{folder}/linear.pth')

def _load(cls, folder):
    clf = cls()
    weights, clf.standard_scaler = torch.load(f'{folder}/linear.pth', weights_only=False)
    clf.model = MLP(16, (), len(weights['mlp.0.bias']))
    clf.model.load_state_dict(weights)
    clf.oh_enc = LabelBinarizer().fit(np.arange(len(weights['mlp.0.bias'])))
    clf.criterion = loss
    return clf

TorchMLPClassifier2.save, TorchMLPClassifier2.load = _save, classmethod(_load)
"""


class Clone:
    """A stand-in clone on disk, and its programs imported from there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name, text in FILES.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        shutil.copy(ROOT / "add_to_evar" / "le_eval_only.py", root)
        (root / "evar" / "metadata").mkdir()
        (root / "config").mkdir()
        for task, labels in {"three": "cat dog owl", "two": "cat dog", "folds": "7 8 60"}.items():
            classes = labels.split()
            rows = [(f"{i}.wav", classes[i % len(classes)], i // 12) for i in range(72)]
            table = pd.DataFrame(rows, columns=["file_name", "label", "part"])
            if task == "folds":
                table["fold"] = table.pop("part") % 3 + 1
            else:
                table["split"] = table.pop("part").map(
                    lambda p: ("train", "train", "train", "valid", "test", "test")[p]
                )
            table.to_csv(root / "evar" / "metadata" / f"{task}.csv", index=False)
        (root / "external").mkdir()
        self.config("plain", PLAIN)

    def config(self, name: str, settings: dict) -> str:
        (self.root / "config" / f"{name}.yaml").write_text(yaml.safe_dump(settings))
        return f"config/{name}.yaml"

    def steering(self, neurons: list, gain: float = 0.0, **changes: object) -> str:
        settings = PLAIN | {"audio_repr": "ar_m2d.AR_M2D_Steering_Neurons", "int_neurons": neurons, "int_gain": gain}
        return self.config("steer", settings | changes)

    def use(self, name: str):
        spec = importlib.util.spec_from_file_location(name, self.root / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@contextlib.contextmanager
def _own_modules(root: Path):
    """sys.path, working directory and the modules evar.* and lineareval as they were, afterwards."""
    names = ("evar", "lineareval", "fire", "le_eval_only")
    known = {n: sys.modules.pop(n) for n in list(sys.modules) if n.split(".")[0] in names}
    paths, folder = list(sys.path), os.getcwd()
    sys.path.insert(0, str(root))
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(folder)
        sys.path[:] = paths
        for name in [n for n in sys.modules if n.split(".")[0] in names]:
            del sys.modules[name]
        sys.modules.update(known)


@pytest.fixture
def clone(tmp_path):
    made = Clone(tmp_path / "clone")
    with _own_modules(made.root):
        torch.manual_seed(1)
        model = made.use("lineareval").importlib.import_module("evar.ar_m2d")
        blocks = torch.nn.Sequential(*[model.Block() for _ in range(12)])
        torch.save({f"runtime.backbone.blocks.{k}": v for k, v in blocks.state_dict().items()}, "external/m2d.pth")
        yield made


def _result(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    (predictions,) = folder.glob("le_eval_only-*-predictions.csv")
    return pd.read_csv(str(predictions).replace("-predictions", "")), pd.read_csv(predictions, dtype=str)


def test_with_no_neurons_the_repeated_run_is_the_run(clone, capsys):
    folder, score = clone.use("lineareval").run("config/plain.yaml", "three", seed=5)
    assert 0.4 < score < 1.0  # neither trivial nor hopeless, or equality would say little
    clone.use("le_eval_only").le_eval_only(clone.steering([]), "three", folder)
    said = capsys.readouterr().out
    assert "24 predictions 24 are the same" in said
    assert "int_neurons is empty" in said
    table, predictions = _result(folder)
    assert table.difference_points.tolist() == [0.0, 0.0, 0.0]
    assert table.clips.tolist() == [8, 8, 8]
    assert (predictions.before == predictions.prediction).all()
    assert (predictions.prediction == predictions.GT).mean() == score


def test_steered_accuracy_is_that_of_the_same_classifier_on_steered_embeddings(clone, capsys):
    folder, _ = clone.use("lineareval").run("config/plain.yaml", "three")
    program = clone.use("le_eval_only")
    neurons = [[layer, n] for layer in (0, 3) for n in range(0, 24, 2)]
    program.le_eval_only(clone.steering(neurons), "three", folder)
    table, predictions = _result(folder)
    assert (predictions.before != predictions.prediction).any()
    kept = torch.load(folder / "le_eval_only.pt", weights_only=True)["folds"][0]["classifier"]
    state = torch.load("external/m2d.pth", weights_only=True)
    names = predictions.file_name.map(lambda n: int(n.split(".")[0]))
    x = torch.stack([torch.randn(16, generator=torch.Generator().manual_seed(n)) for n in names])
    for i, n in enumerate(names):
        x[i, n % 3 * 4] += 2.5
    for layer in range(12):
        prefix = f"runtime.backbone.blocks.{layer}.mlp."
        a = torch.nn.functional.gelu(x @ state[f"{prefix}fc1.weight"].T + state[f"{prefix}fc1.bias"])
        a[:, [n for at, n in neurons if at == layer]] = 0
        x = x + a @ state[f"{prefix}fc2.weight"].T + state[f"{prefix}fc2.bias"]
    scaled = ((x - kept["scaler"]["mean_"]) / kept["scaler"]["scale_"]).float()
    logits = scaled @ kept["weights"]["mlp.0.weight"].T + kept["weights"]["mlp.0.bias"]
    assert [["cat", "dog", "owl"][i] for i in logits.argmax(1)] == predictions.prediction.tolist()
    assert "24 neurons with gain 0.0" in capsys.readouterr().out
    by_class = (predictions.prediction == predictions.GT).groupby(predictions.GT).mean()
    assert table.accuracy.tolist() == pytest.approx(by_class.tolist())
    assert table.difference_points.tolist() == pytest.approx(100 * (table.accuracy - table.accuracy_before).to_numpy())


def test_the_classifier_is_kept_and_an_earlier_runs_is_not_taken(clone, capsys):
    run = clone.use("lineareval").run
    folder, _ = run("config/plain.yaml", "three", seed=1)
    program = clone.use("le_eval_only")
    program.le_eval_only(clone.steering([]), "three", folder)
    capsys.readouterr()
    program.le_eval_only(clone.steering([[0, 1]]), "three", folder)
    assert "repeating the run" not in capsys.readouterr().out
    run("config/plain.yaml", "three", seed=2)  # the same folder: EVAR's folder name does not hold the seed
    program.le_eval_only(clone.steering([]), "three", folder)
    said = capsys.readouterr().out
    assert "of an earlier run" in said
    assert "24 predictions 24 are the same" in said


def test_five_fold_tasks_like_with_like_and_all_folds(clone, capsys):
    folder, score = clone.use("lineareval").run("config/plain.yaml", "folds")
    clone.use("le_eval_only").le_eval_only(clone.steering([]), "folds", folder)
    said = capsys.readouterr().out
    assert f"score {score:.5f}, unsteered {score:.5f}" in said
    assert "Fold 3 of 3" in said
    assert "All 3 folds" in said
    table, predictions = _result(folder)
    assert table.groupby("scope").clips.sum().to_dict() == {"all folds": 72, "fold 3": 24}
    assert (
        table.difference_points == 0
    ).all()  # also the classes 7, 8, 60, which are numbers in one file, text in another
    assert sorted(predictions.file_name) == sorted(f"{i}.wav" for i in range(72))


def test_two_classes_get_two_columns(clone, capsys):
    folder, wrong = clone.use("lineareval").run("config/plain.yaml", "two")
    assert set(pd.read_csv(next(folder.glob("*-LE_*"))).GT) == {"cat"}  # what the public classifier makes of them
    clone.use("le_eval_only").le_eval_only(clone.steering([]), "two", folder)
    assert "means nothing" in capsys.readouterr().out
    table, predictions = _result(folder)
    assert table["class"].tolist() == ["cat", "dog"]
    assert (predictions.prediction == predictions.GT).mean() > max(0.7, wrong)
    assert table.difference_points.tolist() == [0.0, 0.0]
    assert (folder / "last_score_by_class.csv").is_file()  # EVAR's files stay as they are


def test_a_run_that_died_in_saving_is_enough(clone):
    """lineareval.py --save with the public classifier ends before it writes any score."""
    folder, _ = clone.use("lineareval").run("config/plain.yaml", "three")
    for path in folder.iterdir():
        if path.name != "log.txt":
            path.unlink()
    clone.use("le_eval_only").le_eval_only(clone.steering([]), "three", folder)
    assert _result(folder)[0].difference_points.tolist() == [0.0, 0.0, 0.0]


def test_a_classifier_that_evar_saved_is_used(clone, capsys):
    with (clone.root / "evar" / "utils" / "torch_mlp_clf2.py").open("a") as file:
        file.write(SAVES)
    for name in [n for n in sys.modules if n.startswith(("evar.utils", "lineareval"))]:
        del sys.modules[name]
    folder, score = clone.use("lineareval").run("config/plain.yaml", "three")
    clone.use("le_eval_only").le_eval_only(clone.steering([]), "three", folder)
    assert "repeating" not in capsys.readouterr().out
    assert not (folder / "le_eval_only.pt").exists()
    _, predictions = _result(folder)
    assert (predictions.prediction == predictions.GT).mean() == score
    folder, _ = clone.use("lineareval").run("config/plain.yaml", "folds")
    clone.use("le_eval_only").le_eval_only(clone.steering([]), "folds", folder)
    assert "classifier of fold 3 only" in capsys.readouterr().out


def test_bad_input_is_named(clone):
    folder, _ = clone.use("lineareval").run("config/plain.yaml", "three")
    evaluate = clone.use("le_eval_only").le_eval_only
    with pytest.raises(FileNotFoundError, match="folder under logs/"):
        evaluate(clone.steering([]), "three", folder.parent)
    with pytest.raises(ValueError, match="is a run of three, not of two"):
        evaluate(clone.steering([]), "two", folder)
    with pytest.raises(ValueError, match="The run had mean=0.0"):
        evaluate(clone.steering([], mean=1.0), "three", folder)
    shutil.copy("external/m2d.pth", "external/same.pth")
    evaluate(clone.steering([], weight_file="external/same.pth"), "three", folder)  # the same bytes elsewhere
    torch.save({k: v + 1 for k, v in torch.load("external/m2d.pth").items()}, "external/other.pth")
    with pytest.raises(ValueError, match="--options=weight_file=external/m2d.pth"):
        evaluate(clone.steering([], weight_file="external/other.pth"), "three", folder)
    for neurons, words in (
        ([[12, 0]], "no MLP in layer 12"),
        ([[0, 24]], "neurons 0 to 23"),
        ([[0, 1], [0, 1]], "2 times"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate(clone.steering(neurons), "three", folder)
    with pytest.raises(ValueError, match="put no hook"):
        evaluate(clone.steering([[0, 1]], audio_repr="ar_m2d.AR_M2D"), "three", folder)
    table = pd.read_csv("evar/metadata/three.csv")
    table[table.file_name != "70.wav"].to_csv("evar/metadata/three.csv", index=False)
    with pytest.raises(ValueError, match="test split of three has changed"):
        evaluate(clone.steering([]), "three", folder)
    table.replace("owl", "wolf").to_csv("evar/metadata/three.csv", index=False)
    with pytest.raises(ValueError, match="knows the classes"):
        evaluate(clone.steering([]), "three", folder)
    (folder / "log.txt").write_text("2026-11-22 00:00:00 INFO nothing\n")
    with pytest.raises(ValueError, match="runtime_cfg"):
        evaluate(clone.steering([]), "three", folder)


def test_the_command_line(clone):
    folder, _ = clone.use("lineareval").run("config/plain.yaml", "three")
    done = subprocess.run(
        [sys.executable, "le_eval_only.py", clone.steering([[1, 2]]), "three", str(folder), "--options=batch_size=8"],
        cwd=clone.root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "three: 1 neurons with gain 0.0" in done.stdout


# --- configurations and tasks ------------------------------------------------------------------------------------


def test_a_configuration_from_a_selection(tmp_path):
    from aape.selection import select

    p = np.full((2, 50, 3), 0.2) + np.random.RandomState(0).random_sample((2, 50, 3)) * 0.01
    p[1, 7, 2], p[0, 3, 2] = 0.9, 0.95
    selection = select(p, rate=0.02, classes=["a", "b", "c"])
    path = bridge.write_config(tmp_path / "steer.yaml", selection.neurons("c"), gain=0.5, note="toy: c\nsecond line")
    settings = yaml.safe_load(path.read_text())
    assert settings["int_neurons"] == [[0, 3], [1, 7]]
    assert settings["int_gain"] == 0.5
    assert settings["audio_repr"] == "ar_m2d.AR_M2D_Steering_Neurons"
    assert settings["lr_lineareval"] == 3e-05  # as a number, not as text
    assert path.read_text().startswith("# 2 neurons of M2D times 0.5\n# toy: c\n# second line\n")
    assert yaml.safe_load(bridge.write_config(tmp_path / "none.yaml", []).read_text())["int_neurons"] == []


@pytest.mark.parametrize("neurons", [[[0, 1], [0, 1]], [[0, -1]], [0, 1], [[0.5, 1.0]]])
def test_a_configuration_of_no_neurons_is_refused(tmp_path, neurons):
    with pytest.raises(ValueError, match="neuron"):
        bridge.write_config(tmp_path / "x.yaml", neurons)
    assert list(tmp_path.iterdir()) == []


def _register(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    program = ROOT / "add_to_evar" / "register_tasks.py"
    environment = {k: v for k, v in os.environ.items() if k != "EVAR"}
    return subprocess.run(
        [sys.executable, str(program), str(root), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_tasks_are_registered_once_and_taken_out_without_a_trace(tmp_path):
    table = tmp_path / "evar" / "ds_tasks.py"
    table.parent.mkdir()
    original = b"_defs = {\r\n    'vc1': [1, 8.2, None, False],\r\n}\r\n\r\ndef get_defs():\r\n    return _defs"
    table.write_bytes(original)
    assert "added gise51" in _register(tmp_path).stdout
    once = table.read_bytes()
    assert "nothing to do" in _register(tmp_path).stdout
    assert table.read_bytes() == once
    found = evar_tasks.definitions(tmp_path)
    assert (found["vc1_gender"].folder, found["vc1_gender"].clip_seconds) == ("vc1", 8.2)
    assert (found["gise51"].folder, found["gise51"].clip_seconds) == ("gise51", 5.0)
    namespace: dict = {}
    exec(compile(once, "ds_tasks.py", "exec"), namespace)  # what EVAR itself will see
    assert {"vc1", "gise51", "vc1_gender", "vc1_country"} == set(namespace["_defs"])
    _register(tmp_path, "--remove")
    assert table.read_bytes() == original


def test_registering_where_evar_has_changed(tmp_path):
    assert _register(tmp_path).returncode == 1
    table = tmp_path / "evar" / "ds_tasks.py"
    table.parent.mkdir()
    for text, words in (
        ("_defs = {'gise51': [1, 10.0, None, False]}\n", "of its own"),
        ("tasks = {}\n", "EVAR has changed"),
    ):
        table.write_text(text)
        done = _register(tmp_path)
        assert done.returncode == 1
        assert words in done.stderr
        assert table.read_text() == text


# --- the real one ------------------------------------------------------------------------------------------------

REAL = """
import sys
sys.path.insert(0, CLONE)
import evar.ds_tasks
evar.ds_tasks._defs.update({"tiny": [1, 0.2, None, False], "tinyfolds": [2, 0.2, "tiny", False]})
import lineareval, runpy, logging
import pandas as pd
from pathlib import Path

for task in TASKS:
    lineareval.lineareval_downstream("plain.yaml", task, seed=3, lr=0.001, epochs=30)
    folder = next(p for p in Path("logs").iterdir() if f"_{task}_" in p.name)
    program = runpy.run_path("le_eval_only.py")["le_eval_only"]
    for config in ("empty.yaml", "many.yaml"):
        program(config, task, folder)
    print("SCORE", task, pd.read_csv("results/scores.csv").score.iloc[-1])
"""


@pytest.mark.skipif(
    not os.environ.get("EVAR") or importlib.util.find_spec("torchaudio") is None,
    reason="needs the environment variable EVAR (a clone of EVAR with M2D in external/m2d) and torchaudio",
)
def test_in_the_real_evar(tmp_path):
    """Nothing is written into the clone: its code runs in a folder that has metadata, audio and logs of its own."""
    import numpy_weights
    import soundfile

    root = bridge.clone()
    # pandas 3 stops EVAR at tasks without a valid split; without one it cuts a tenth of the training clips, in which
    # every class must be
    tasks = ["tiny"] + (["tinyfolds"] if int(pd.__version__.split(".")[0]) < 3 else [])
    (tmp_path / "external").mkdir()
    (tmp_path / "external" / "m2d").symlink_to(root / "external" / "m2d")
    (tmp_path / "evar" / "metadata").mkdir(parents=True)
    audio = tmp_path / "work" / "16k" / "tiny"
    audio.mkdir(parents=True)
    rows = []
    for i in range(72):
        draws = np.random.RandomState(i)
        tone = (
            np.sin(np.arange(4000) * (0.1 + 0.15 * (i % 3))) * draws.random_sample() + draws.random_sample(4000) - 0.5
        )
        soundfile.write(audio / f"{i}.wav", 0.4 * tone, 16000)
        split = ("train", "train", "valid", "test")[i // 3 % 4]
        rows.append((f"{i}.wav", "abc"[i % 3], split, i // 3 % 2 + 1))
    table = pd.DataFrame(rows, columns=["file_name", "label", "split", "fold"])
    table.drop(columns="fold").to_csv(tmp_path / "evar" / "metadata" / "tiny.csv", index=False)
    table.drop(columns="split").to_csv(tmp_path / "evar" / "metadata" / "tinyfolds.csv", index=False)
    checkpoint = numpy_weights.save_checkpoint(tmp_path)
    empty = bridge.write_config(tmp_path / "empty.yaml", [], weight_file=str(checkpoint))
    settings = yaml.safe_load(empty.read_text()) | {"audio_repr": "ar_m2d.AR_M2D"}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(settings))
    many = [[layer, n] for layer in range(12) for n in range(0, 3072, 2)]
    bridge.write_config(tmp_path / "many.yaml", many, weight_file=str(checkpoint))
    shutil.copy(ROOT / "add_to_evar" / "le_eval_only.py", tmp_path)
    (tmp_path / "go.py").write_text(f"CLONE = {str(root)!r}\nTASKS = {tasks!r}\n{REAL}")
    environment = os.environ | {"EVAR": str(tmp_path), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "go.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    checkpoint.unlink()
    assert done.returncode == 0, done.stderr[-3000:]
    for task in tasks:
        (folder,) = (p for p in (tmp_path / "logs").iterdir() if f"_{task}_" in p.name)
        (first,) = folder.glob("le_eval_only-empty-*[0-9a-f].csv")
        (steered,) = folder.glob("le_eval_only-many-*[0-9a-f]-predictions.csv")
        assert (pd.read_csv(first).difference_points == 0).all()
        predictions = pd.read_csv(steered)
        assert (predictions.before != predictions.prediction).any()
        unsteered = predictions.GT.eq(predictions.before).groupby(predictions.fold).mean().mean()
        (said,) = (line.split()[2] for line in done.stdout.splitlines() if line.startswith(f"SCORE {task} "))
        assert unsteered == float(said)  # lineareval.py's score, to the last digit
