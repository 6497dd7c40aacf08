"""Front ends of the models in `aape.encoders.hub` that see patches of a spectrogram of fixed length: AST and timm's ViTs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aape.encoders.front_ends import check_bands

FRAME, HOP = 400, 160  # samples at 16 kHz: 25 ms every 10 ms (Kaldi)


@dataclass(eq=False)
class PatchFrontEnd:
    """Embedding, padding masks and grid of a ViT on the filter bank of AST, which AudioMAE uses too.

    The log energy e of a band is normalised as (e - mean) / (2 std), with AudioSet's mean and standard deviation. Frames
    behind the wave hold e = 0 before that (AST, AudioMAE), which is not what silence gives. Waves are cut into pieces of
    as many samples as the model has frames times the hop, and the embeddings of the pieces are averaged by length.

    Attributes:
        extractor: transformers' ASTFeatureExtractor.
        encode: normalised log-mel [batch, frames, mels] -> embedding [batch, dim].
        cells: (frequency, time) of each patch [patches, 2], in token order.
        stride: frames between two columns of patches.
        extra: number of class and distillation tokens, which come first.
    """

    extractor: Any
    encode: Callable[[Tensor], Tensor]
    cells: Tensor
    stride: int
    extra: int

    stages = None

    def __post_init__(self) -> None:
        self.window = int(self.extractor.max_length) * HOP
        self.least = self.limit = self.window
        self.cell_samples = self.stride * HOP
        library = "torchaudio"
        if hasattr(self.extractor, "mel_filters"):
            library = "numpy"  # the two differ in the last digits
        self.note = f"ASTFeatureExtractor with {library}"

    def spectrogram(self, wave: Tensor) -> Tensor:
        """Wave [batch, samples] -> normalised log-mel [batch, frames, mels], padded to the model's frames."""
        missing = max(0, FRAME - wave.shape[-1])  # a last piece may be shorter than one frame
        padded = nn.functional.pad(wave, (0, missing))
        clips = padded.detach().float().cpu().numpy()
        rate = self.extractor.sampling_rate
        features = self.extractor(list(clips), sampling_rate=rate, return_tensors="pt")
        return features["input_values"].float().to(wave.device)

    def log_mel(self, wave: Tensor) -> Tensor:
        """The frames that hold the wave, piece after piece [batch, mels, frames]."""
        spectrograms = []
        for piece in wave.split(self.window, dim=-1):
            frames = math.ceil(piece.shape[-1] / HOP)
            spectrogram = self.spectrogram(piece)
            spectrograms.append(spectrogram[:, :frames])
        return torch.cat(spectrograms, dim=1).transpose(1, 2)

    def __call__(self, wave: Tensor) -> Tensor:
        """Wave [batch, samples] -> the model's own pooled output [batch, dim], averaged over pieces by length."""
        embeddings = []
        for piece in wave.split(self.window, dim=-1):
            embedding = self.encode(self.spectrogram(piece))
            embeddings.append(embedding * piece.shape[-1])
        total = torch.stack(embeddings).sum(dim=0)
        return total / wave.shape[-1]

    def padding_masks(self, valid_samples: Tensor, samples: int) -> list[Tensor]:
        """Patches whose first frame begins behind the last valid sample, one mask [batch, tokens] per piece.

        That includes the model's own padding behind a short wave. Class and distillation tokens are never padding.
        """
        columns = self.cells[:, 1].to(valid_samples.device)
        first = columns * self.stride * HOP  # [patches], samples
        masks = []
        for start in range(0, samples, self.window):
            # Frames that would reach beyond the piece are not computed: they are the model's padding.
            length = max(FRAME, min(self.window, samples - start))
            last_frame = (length - FRAME) // HOP
            valid = (valid_samples - start).clamp(min=0)
            silent = first >= valid[:, None]  # [batch, patches]
            silent = silent | (first > last_frame * HOP)
            before = (self.extra, 0)
            masks.append(nn.functional.pad(silent, before))
        return masks

    def token_grid(self, samples: int) -> list[Tensor]:
        """The cells of each piece at its place in time; -1 for class and distillation tokens.

        Between two pieces a cell may be empty.
        """
        grid = []
        for start in range(0, samples, self.window):
            column = math.ceil(start / self.cell_samples - 0.5)
            cells = self.cells + torch.tensor([0, column])
            before = (0, 0, self.extra, 0)
            grid.append(nn.functional.pad(cells, before, value=-1))
        return grid


def _cells(outer: int, inner: int) -> Tensor:
    """Index pairs of a grid [outer * inner, 2], the inner index running fastest."""
    first, second = torch.arange(outer), torch.arange(inner)
    return torch.cartesian_prod(first, second)


def ast_front_end(model: Any, extractor: Any) -> PatchFrontEnd:
    """AST (Gong et al. 2021, arXiv 2104.01778); its own embedding is the mean of class and distillation token."""
    check_bands(extractor.num_mel_bins, model.config.num_mel_bins)
    rows, columns = model.embeddings.get_shape(model.config)  # frequency, time
    cells = _cells(rows, columns)  # frequency outermost

    def encode(spectrogram: Tensor) -> Tensor:
        return model(spectrogram).pooler_output

    stride = model.config.time_stride
    return PatchFrontEnd(extractor, encode, cells, stride, extra=2)


def timm_front_end(model: Any, extractor: Any) -> PatchFrontEnd:
    """AudioMAE (Huang et al. 2022, arXiv 2207.06405); the embedding is the checkpoint's own pooling."""
    frames, mels = model.patch_embed.img_size
    step_t, step_f = model.patch_embed.patch_size
    # The spectrogram enters as [batch, 1, frames, mels]: time outermost.
    cells = _cells(frames // step_t, mels // step_f).flip(1)

    def encode(spectrogram: Tensor) -> Tensor:
        return model(spectrogram.unsqueeze(1))

    extra = int(model.num_prefix_tokens)
    return PatchFrontEnd(extractor, encode, cells, step_t, extra)
