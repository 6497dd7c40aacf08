"""Shared fixtures: a toy encoder whose counts can be worked out by hand, and a folder of tiny clips."""

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from torch import Tensor, nn

from aape.encoders.encoder import Encoder
from aape.encoders.module import from_module
from aape.sounds.loading import from_metadata
from aape.sounds.task import Task

matplotlib.use("agg")
REPOSITORY = Path(__file__).resolve().parent.parent
RATE = 1000  # Hz, of the toy


class Toy(nn.Module):
    """Three layers on "tokens" of 100 samples each: [batch, samples] -> [batch, tokens, 8] -> ... -> [batch, 8]."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for width in (100, 8, 8):
            layer = nn.Module()
            layer.fc = nn.Linear(width, 8)
            layer.act = nn.ReLU()
            self.layers.append(layer)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, wave: Tensor) -> Tensor:
        x = wave.unflatten(1, (-1, 100))
        for layer in self.layers:
            x = layer.act(layer.fc(x))
        return x.mean(dim=1)


def toy_padding(valid: Tensor, samples: int) -> list[Tensor]:
    """A token is padding when all of its 100 samples are."""
    return [torch.arange(0, samples, 100)[None, :] >= valid[:, None]]


def make_toy(seed: int = 0, **options: object) -> Encoder:
    """The toy as an Encoder of 3 layers x 8 neurons."""
    module = Toy(seed)
    return from_module(
        module,
        activations="layers.*.act",
        embed=module,
        sample_rate=RATE,
        clip_seconds=1.0,
        name="toy",
        weights={"source": "toy", "sha256": f"toy-{seed}"},
        padding_masks=toy_padding,
        **options,  # type: ignore[arg-type]
    )


def write_clips(folder: Path, clips: int = 24, seed: int = 0, rate: int = RATE) -> Path:
    """`clips` noise files of 0.35 to 1.2 s in three classes, five folds and six groups; returns the metadata file."""
    rng = np.random.default_rng(seed)
    lengths = [(0.35, 1.0, 1.2)[i % 3] if i % 4 else 1.0 for i in range(clips)]
    waves = [
        rng.normal(0, 0.1 + 0.1 * (i % 3), round(seconds * rate))
        for i, seconds in enumerate(lengths)
    ]
    rows = [(f"class{i % 3}", i % 5 + 1, f"g{i % 6}") for i in range(clips)]
    return write_sounds(folder, waves, rate, rows, ["label", "fold", "group"])


def write_sounds(
    folder: Path, waves: Sequence[np.ndarray], rate: int, rows: Sequence, columns: list[str]
) -> Path:
    """Files 000.wav, 001.wav, ... below `folder`/audio, and a metadata file of them, which is returned."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    names = [f"{i:03d}.wav" for i in range(len(waves))]
    for name, wave in zip(names, waves, strict=True):
        soundfile.write(folder / "audio" / name, wave, rate, subtype="FLOAT")
    table = pd.DataFrame(rows, columns=columns)
    table.insert(0, "file_name", names)
    table.to_csv(folder / "clips.csv", index=False)
    return folder / "clips.csv"


def tiny_whisper(folder: Path, seconds: int = 4, width: int = 16, neurons: int = 32) -> Path:
    """A random Whisper of two layers that takes `seconds` at once, as save_pretrained writes it; returns the folder."""
    import transformers

    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        d_model=width, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=neurons, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=neurons, max_source_positions=50 * seconds, vocab_size=50,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    transformers.WhisperModel(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(chunk_length=seconds).save_pretrained(folder)
    return folder


def make_task(folder: Path, clips: int = 24, seconds: float = 1.0, **options: int) -> Task:
    """The clips of `write_clips` as a Task of `seconds` a clip."""
    return from_metadata(
        write_clips(folder, clips, **options), folder / "audio", clip_seconds=seconds, name="noise"
    )


@pytest.fixture
def toy() -> Encoder:
    return make_toy()


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return make_task(tmp_path / "data")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache of resampled audio."""
    if "AAPE_CACHE" not in os.environ:
        monkeypatch.setenv("AAPE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@contextlib.contextmanager
def one_thread():
    """Torch on one thread, as many processes beside one another have it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def shared_folder(*parts: str) -> Path:
    """A folder of real data or weights: beside the repository, or below $AAPE_SHARED. It may not be there."""
    return Path(os.environ.get("AAPE_SHARED", REPOSITORY.parent / "shared"), *parts)


def esc50_folder() -> Path | None:
    """Where ESC-50 lies: $AAPE_ESC50, or beside the repository; None where it does not."""
    folder = Path(os.environ.get("AAPE_ESC50") or shared_folder("data", "esc50"))
    return folder if (folder / "meta" / "esc50.csv").is_file() else None


@pytest.fixture
def esc50() -> Path:
    folder = esc50_folder()
    if folder is None:
        pytest.skip("ESC-50 is not here: set AAPE_ESC50 to its folder")
    return folder


needs_evar = pytest.mark.skipif(
    not os.environ.get("EVAR") or importlib.util.find_spec("torchaudio") is None,
    reason="needs the environment variable EVAR (a clone of EVAR with M2D in external/m2d) and torchaudio",
)


@pytest.fixture
def ravdess() -> Path:
    folder = shared_folder("data", "ravdess")
    if not folder.is_dir():
        pytest.skip(f"RAVDESS is not here: expected it at {folder}, or set AAPE_SHARED")
    return folder


@pytest.fixture(
    scope="module"
)  # not longer: while it is open its event loop runs, where notebooks start theirs
def browser() -> Iterator[Any]:
    """The system's chromium, driven by Playwright."""
    chromium = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if chromium is None:
        pytest.skip(
            "no chromium here: apt-get install chromium, or another way to get one on the PATH"
        )
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="pip install playwright drives the browser"
    )
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        started = driver.chromium.launch(executable_path=chromium, args=options)
        yield started
        started.close()
