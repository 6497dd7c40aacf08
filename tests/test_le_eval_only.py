"""add_to_evar: le_eval_only.py against a small imitation of EVAR written here, write_config and register_tasks.py.

The imitation has EVAR's names and nothing of its code: a model with MLPs in layers, a linear classifier, a table of
tasks. What le_eval_only.py does in a real clone is written down in benchmarks/evar.md.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.preprocessing import LabelBinarizer, StandardScaler
from torch import nn

from add_to_evar import bridge

ROOT = Path(__file__).resolve().parents[1]
TASKS = {"three": ("cat dog owl", 1), "two": ("cat dog", 1), "folds": ("7 8 60", 3)}  # classes, folds
PLAIN = {"audio_repr": "ar_m2d.AR_M2D", "weight_file": "external/m2d.pth", "sample_rate": 16000, "mean": 0.0, "std": 1.0,
         "batch_size": 8}  # fmt: skip


def wave_of(number: int, label: int) -> torch.Tensor:
    wave = torch.randn(16, generator=torch.Generator().manual_seed(number))
    wave[label * 4] += 2.5
    return wave


class EasyDict(dict):
    def __init__(self, values=()):
        super().__init__({k: EasyDict(v) if isinstance(v, dict) else v for k, v in dict(values).items()})

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


def seed_everything(seed):
    np.random.seed(seed)
    torch.manual_seed(seed)


def get_defs(cfg, task, original_data=False):
    return f"evar/metadata/{task}.csv", "work/16k", TASKS[task][1], 0.5, False


class Clips(torch.utils.data.Dataset):
    def __init__(self, cfg, split, fold, classes=None):
        df = pd.read_csv(cfg.task_metadata)
        if "split" not in df:
            df["split"] = ["test" if f == fold else "train" for f in df.fold]
        self.df = df[df.split == split].reset_index(drop=True)
        self.classes = classes or sorted(self.df.label.unique())
        self.noise = 0.1 if split == "train" else 0.0  # as EVAR's random crops: the seed matters

    def __len__(self):
        return len(self.df)

    def __getitem__(self, i):
        label = self.classes.index(self.df.label[i])
        wave = wave_of(int(self.df.file_name[i].split(".")[0]), label)
        return wave + self.noise * torch.randn(16) if self.noise else wave, label


def create_dataloader(cfg, fold=1, seed=42, batch_size=None, balanced_random=False, pin_memory=True):
    train = Clips(cfg, "train", fold)
    others = [Clips(cfg, split, fold, train.classes) for split in ("valid", "test")]
    sets = [train, *(d if len(d) else [] for d in others)]
    loaders = [torch.utils.data.DataLoader(d, cfg.batch_size, shuffle=d is train) if d else [] for d in sets]
    return (*loaders, False)


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


class MLP(nn.Module):
    def __init__(self, input_size, hidden_sizes, output_size):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(input_size, output_size))

    def forward(self, x):
        return self.mlp(x)


def loss(logits, truth):
    return -(truth * logits.log_softmax(-1)).mean()


class TorchMLPClassifier2:
    def __init__(self, hidden_layer_sizes=(), max_iter=20, learning_rate_init=0.05, early_stopping=False,
                 n_iter_no_change=10, standard_scaler=True, mixup=False, debug=False):  # fmt: skip
        self.hidden_layer_sizes, self.max_iter, self.lr = hidden_layer_sizes, max_iter, learning_rate_init
        self.standard_scaler = StandardScaler() if standard_scaler else None
        self.device, self.oh_enc = torch.device("cpu"), None

    def switch_regime(self, y, y_val):
        if self.oh_enc is None:
            self.oh_enc = LabelBinarizer().fit(y)
        y = self.oh_enc.transform(y)
        return "acc", loss, len(self.oh_enc.classes_), y, None if y_val is None else self.oh_enc.transform(y_val)

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
        truth = self.switch_regime(y, None)[3].argmax(-1)  # two classes have one column here: all are the first class
        with torch.no_grad():
            found = self.model(torch.Tensor(self.standard_scaler.transform(X))).argmax(-1).numpy()
        table = {"GT": [classes[i] for i in truth], "prediction": [classes[i] for i in found]}
        return (truth == found).mean(), pd.DataFrame(table)


def make_cfg(config_file, task, options=""):
    cfg = EasyDict(yaml.safe_load(Path(config_file).read_text()))
    cfg.task_metadata, cfg.task_data, folds, seconds, balanced = get_defs(cfg, task)
    cfg.unit_samples, cfg.id, cfg.task_name = int(seconds * 16000), f"run_{task}", task
    return cfg, folds, balanced


def to_embeddings(emb_ar, loader, device, _id=None, fold=1):
    if len(loader) == 0:
        return None, None
    with torch.no_grad():
        pairs = [(emb_ar(x).numpy(), y.numpy()) for x, y in loader]
    return tuple(np.concatenate(part) for part in zip(*pairs, strict=True))


def report_classwise_accuracy(df, last_score=None):
    right = (df.prediction == df.GT).groupby(df.GT).mean().to_dict()
    print("[Class-wise Results]", right)
    return right


def lineareval_run(task, seed=42):
    """What `lineareval.py config/plain.yaml TASK --seed` leaves in its log folder; the folder and the score."""
    cfg, folds, _ = make_cfg("config/plain.yaml", task)
    cfg.runtime_cfg = EasyDict({"lr": 0.05, "seed": seed, "hidden": (), "standard_scaler": True, "mixup": False,
                                "epochs": 20, "early_stop_epochs": 20})  # fmt: skip
    folder = Path("logs") / cfg.id
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        log.write(f"2026-11-22 00:00:00 INFO {cfg}\n2026-11-22 00:00:01 INFO other {{}}\n")
    seed_everything(seed)
    ar, scores = None, []
    for fold in range(1, folds + 1):
        *loaders, _ = create_dataloader(cfg, fold=fold)
        if ar is None:
            ar = AR_M2D(cfg)
            ar.precompute(None, None)
        (X, y), (Xv, yv), (Xt, yt) = (to_embeddings(ar, loader, None) for loader in loaders)
        clf = TorchMLPClassifier2()
        clf.fit(X, y, X_val=Xv, y_val=yv)
        score, df = clf.score(Xt, yt, loaders[0].dataset.classes)
        scores.append(score)
        if hasattr(clf, "save"):
            clf.save(folder)
    df.to_csv(folder / f"run-LE_12345678_{np.mean(scores):.5f}.csv", index=False)
    pd.DataFrame([report_classwise_accuracy(df)]).to_csv(folder / "last_score_by_class.csv", index=None)
    return folder, float(np.mean(scores))


def steering(neurons, gain=0.0, **changes):
    settings = PLAIN | {"audio_repr": "ar_m2d.AR_M2D_Steering_Neurons", "int_neurons": neurons, "int_gain": gain}
    Path("config/steer.yaml").write_text(yaml.safe_dump(settings | changes))
    return "config/steer.yaml"


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """le_eval_only() inside the imitation: modules of EVAR's names, and a folder with its metadata and weights."""
    here = sys.modules[__name__]
    for name in ("evar", "evar.common", "evar.data", "evar.ds_tasks", "evar.ar_m2d", "evar.utils", "lineareval",
                 "evar.utils.torch_mlp_clf2"):  # fmt: skip
        module = types.ModuleType(name)
        module.__dict__.update({k: v for k, v in vars(here).items() if not k.startswith("__")}, logging=logging)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for folder in ("evar/metadata", "config", "external"):
        Path(folder).mkdir(parents=True)
    for task, (labels, folds) in TASKS.items():
        classes = labels.split()
        table = pd.DataFrame(
            {"file_name": [f"{i}.wav" for i in range(72)], "label": [classes[i % len(classes)] for i in range(72)]}
        )
        part = np.arange(72) // 12
        if folds > 1:
            table["fold"] = part % 3 + 1
        else:
            table["split"] = np.array(["train", "train", "train", "valid", "test", "test"])[part]
        table.to_csv(f"evar/metadata/{task}.csv", index=False)
    Path("config/plain.yaml").write_text(yaml.safe_dump(PLAIN))
    torch.manual_seed(1)
    blocks = nn.Sequential(*[Block() for _ in range(12)])
    torch.save({f"runtime.backbone.blocks.{k}": v for k, v in blocks.state_dict().items()}, "external/m2d.pth")
    spec = importlib.util.spec_from_file_location("le_eval_only", ROOT / "add_to_evar" / "le_eval_only.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program.le_eval_only


def result(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    (predictions,) = folder.glob("le_eval_only-*-predictions.csv")
    return pd.read_csv(str(predictions).replace("-predictions", "")), pd.read_csv(predictions, dtype=str)


def test_with_no_neurons_the_repeated_run_is_the_run(evaluate, capsys):
    folder, score = lineareval_run("three", seed=5)
    assert 0.4 < score < 1.0  # neither trivial nor hopeless, or equality would say little
    evaluate(steering([]), "three", folder)
    said = capsys.readouterr().out
    assert "24 predictions 24 are the same" in said and "int_neurons is empty" in said
    table, predictions = result(folder)
    assert table.difference_points.tolist() == [0.0, 0.0, 0.0] and table.clips.tolist() == [8, 8, 8]
    assert (predictions.before == predictions.prediction).all()
    assert (predictions.prediction == predictions.GT).mean() == score


def test_steered_accuracy_is_that_of_the_same_classifier_on_steered_embeddings(evaluate):
    folder, _ = lineareval_run("three")
    neurons = [[layer, n] for layer in (0, 3) for n in range(0, 24, 2)]
    evaluate(steering(neurons), "three", folder)
    table, predictions = result(folder)
    assert (predictions.before != predictions.prediction).any()
    kept = torch.load(folder / "le_eval_only.pt", weights_only=True)["folds"][0]["classifier"]
    state = torch.load("external/m2d.pth", weights_only=True)
    numbers = predictions.file_name.map(lambda n: int(n.split(".")[0]))
    x = torch.stack([wave_of(n, n % 3) for n in numbers])
    for layer in range(12):
        prefix = f"runtime.backbone.blocks.{layer}.mlp."
        a = nn.functional.gelu(x @ state[f"{prefix}fc1.weight"].T + state[f"{prefix}fc1.bias"])
        a[:, [n for at, n in neurons if at == layer]] = 0
        x = x + a @ state[f"{prefix}fc2.weight"].T + state[f"{prefix}fc2.bias"]
    scaled = ((x - kept["scaler"]["mean_"]) / kept["scaler"]["scale_"]).float()
    logits = scaled @ kept["weights"]["mlp.0.weight"].T + kept["weights"]["mlp.0.bias"]
    assert [["cat", "dog", "owl"][i] for i in logits.argmax(1)] == predictions.prediction.tolist()
    by_class = (predictions.prediction == predictions.GT).groupby(predictions.GT).mean()
    assert table.accuracy.tolist() == pytest.approx(by_class.tolist())
    assert table.difference_points.tolist() == pytest.approx(100 * (table.accuracy - table.accuracy_before).to_numpy())


def test_the_classifier_is_kept_and_an_earlier_runs_is_not_taken(evaluate, capsys):
    folder, _ = lineareval_run("three", seed=1)
    evaluate(steering([]), "three", folder)
    capsys.readouterr()
    evaluate(steering([[0, 1]]), "three", folder)
    assert "repeating the run" not in capsys.readouterr().out
    lineareval_run("three", seed=2)  # the same folder: EVAR's folder name does not hold the seed
    evaluate(steering([]), "three", folder)
    said = capsys.readouterr().out
    assert "of an earlier run" in said and "24 predictions 24 are the same" in said


def test_five_fold_tasks_like_with_like_and_all_folds(evaluate, capsys):
    folder, score = lineareval_run("folds")
    evaluate(steering([]), "folds", folder)
    said = capsys.readouterr().out
    assert f"score {score:.5f}, unsteered {score:.5f}" in said and "Fold 3 of 3" in said
    table, predictions = result(folder)
    assert table.groupby("scope").clips.sum().to_dict() == {"all folds": 72, "fold 3": 24}
    assert (table.difference_points == 0).all()  # the classes 7, 8, 60 are numbers in one file, text in another
    assert sorted(predictions.file_name) == sorted(f"{i}.wav" for i in range(72))


def test_two_classes_get_two_columns(evaluate, capsys):
    folder, wrong = lineareval_run("two")
    assert set(pd.read_csv(next(folder.glob("*-LE_*"))).GT) == {"cat"}  # what the public classifier makes of them
    evaluate(steering([]), "two", folder)
    assert "means nothing" in capsys.readouterr().out
    table, predictions = result(folder)
    assert table["class"].tolist() == ["cat", "dog"] and table.difference_points.tolist() == [0.0, 0.0]
    assert (predictions.prediction == predictions.GT).mean() > max(0.7, wrong)


def test_a_run_that_died_in_saving_is_enough(evaluate):
    """lineareval.py --save with the public classifier ends before it writes any score."""
    folder, _ = lineareval_run("three")
    for path in folder.iterdir():
        if path.name != "log.txt":
            path.unlink()
    evaluate(steering([]), "three", folder)
    assert result(folder)[0].difference_points.tolist() == [0.0, 0.0, 0.0]


def test_a_classifier_that_evar_saved_is_used(evaluate, capsys, monkeypatch):
    def save(self, folder):
        torch.save([self.model.state_dict(), self.standard_scaler], f"{folder}/linear.pth")

    def load(cls, folder):
        clf = cls()
        weights, clf.standard_scaler = torch.load(f"{folder}/linear.pth", weights_only=False)
        classes = len(weights["mlp.0.bias"])
        clf.model, clf.oh_enc, clf.criterion = MLP(16, (), classes), LabelBinarizer().fit(np.arange(classes)), loss
        clf.model.load_state_dict(weights)
        return clf

    monkeypatch.setattr(TorchMLPClassifier2, "save", save, raising=False)
    monkeypatch.setattr(TorchMLPClassifier2, "load", classmethod(load), raising=False)
    folder, score = lineareval_run("three")
    evaluate(steering([]), "three", folder)
    assert "repeating" not in capsys.readouterr().out and not (folder / "le_eval_only.pt").exists()
    _, predictions = result(folder)
    assert (predictions.prediction == predictions.GT).mean() == score
    folder, _ = lineareval_run("folds")
    evaluate(steering([]), "folds", folder)
    assert "classifier of fold 3 only" in capsys.readouterr().out


def test_bad_input_is_named(evaluate):
    folder, _ = lineareval_run("three")

    def refused(words, config, task="three", folder=folder, error=ValueError):
        with pytest.raises(error, match=words):
            evaluate(config, task, folder)

    refused("folder under logs/", steering([]), folder=folder.parent, error=FileNotFoundError)
    refused("is a run of three, not of two", steering([]), task="two")
    refused("The run had mean=0.0", steering([], mean=1.0))
    shutil.copy("external/m2d.pth", "external/same.pth")
    evaluate(steering([], weight_file="external/same.pth"), "three", folder)  # the same bytes elsewhere
    torch.save({k: v + 1 for k, v in torch.load("external/m2d.pth").items()}, "external/other.pth")
    refused("--options=weight_file=external/m2d.pth", steering([], weight_file="external/other.pth"))
    refused("no MLP in layer 12", steering([[12, 0]]))
    refused("neurons 0 to 23", steering([[0, 24]]))
    refused("2 times", steering([[0, 1], [0, 1]]))
    refused("put no hook", steering([[0, 1]], audio_repr="ar_m2d.AR_M2D"))
    table = pd.read_csv("evar/metadata/three.csv")
    table[table.file_name != "70.wav"].to_csv("evar/metadata/three.csv", index=False)
    refused("test split of three has changed", steering([]))
    table.replace("owl", "wolf").to_csv("evar/metadata/three.csv", index=False)
    refused("knows the classes", steering([]))
    (folder / "log.txt").write_text("2026-11-22 00:00:00 INFO nothing\n")
    refused("runtime_cfg", steering([]))


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
    command = [sys.executable, str(program), str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_tasks_are_registered_once_and_taken_out_without_a_trace(tmp_path):
    table = tmp_path / "evar" / "ds_tasks.py"
    table.parent.mkdir()
    original = b"_defs = {\r\n    'vc1': [1, 8.2, None, False],\r\n}\r\n\r\ndef get_defs():\r\n    return _defs"
    table.write_bytes(original)
    assert "added gise51" in _register(tmp_path).stdout
    once = table.read_bytes()
    assert "nothing to do" in _register(tmp_path).stdout
    assert table.read_bytes() == once
    found = bridge.definitions(tmp_path)
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
    import soundfile

    from benchmarks import numpy_weights

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
