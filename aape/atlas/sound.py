"""A clip as a browser can show it: a small MP3 of the sound that the model gets, and a picture of its spectrogram."""

from __future__ import annotations

import functools
import hashlib
import io

import numpy as np
import soundfile
import torch
from PIL import Image

from aape.encoders.encoder import Encoder

MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz, MPEG 1, 2 and 2.5
QUALITY = 0.9  # of the variable bit rate: 0 best, 1 smallest (libsndfile); from 0.95 on it cuts high frequencies off
GREYS = 12
COLUMNS, COLUMNS_PER_SECOND, ROWS = 256, 40, 128  # of a picture, at most


@functools.cache
def sound_format(sample_rate: int) -> str:
    """ "mp3" if this libsndfile writes it at this rate (1.1 or newer), otherwise "wav"."""
    writes_mp3 = "MP3" in soundfile.available_formats() and sample_rate in MP3_RATES
    return "mp3" if writes_mp3 else "wav"


def sound_name(wave: np.ndarray, sample_rate: int) -> str:
    """Name of a clip's sound file: a hash of its samples, its rate and how it is encoded."""
    kind = sound_format(sample_rate)
    digest = hashlib.sha256(f"{sample_rate} {kind} {QUALITY}".encode())
    digest.update(np.asarray(wave, dtype=np.float32).tobytes())
    return f"{digest.hexdigest()[:16]}.{kind}"


def encoded(wave: np.ndarray, sample_rate: int) -> bytes:
    """The bytes of a sound file of a wave [samples], in `sound_format`."""
    file = io.BytesIO()
    wave = np.clip(wave, -1, 1)
    if sound_format(sample_rate) == "wav":
        soundfile.write(file, wave, sample_rate, format="WAV", subtype="PCM_16")
        return file.getvalue()
    options = {"compression_level": QUALITY, "bitrate_mode": "VARIABLE"}
    soundfile.write(file, wave, sample_rate, format="MP3", subtype="MPEG_LAYER_III", **options)
    return file.getvalue()


def picture(spectrogram: np.ndarray, seconds: float) -> bytes:
    """A PNG in a dozen greys of a log spectrogram [bands, frames], lowest band at the bottom, loudest white.

    Black is the 5 % quantile of the picture, so a change of gain does not change the picture.
    """
    most_columns = min(COLUMNS, round(COLUMNS_PER_SECOND * seconds))
    spectrogram = _block_means(spectrogram, ROWS, axis=0)
    spectrogram = _block_means(spectrogram, max(1, most_columns), axis=1)
    low, high = np.quantile(spectrogram, 0.05), spectrogram.max()
    grey = np.clip((spectrogram - low) / max(high - low, 1e-9), 0, 1) * (GREYS - 1)
    image = Image.fromarray(np.rint(grey[::-1]).astype(np.uint8), "P")
    palette = np.rint(np.arange(GREYS) * 255 / (GREYS - 1)).astype(int)
    image.putpalette(palette.repeat(3).tolist())
    file = io.BytesIO()
    image.save(file, "PNG", bits=4, optimize=True)
    return file.getvalue()


def _block_means(values: np.ndarray, most: int, axis: int) -> np.ndarray:
    """Means over blocks of equal size along an axis, so that at most `most` are left."""
    size = values.shape[axis]
    starts = np.arange(0, size, -(-size // most))
    width = np.diff([*starts, size])
    sums = np.add.reduceat(values, starts, axis=axis)
    return sums / (width[:, None] if axis == 0 else width)


def log_mel(encoder: Encoder, wave: np.ndarray) -> np.ndarray:
    """Log-mel spectrogram [bands, frames] of a wave [samples]: the model's own if it gives one, otherwise a plain one."""
    rate = encoder.sample_rate
    batch = torch.from_numpy(wave[None])
    if encoder.log_mel is not None:
        with torch.no_grad():
            spectrogram = encoder.log_mel(batch.to(encoder.device))
        return spectrogram.flatten(0, -3)[0].float().cpu().numpy()
    import nnAudio.features  # here: it takes a second

    hop = max(rate // 100, len(wave) // COLUMNS)
    bands = min(64, hop // 2)
    mel = nnAudio.features.MelSpectrogram(
        rate, 4 * hop, hop_length=hop, n_mels=bands, pad_mode="constant", verbose=False
    )
    return (mel(batch)[0] + 1e-8).log().numpy()
