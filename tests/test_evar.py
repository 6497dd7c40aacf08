"""EVAR's models and tasks through the bridge: a tiny package of the same layout always, the real clone where EVAR is set."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from conftest import needs_evar

from aape.causal.silencing import silenced
from aape.collecting.counting import count_batch
from aape.encoders import m2d
from aape.encoders.dry_run import widths
from add_to_evar import bridge as evar
from benchmarks import numpy_weights

# Written for this test: the few things of EVAR's layout that the bridge touches.
MODEL = """
import os
import torch
from torch import nn

try:
    import a_package_that_is_not_there
except Exception:
    pass


class AR_Toy(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.where = os.getcwd(), os.environ["EVAR"]
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(cfg.width, cfg.width), nn.GELU()) for _ in range(2)])

    def precompute(self, device, data_loader):
        self.mean = 0.0 if self.cfg.mean is not None else torch.cat(list(data_loader)).mean()

    def forward(self, wave):
        frames = wave[:, : wave.shape[1] // self.cfg.width * self.cfg.width].reshape(len(wave), -1, self.cfg.width)
        return self.layers(frames - self.mean).mean(dim=1)


class AR_Frames(AR_Toy):
    def forward(self, wave):
        return super().forward(wave).unsqueeze(-1)


class AR_Unfinished(AR_Toy):
    def __init__(self, cfg):
        a_package_that_is_not_there.build()
"""
CONFIG = """
audio_repr: ar_toy.AR_Toy
weight_file:
sample_rate: 1000
width: 8
mean: 0.0
std: 1.0
"""
TASKS = """
raise RuntimeError("the table is read, not run")
_defs = {'toy': [1, 0.5, None, False], 'toy_pitch': [1, 0.25, 'toy', False], 'lost': [1, 1.0, None, False]}
_defs.update({'added': [5, 0.5, 'toy', False]})
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    root = tmp_path / "evar"
    (root / "evar" / "metadata").mkdir(parents=True)
    (root / "config").mkdir()
    audio = root / "work" / "16k" / "toy"
    audio.mkdir(parents=True)
    (root / "easydict.py").write_text("class EasyDict(dict):\n    __getattr__ = dict.__getitem__\n")
    (root / "evar" / "__init__.py").write_text("")
    (root / "evar" / "ar_toy.py").write_text(MODEL)
    (root / "evar" / "ds_tasks.py").write_text(TASKS)
    (root / "config" / "toy.yaml").write_text(CONFIG)
    rows = ["file_name,label,split,speaker_id"]
    for i in range(6):
        soundfile.write(
            audio / f"{i}.wav", np.random.RandomState(i).random_sample(8000) - 0.5, 16000
        )
        rows.append(
            f"{i}.wav,{10 - i % 2 * 8},{('train', 'train', 'valid', 'valid', 'test', 'test')[i]},s{i // 2}"
        )
    (root / "evar" / "metadata" / "toy.csv").write_text("\n".join(rows))
    (root / "evar" / "metadata" / "toy_pitch.csv.csv").write_text("\n".join(rows))
    monkeypatch.setenv("EVAR", str(root))
    monkeypatch.setattr(evar, "has_package", lambda name: True)
    before = set(sys.modules)
    known = {
        n: sys.modules.pop(n) for n in list(sys.modules) if n.split(".")[0] in ("evar", "easydict")
    }
    yield root
    for name in set(sys.modules) - before | {"easydict"}:
        if name.split(".")[0] in ("evar", "easydict"):
            sys.modules.pop(name, None)
    sys.modules.update(known)


def test_a_model_is_built_by_its_own_class_and_counts_are_those_of_its_modules(fake):
    folder, paths = os.getcwd(), list(sys.path)
    encoder = evar.load("config/toy.yaml", activations="layers.*.1")
    assert (os.getcwd(), sys.path) == (folder, paths)
    assert encoder.layers == ("layers.0.1", "layers.1.1")
    assert encoder.module.ar.where == (
        str(fake),
        str(fake),
    )  # relative paths in EVAR's code are the clone's
    assert (encoder.name, encoder.sample_rate, encoder.chunks) == ("AR_Toy", 1000, False)
    assert set(widths(encoder).values()) == {8}
    wave = torch.from_numpy(np.random.RandomState(0).random_sample((3, 80)) - 0.5).float()
    counted = count_batch(encoder, wave, torch.full((3,), 80), encoder.layers, 8)
    x = wave.reshape(3, 10, 8)
    for layer, block in enumerate(encoder.module.ar.layers):
        x = block(x)
        assert torch.equal(counted.counts[:, layer], (x > 0).sum(1).int())
    drawn = [
        evar.load("config/toy.yaml", activations="layers.*.1", seed=seed).weights["sha256"]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_statistics_of_training_data_need_a_task_and_use_its_training_clips(fake):
    options = {"mean": None, "sample_rate": 16000}
    with pytest.raises(ValueError, match="pass task="):
        evar.load("config/toy.yaml", options=options, activations="layers.*.1")
    task = evar.load_task("toy")
    encoder = evar.load("config/toy.yaml", options=options, activations="layers.*.1", task=task)
    expected = np.mean([task.read(i, 16000)[0] for i in (0, 1)])
    assert float(encoder.module.ar.mean) == pytest.approx(expected, abs=1e-6)
    assert encoder.clip_seconds == 0.5


@pytest.mark.parametrize(
    ("options", "layers", "error", "words"),
    [
        ({"audio_repr": "ar_toy.AR_X"}, "layers.*.1", ValueError, "it has AR_Toy"),
        (
            {"audio_repr": "ar_toy.AR_Unfinished"},
            "layers.*.1",
            ImportError,
            "a_package_that_is_not_there",
        ),
        (
            {"weight_file": "external/model.pth"},
            "layers.*.1",
            FileNotFoundError,
            "Preparing-models.md",
        ),
        ({"+return_filename": True}, "layers.*.1", ValueError, "reads files"),
        (
            {"audio_repr": "ar_toy.AR_Frames"},
            "layers.*.1",
            ValueError,
            r"embeddings \[2, dim\], found \(2, 8, 1\)",
        ),
        ({"widht": 4}, "layers.*.1", ValueError, "did you mean 'width'"),
        ({}, None, ValueError, "pass activations="),
    ],
)
def test_what_cannot_be_built_is_named(fake, options, layers, error, words):
    with pytest.raises(error, match=words):
        evar.load("config/toy.yaml", options=options, activations=layers).embed(torch.zeros(2, 80))


def test_what_is_missing_is_named_with_its_command(fake, monkeypatch):
    monkeypatch.setattr(evar, "has_package", lambda name: name != "torchaudio")
    with pytest.raises(ImportError) as caught:
        evar.require(fake, "lineareval.py", "ar_m2d")
    for words in (
        "pip install --no-deps torchaudio",
        "torch_mlp_clf2.py -o",
        "sampler.py -o",
        "external/m2d",
    ):
        assert words in str(caught.value)
    assert "/master/" not in str(caught.value)  # addresses are pinned
    monkeypatch.delenv("EVAR")
    with pytest.raises(FileNotFoundError, match="EVAR is not set"):
        evar.load()


def test_a_task_is_read_from_the_table_the_metadata_and_the_folder(fake):
    task = evar.load_task("toy")
    assert (len(task), task.clip_seconds, task.group_column) == (6, 0.5, "speaker_id")
    assert task.classes == ("2", "10")  # numbers in their order
    assert task.splits == ("train", "train", "valid", "valid", "test", "test")
    assert task.read(3, 16000)[1] == 8000
    assert evar.load_task("toy_pitch").clip_seconds == 0.25  # metadata written as .csv.csv
    assert evar.definitions()["added"].folds == 5
    for name, error, words in (
        ("tooy", ValueError, "Did you mean: toy"),
        ("gise51", ValueError, r"register_tasks\.py"),
        ("lost", FileNotFoundError, "make_metadata"),
    ):
        with pytest.raises(error, match=words):
            evar.load_task(name)
    with pytest.raises(FileNotFoundError, match="prepare_wav"):
        evar.load_task("toy", sample_rate=48000)


@needs_evar
def test_the_real_task_table_is_read_as_evar_has_it():
    found = evar.definitions()
    code = """import json, evar.ds_tasks as tasks
print("TABLE" + json.dumps({k: [v[0], v[1], v[2] or k, v[3]] for k, v in tasks._defs.items()}))"""
    answer = subprocess.check_output([sys.executable, "-c", code], cwd=evar.clone(), text=True)
    table = json.loads(answer[answer.index("TABLE") + 5 :])
    assert {k: [d.folds, d.clip_seconds, d.folder, d.balanced] for k, d in found.items()} == table


@needs_evar
def test_evars_steering_and_our_silencing_are_the_same(tmp_path):
    checkpoint = numpy_weights.save_checkpoint(tmp_path)
    # the published set of CREMA-D, ANG and HAP, one of each of its layers
    neurons = [[0, 112], [3, 2233], [5, 1430], [6, 1196], [7, 2499], [8, 386], [9, 347], [10, 2663]]
    ours = m2d.load(checkpoint)
    wave = numpy_weights.noise(1.0)
    for gain in (0.0, 0.5):
        config = evar.write_config(
            tmp_path / "steer.yaml", neurons, gain=gain, weight_file=str(checkpoint)
        )
        steered = evar.load(config).embed(wave)
        plain = ours.embed(wave)
        with silenced(ours, neurons, gain=gain):
            changed = ours.embed(wave)
        assert float((changed - plain).abs().max()) > 1e-3  # the set acts
        assert float((changed - steered).abs().max()) <= 1e-5
    assert torch.equal(
        evar.load(evar.write_config(config, [], weight_file=str(checkpoint))).embed(wave), plain
    )
    checkpoint.unlink()
