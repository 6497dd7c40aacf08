"""add_to_evar: le_eval_only.py against a small imitation of EVAR written here, write_config and register_tasks.py.

The imitation has EVAR's names and nothing of its code: a model with MLPs in layers, a linear classifier, a table of
tasks. What le_eval_only.py does in a real clone is written down in benchmarks/evar.md.
"""

import logging
import os
import runpy
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml
from conftest import REPOSITORY, needs_evar
from sklearn.preprocessing import LabelBinarizer, StandardScaler
from timm.layers import Mlp
from torch import nn

from aape.neurons.selection import select
from add_to_evar import bridge
from benchmarks import numpy_weights

TASKS = {
    "three": ("cat dog owl", 1),
    "two": ("cat dog", 1),
    "folds": ("7 8 60", 3),
}  # classes, folds
SPLITS = ("train", "valid", "test")
PLAIN = {
    "audio_repr": "ar_m2d.AR_M2D",
    "weight_file": "external/m2d.pth",
    "mean": 0.0,
    "batch_size": 8,
}


def wave_of(number: int, label: int) -> torch.Tensor:
    wave = torch.randn(16, generator=torch.Generator().manual_seed(number))
    wave[label * 4] += 2.5
    return wave


class EasyDict(dict):
    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__

    def __init__(self, values):
        super().__init__({k: EasyDict(v) if isinstance(v, dict) else v for k, v in values.items()})


seed_everything, report_classwise_accuracy = torch.manual_seed, lambda df, last_score: None


def get_defs(cfg, task):
    return f"evar/metadata/{task}.csv", "work/16k", TASKS[task][1], 0.5, False


def create_dataloader(cfg, fold=1, **_):
    table = pd.read_csv(cfg.task_metadata)
    splits = table.split if "split" in table else np.where(table.fold == fold, "test", "train")
    sets = [
        types.SimpleNamespace(df=table[splits == s], classes=sorted(set(table.label)))
        for s in SPLITS
    ]
    return (*(types.SimpleNamespace(dataset=d) for d in sets), False)


def to_embeddings(emb_ar, loader, device, _id, fold):
    data = loader.dataset
    labels = [data.classes.index(label) for label in data.df.label]
    waves = [
        wave_of(int(name.split(".")[0]), label)
        for name, label in zip(data.df.file_name, labels, strict=True)
    ]
    if not waves:
        return None, None
    with torch.no_grad():
        return emb_ar(torch.stack(waves)).numpy(), np.array(labels)


class AR_M2D(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.runtime = nn.Module()
        self.runtime.backbone = nn.Module()
        self.runtime.backbone.blocks = nn.ModuleList(
            nn.ModuleDict({"mlp": Mlp(16, 24)}) for _ in range(12)
        )
        if cfg:
            self.load_state_dict(torch.load(cfg.weight_file, weights_only=True))

    def precompute(self, device, loader):
        pass

    def forward(self, x):
        for block in self.runtime.backbone.blocks:
            x = x + block["mlp"](x)
        return x


class AR_M2D_Steering_Neurons(AR_M2D):
    def __init__(self, cfg):
        super().__init__(cfg)
        for layer in {pair[0] for pair in cfg.int_neurons} & set(range(12)):
            gains = torch.ones(24)
            gains[[n for at, n in cfg.int_neurons if at == layer and n < 24]] = cfg.int_gain
            self.runtime.backbone.blocks[layer]["mlp"].act.register_forward_hook(
                lambda m, a, out, g=gains: out * g
            )


class AR_M2D_Drawn_Steering_Neurons(AR_M2D_Steering_Neurons):
    """As EVAR builds a model whose weights are drawn: other weights each time."""

    def __init__(self, cfg):
        super().__init__(cfg)
        for parameter in self.parameters():
            nn.init.normal_(parameter)


class MLP(nn.Module):
    def __init__(self, input_size, hidden_sizes, output_size):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(input_size, output_size))

    def forward(self, x):
        return self.mlp(x)


class TorchMLPClassifier2:
    device = torch.device("cpu")

    def __init__(
        self, hidden_layer_sizes=(), max_iter=20, learning_rate_init=0.05, standard_scaler=True, **_
    ):
        self.hidden_layer_sizes, self.max_iter, self.lr = (
            hidden_layer_sizes,
            max_iter,
            learning_rate_init,
        )
        self.standard_scaler, self.oh_enc = StandardScaler(), None

    def switch_regime(self, y, y_val):
        if self.oh_enc is None:
            self.oh_enc = LabelBinarizer().fit(y)
        loss = lambda logits, truth: -(truth * logits.log_softmax(-1)).mean()  # noqa: E731
        return "acc", loss, len(self.oh_enc.classes_), self.oh_enc.transform(y), None

    def fit(self, X, y, X_val=None, y_val=None):
        _, loss, n_class, y, _ = self.switch_regime(y, y_val)
        X = torch.Tensor(self.standard_scaler.fit_transform(X))
        self.model = MLP(X.shape[1], self.hidden_layer_sizes, n_class)
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.lr)
        for _ in range(self.max_iter):
            optimizer.zero_grad()
            loss(self.model(X), torch.Tensor(y)).backward()
            optimizer.step()

    def score(self, X, y, classes):
        truth = self.switch_regime(y, None)[3].argmax(
            -1
        )  # two classes have one column here: all are the first class
        with torch.no_grad():
            found = self.model(torch.Tensor(self.standard_scaler.transform(X))).argmax(-1).numpy()
        table = {"GT": [classes[i] for i in truth], "prediction": [classes[i] for i in found]}
        return (truth == found).mean(), pd.DataFrame(table)


def make_cfg(config_file, task, options=""):
    cfg = EasyDict(yaml.safe_load(Path(config_file).read_text()))
    cfg.task_metadata, cfg.task_data, folds, seconds, balanced = get_defs(cfg, task)
    cfg.unit_samples, cfg.id, cfg.task_name = int(seconds * 16000), f"run_{task}", task
    return cfg, folds, balanced


def lineareval_run(task, seed=42, finished=True):
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
        ar = ar or AR_M2D(cfg)
        (X, y), (Xv, yv), (Xt, yt) = (
            to_embeddings(ar, loader, None, cfg.id, fold) for loader in loaders
        )
        clf = TorchMLPClassifier2()
        clf.fit(X, y, X_val=Xv, y_val=yv)
        score, df = clf.score(Xt, yt, loaders[0].dataset.classes)
        scores.append(score)
        if hasattr(clf, "save"):
            clf.save(folder)
    if finished:
        df.to_csv(folder / f"run-LE_12345678_{np.mean(scores):.5f}.csv", index=False)
        right = (df.prediction == df.GT).groupby(df.GT).mean()
        pd.DataFrame([right.to_dict()]).to_csv(folder / "last_score_by_class.csv", index=None)
    return folder, float(np.mean(scores))


def steering(neurons, **changes):
    settings = PLAIN | {
        "audio_repr": "ar_m2d.AR_M2D_Steering_Neurons",
        "int_neurons": neurons,
        "int_gain": 0.0,
    }
    Path("config/steer.yaml").write_text(yaml.safe_dump(settings | changes))
    return "config/steer.yaml"


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """le_eval_only() inside the imitation: modules of EVAR's names, and a folder with its metadata and weights."""
    here = {k: v for k, v in globals().items() if not k.startswith("__")}
    for name in ("evar", "evar.common", "evar.data", "evar.ds_tasks", "evar.ar_m2d", "evar.utils", "lineareval",
                 "evar.utils.torch_mlp_clf2"):  # fmt: skip
        module = types.ModuleType(name)
        module.__dict__.update(here, logging=logging)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for folder in ("evar/metadata", "config", "external"):
        Path(folder).mkdir(parents=True)
    part = np.arange(72) // 12
    split = np.repeat(SPLITS, [3, 1, 2])[part]
    for task, (classes, folds) in TASKS.items():
        table = {
            "file_name": [f"{i}.wav" for i in range(72)],
            "label": np.resize(classes.split(), 72),
        }
        table |= {"fold": part % 3 + 1} if folds > 1 else {"split": split}
        pd.DataFrame(table).to_csv(f"evar/metadata/{task}.csv", index=False)
    Path("config/plain.yaml").write_text(yaml.safe_dump(PLAIN))
    torch.manual_seed(1)
    torch.save(AR_M2D(None).state_dict(), "external/m2d.pth")
    return runpy.run_path(str(REPOSITORY / "add_to_evar" / "le_eval_only.py"))["le_eval_only"]


def result(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    (predictions,) = folder.glob("le_eval_only-*-predictions.csv")
    return pd.read_csv(str(predictions).replace("-predictions", "")), pd.read_csv(
        predictions, dtype=str
    )


@pytest.mark.parametrize(
    ("task", "finished"), [*((task, True) for task in TASKS), ("three", False)]
)  # lineareval.py --save ends before it writes any score
def test_with_no_neurons_the_repeated_run_is_the_run(evaluate, capsys, task, finished):
    folder, score = lineareval_run(task, finished=finished)
    evaluate(steering([]), task, folder)
    table, predictions = result(folder)
    assert (
        table.difference_points == 0
    ).all()  # the classes 7, 8, 60 are numbers in one file, text in another
    assert (predictions.before == predictions.prediction).all()
    right = (predictions.prediction == predictions.GT).groupby(predictions.fold).mean().mean()
    if (
        task == "two"
    ):  # all are the first class to the public classifier; here they have two columns
        assert table["class"].tolist() == ["cat", "dog"] and right > 0.7
        return
    assert (
        right == score and 0.4 < score < 1.0
    )  # neither trivial nor hopeless, or equality would say little
    assert not finished or "24 predictions 24 are the same" in capsys.readouterr().out
    scopes = {"all folds": 72, "fold 3": 24} if task == "folds" else {"test": 24}
    assert table.groupby("scope").clips.sum().to_dict() == scopes
    assert predictions.file_name.nunique() == len(predictions) == max(scopes.values())


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
    assert table.difference_points.tolist() == pytest.approx(
        100 * (table.accuracy - table.accuracy_before).to_numpy()
    )


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


def test_a_classifier_that_evar_saved_is_used(evaluate, capsys, monkeypatch):
    save = lambda self, folder: torch.save(self, f"{folder}/linear.pth")  # noqa: E731
    load = staticmethod(lambda folder: torch.load(f"{folder}/linear.pth", weights_only=False))
    monkeypatch.setattr(TorchMLPClassifier2, "save", save, raising=False)
    monkeypatch.setattr(TorchMLPClassifier2, "load", load, raising=False)
    folder, score = lineareval_run("three")
    evaluate(steering([]), "three", folder)
    assert "repeating" not in capsys.readouterr().out and not (folder / "le_eval_only.pt").exists()
    _, predictions = result(folder)
    assert (predictions.prediction == predictions.GT).mean() == score
    evaluate(steering([]), "folds", lineareval_run("folds")[0])
    assert "classifier of fold 3 only" in capsys.readouterr().out


def test_before_is_counted_here_whatever_lies_in_the_folder(evaluate):
    folder, _ = lineareval_run("three")
    pd.DataFrame([{"cat": 1.0, "dog": 1.0, "owl": 1.0}]).to_csv(
        folder / "last_score_by_class.csv", index=None
    )
    evaluate(steering([]), "three", folder)
    table, predictions = result(folder)
    right = (predictions.before == predictions.GT).groupby(predictions.GT).mean()
    assert (
        table.accuracy_before.tolist() == pytest.approx(right.tolist())
        and (table.difference_points == 0).all()
    )


def test_the_same_metadata_by_another_path_are_the_same(evaluate):
    folder, _ = lineareval_run("three")
    relative = get_defs(None, "three")[0]
    log = folder / "log.txt"
    log.write_text(log.read_text().replace(relative, str(Path(relative).resolve())))
    evaluate(steering([]), "three", folder)


def test_bad_input_is_named(evaluate):
    folder, _ = lineareval_run("three")
    evaluate(
        steering([], weight_file=shutil.copy("external/m2d.pth", "external/same.pth")),
        "three",
        folder,
    )
    torch.save({k: v + 1 for k, v in torch.load("external/m2d.pth").items()}, "external/other.pth")

    def refused(words, neurons=(), task="three", **changes):
        with pytest.raises(ValueError, match=words):
            evaluate(steering([list(pair) for pair in neurons], **changes), task, folder)

    refused("is a run of three, not of two", task="two")
    refused("The run had mean=0.0", mean=1.0)
    refused("--options=weight_file=external/m2d.pth", weight_file="external/other.pth")
    refused(
        "which is not a file: EVAR draws random weights", weight_file="m2d_vit_base-random/random"
    )
    refused(
        "without steering, .* embeds the test clips",
        audio_repr="ar_m2d.AR_M2D_Drawn_Steering_Neurons",
    )
    refused("no MLP in layer 12", [(12, 0)])
    refused("neurons 0 to 23", [(0, 24)])
    refused("2 times", [(0, 1), (0, 1)])
    refused("put no hook", [(0, 1)], audio_repr="ar_m2d.AR_M2D")
    table = pd.read_csv("evar/metadata/three.csv")
    table[table.file_name != "70.wav"].to_csv("evar/metadata/three.csv", index=False)
    refused("test split of three has changed")
    table.replace("owl", "wolf").to_csv("evar/metadata/three.csv", index=False)
    refused("knows the classes")
    (folder / "log.txt").write_text("2026-11-22 00:00:00 INFO nothing\n")
    refused("runtime_cfg")


def test_a_configuration_from_a_selection(tmp_path):
    p = np.full((2, 50, 3), 0.2) + np.random.RandomState(0).random_sample((2, 50, 3)) * 0.01
    p[1, 7, 2], p[0, 3, 2] = 0.9, 0.95
    selection = select(p, rate=0.02, classes=["a", "b", "c"])
    path = bridge.write_config(
        tmp_path / "steer.yaml", selection.neurons("c"), gain=0.5, note="toy: c\nsecond line"
    )
    settings = yaml.safe_load(path.read_text())
    assert (settings["int_neurons"], settings["int_gain"]) == ([[0, 3], [1, 7]], 0.5)
    assert settings["lr_lineareval"] == 3e-05  # as a number, not as text
    assert path.read_text().startswith("# 2 neurons of M2D times 0.5\n# toy: c\n# second line\n")
    for wrong in ([[0, 1], [0, 1]], [[0, -1]], [[0.5, 1.0]]):
        with pytest.raises(ValueError, match="neuron"):
            bridge.write_config(path, wrong)


def test_tasks_are_registered_once_and_taken_out_without_a_trace(tmp_path):
    def register(*options: str) -> subprocess.CompletedProcess:
        command = [
            sys.executable,
            str(REPOSITORY / "add_to_evar" / "register_tasks.py"),
            str(tmp_path),
            *options,
        ]
        return subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"EVAR": ""}
        )

    table = tmp_path / "evar" / "ds_tasks.py"
    table.parent.mkdir()
    for text, words in (
        ("_defs = {'gise51': [1, 10.0, None, False]}\n", "of its own"),
        ("x = {}\n", "EVAR has changed"),
    ):
        table.write_text(text)
        refused = register()
        assert refused.returncode == 1 and words in refused.stderr and table.read_text() == text
    original = b"_defs = {\r\n    'vc1': [1, 8.2, None, False],\r\n}\r\n\r\ndef get_defs():\r\n    return _defs"
    table.write_bytes(original)
    assert "added gise51" in register().stdout
    once = table.read_bytes()
    assert "nothing to do" in register().stdout and table.read_bytes() == once
    found = {name: (d.folder, d.clip_seconds) for name, d in bridge.definitions(tmp_path).items()}
    assert (found["vc1_gender"], found["gise51"]) == (("vc1", 8.2), ("gise51", 5.0))
    assert set(runpy.run_path(str(table))["_defs"]) == {
        "vc1",
        "gise51",
        "vc1_gender",
        "vc1_country",
    }  # as EVAR sees it
    register("--remove")
    assert table.read_bytes() == original


REAL = """
import sys
sys.path.insert(0, CLONE)
import evar.ds_tasks
evar.ds_tasks._defs.update({"tiny": [1, 0.2, None, False], "tinyfolds": [2, 0.2, "tiny", False]})
import lineareval, runpy
import pandas as pd
from pathlib import Path

for task in TASKS:
    lineareval.lineareval_downstream("plain.yaml", task, seed=3, lr=0.001, epochs=30)
    folder = next(p for p in Path("logs").iterdir() if f"_{task}_" in p.name)
    program = runpy.run_path("le_eval_only.py")["le_eval_only"]
    program("empty.yaml", task, folder)
    program("many.yaml", task, folder)
    print("SCORE", task, pd.read_csv("results/scores.csv").score.iloc[-1])
"""


@needs_evar
def test_in_the_real_evar(tmp_path):
    """Nothing is written into the clone: its code runs in a folder that has metadata, audio and logs of its own."""
    root = bridge.clone()
    tasks = ["tiny"] + (
        ["tinyfolds"] if int(pd.__version__.split(".")[0]) < 3 else []
    )  # pandas 3: without valid split
    audio, metadata = tmp_path / "work" / "16k" / "tiny", tmp_path / "evar" / "metadata"
    for folder in (audio, metadata, tmp_path / "external"):
        folder.mkdir(parents=True)
    (tmp_path / "external" / "m2d").symlink_to(root / "external" / "m2d")
    rows = []
    for i in range(72):
        draws = np.random.RandomState(i)
        tone = np.sin(np.arange(4000) * (0.1 + 0.15 * (i % 3))) * draws.random_sample()
        soundfile.write(audio / f"{i}.wav", 0.4 * (tone + draws.random_sample(4000) - 0.5), 16000)
        rows.append(
            (
                f"{i}.wav",
                "abc"[i % 3],
                ("train", "train", "valid", "test")[i // 3 % 4],
                i // 3 % 2 + 1,
            )
        )
    table = pd.DataFrame(rows, columns=["file_name", "label", "split", "fold"])
    table.drop(columns="fold").to_csv(metadata / "tiny.csv", index=False)
    table.drop(columns="split").to_csv(metadata / "tinyfolds.csv", index=False)
    checkpoint = numpy_weights.save_checkpoint(tmp_path)
    empty = bridge.write_config(tmp_path / "empty.yaml", [], weight_file=str(checkpoint))
    settings = yaml.safe_load(empty.read_text()) | {"audio_repr": "ar_m2d.AR_M2D"}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(settings))
    many = [[layer, n] for layer in range(12) for n in range(0, 3072, 2)]
    bridge.write_config(tmp_path / "many.yaml", many, weight_file=str(checkpoint))
    shutil.copy(REPOSITORY / "add_to_evar" / "le_eval_only.py", tmp_path)
    (tmp_path / "go.py").write_text(f"CLONE = {str(root)!r}\nTASKS = {tasks!r}\n{REAL}")
    settings = {"cwd": tmp_path, "env": os.environ | {"EVAR": str(tmp_path), "PYTHONPATH": ""}}
    done = subprocess.run([sys.executable, "go.py"], **settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for task in tasks:
        (folder,) = (p for p in (tmp_path / "logs").iterdir() if f"_{task}_" in p.name)
        (first,) = folder.glob("le_eval_only-empty-*[0-9a-f].csv")
        (steered,) = folder.glob("le_eval_only-many-*[0-9a-f]-predictions.csv")
        assert (pd.read_csv(first).difference_points == 0).all()
        predictions = pd.read_csv(steered)
        assert (predictions.before != predictions.prediction).any()
        unsteered = predictions.GT.eq(predictions.before).groupby(predictions.fold).mean().mean()
        (said,) = (
            line.split()[2]
            for line in done.stdout.splitlines()
            if line.startswith(f"SCORE {task} ")
        )
        assert unsteered == float(said)  # lineareval.py's score, to the last digit
