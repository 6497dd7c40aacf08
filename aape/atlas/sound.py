"""A clip as a browser can show it: a small MP3 of what the model heard, and a picture of its log-mel spectrogram."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import nn

from aape.encoders.encoder import Encoder, noise
from aape.files import whole_file

MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz, MPEG 1, 2 and 2.5
QUALITY = 0.9  # of the variable bit rate: 0 best, 1 smallest (libsndfile); from 0.95 on it cuts high frequencies off
GREYS = 12
COLUMNS, COLUMNS_A_SECOND, ROWS = 256, 40, 128  # of a picture, at most


@functools.cache
def sound_format(sample_rate: int) -> str:
    """ "mp3" where this libsndfile writes it at this rate (1.1 or newer), else "wav"."""
    known = "MP3" in soundfile.available_formats() and sample_rate in MP3_RATES
    return "mp3" if known else "wav"


def encoded(wave: np.ndarray, sample_rate: int) -> bytes:
    """The bytes of a sound file of a wave [samples], in `sound_format`."""
    file = io.BytesIO()
    wave = np.clip(wave, -1, 1)
    if sound_format(sample_rate) == "mp3":
        options = {"compression_level": QUALITY, "bitrate_mode": "VARIABLE"}
        soundfile.write(file, wave, sample_rate, format="MP3", subtype="MPEG_LAYER_III", **options)
    else:
        soundfile.write(file, wave, sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def picture(spectrogram: np.ndarray, seconds: float) -> bytes:
    """A PNG in a dozen greys of a log spectrogram [bands, frames], lowest band at the bottom, white its loudest.

    Black is the 5 % point of the picture, so a change of gain leaves it as it is.
    """
    for axis, most in ((0, ROWS), (1, min(COLUMNS, round(COLUMNS_A_SECOND * seconds)))):
        step = -(-spectrogram.shape[axis] // max(1, most))
        starts = np.arange(0, spectrogram.shape[axis], step)
        width = np.diff([*starts, spectrogram.shape[axis]])
        spectrogram = np.add.reduceat(spectrogram, starts, axis=axis) / (width[:, None] if axis == 0 else width)
    low, high = np.quantile(spectrogram, 0.05), spectrogram.max()
    grey = np.clip((spectrogram - low) / max(high - low, 1e-9), 0, 1) * (GREYS - 1)
    image = Image.fromarray(np.rint(grey[::-1]).astype(np.uint8), "P")
    image.putpalette([round(i * 255 / (GREYS - 1)) for i in range(GREYS) for _ in range(3)])
    file = io.BytesIO()
    image.save(file, "PNG", bits=4, optimize=True)
    return file.getvalue()


class Pictures:
    """Spectrograms of waves: the model's own log-mel where it says one, else a plain one.

    Attributes:
        own: whether the model's own is shown.
        identity: equal for front ends that differ by a gain and an offset only, so that models share pictures.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.own = encoder, encoder.log_mel is not None
        probe = self.log_mel(noise(1, encoder.sample_rate)[0].numpy())
        probe = (probe - probe.mean()) / max(float(probe.std()), 1e-9)
        self.identity = f"{probe.shape} {np.rint(probe[::4, ::8] * 100).astype(int).tolist()}"

    def log_mel(self, wave: np.ndarray) -> np.ndarray:
        """[bands, frames] of a wave [samples]."""
        rate = self.encoder.sample_rate
        if self.encoder.log_mel is not None:
            with torch.no_grad():
                found = self.encoder.log_mel(torch.from_numpy(wave[None]).to(self.encoder.device))
            return found.flatten(0, -3)[0].float().cpu().numpy()
        import nnAudio.features  # here: it takes a second

        hop = max(rate // 100, len(wave) // COLUMNS)
        mel = nnAudio.features.MelSpectrogram(
            rate, 4 * hop, hop_length=hop, n_mels=min(64, hop // 2), pad_mode="constant", verbose=False
        )
        return (mel(torch.from_numpy(wave[None]))[0] + 1e-8).log().numpy()

    @contextlib.contextmanager
    def overheard(self, waves: np.ndarray) -> Iterator[list[np.ndarray]]:
        """While it lasts, the log-mels [batch, bands, frames] that this thread's pass makes of the whole waves by a module."""
        found, here, module = list[np.ndarray](), threading.get_ident(), self.encoder.log_mel

        def keep(_: nn.Module, heard: tuple[Any, ...], made: torch.Tensor) -> None:
            if threading.get_ident() == here and [getattr(wave, "shape", None) for wave in heard] == [waves.shape]:
                found.append(made.flatten(0, -3).float().cpu().numpy())

        with contextlib.ExitStack() as stack:
            if isinstance(module, nn.Module):
                stack.callback(module.register_forward_hook(keep).remove)
            yield found

    def of(self, wave: np.ndarray, log_mel: np.ndarray | None = None) -> bytes:
        """The PNG of a wave [samples], of which the log-mel may be known already."""
        log_mel = self.log_mel(wave) if log_mel is None else log_mel
        return picture(log_mel, len(wave) / self.encoder.sample_rate)


def wave_hash(wave: np.ndarray, sample_rate: int) -> str:
    """What a clip's sound file is called: a hash of its samples, its rate and how it is encoded."""
    digest = hashlib.sha256(f"{sample_rate} {sound_format(sample_rate)} {QUALITY}".encode())
    digest.update(np.asarray(wave, dtype=np.float32).tobytes())
    return digest.hexdigest()[:16]


def keep(path: Path, content: Callable[[], bytes]) -> str:
    """The file's name, once the file is there, whole: its name says its content, so what is there is not made again."""
    if not path.is_file() or not path.stat().st_size:
        with whole_file(path, sync=False) as file:
            file.write(content())
    return path.name
