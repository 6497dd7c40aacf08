"""M2D/0.7, the SSL ViT of the paper: encoder and decoder

D. Niizumi et al.: "Masked Modeling Duo: Towards a Universal Audio Pre-training Framework", IEEE/ACM TASLP 32, 2024.
Release v0.1.0 of nttcslab/m2d; `m2d_enconly` is the encoder alone, which is all that is needed here.

Read NTT's evaluation licence first. Gives data/m2d_vit_base-80x608p16x16-221006-mr7/checkpoint-300.pth, where the study
`paper` looks; the name of the file inside the encoder-only archive was not verified here: look, and write it into the
study. Keep the folder's name: M2D, EVAR and the loader read the input size from it, and the loader checks it against the
tensors.
"""

from __future__ import annotations

from aape.datasets.base import Dataset, Remote

_URL = "https://github.com/nttcslab/m2d/releases/download/v0.1.0"
_FILE = "m2d_vit_base-80x608p16x16-221006-mr7"


def _weights(name: str, suffix: str) -> Dataset:
    archive = f"{_FILE}{suffix}.zip"
    size = "not verified here (an encoder-only archive of the same ViT: 319 MB, in M2D's own notebooks)"
    remotes = (Remote(archive, f"{_URL}/{archive}"),)
    return Dataset(
        name, __doc__, size, "NTT's, LICENSE.pdf in nttcslab/m2d", {}, remotes, folder="."
    )


M2D, M2D_ENCONLY = _weights("m2d", ""), _weights("m2d_enconly", "_enconly")
