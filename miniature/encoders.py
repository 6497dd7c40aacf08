"""The miniature's three models, plugged into `aape` as a user's own would be.

`load_ssl` and `load_sl` read the weights that `miniature/train.py` made (model card: miniature/README.md) after
comparing their SHA-256 with weights/SHA256SUMS; `load_untrained` is the same shape by seed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from aape.encoders import m2d
from aape.encoders.encoder import Encoder

WEIGHTS = Path(__file__).parent / "weights"
SSL_NAME = "MSM-MAE (miniature)"
SL_NAME = "supervised ViT (miniature)"
UNTRAINED_NAME = "untrained ViT (miniature)"


def verified(path: Path) -> Path:
    """The same path, once its content agrees with SHA256SUMS in the same folder.

    Raises:
        FileNotFoundError: the weights or SHA256SUMS are missing.
        ValueError: SHA256SUMS does not name the file, or the file is not the one it names.
    """
    sums = path.parent / "SHA256SUMS"
    for needed in (path, sums):
        if not needed.is_file():
            raise FileNotFoundError(
                f"{needed} is missing; it is part of the repository: restore it with `git checkout -- {needed.parent}`"
            )
    expected = {}
    for line in sums.read_text().splitlines():
        digest, _, name = line.partition("  ")
        expected[name.strip()] = digest
    if path.name not in expected:
        raise ValueError(f"{sums} has no line for {path.name}; it names {sorted(expected)}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected[path.name]:
        raise ValueError(
            f"{path} is damaged or is another file: expected SHA-256 {expected[path.name]} ({sums.name}), found {found} "
            f"({path.stat().st_size} bytes). Restore it with `git checkout -- {path}`."
        )
    return path


def load_ssl(weights: Path = WEIGHTS) -> Encoder:
    """Self-supervised: masked spectrogram modelling with a masked autoencoder. Raises as `verified`."""
    return m2d.load(verified(Path(weights) / "ssl.safetensors"), name=SSL_NAME)


def load_sl(weights: Path = WEIGHTS) -> Encoder:
    """Supervised: the same encoder trained from scratch on ESC-50's labels. Raises as `verified`."""
    return m2d.load(verified(Path(weights) / "sl.safetensors"), name=SL_NAME)


def load_untrained(seed: int = 0) -> Encoder:
    """The same shape with random weights: what the architecture alone does."""
    return m2d.load(
        "random", seed=seed, input_size=(80, 208), width=192, depth=6, name=UNTRAINED_NAME
    )
