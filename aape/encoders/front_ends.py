"""Front ends of the models in `aape.encoders.hub` whose tokens follow each other in time.

A front end turns waves into clip embeddings, and says which tokens saw only padding and where tokens lie on the clip.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from aape.encoders.encoder import Finish, Stages
from aape.encoders.module import time_grid


class Piece(NamedTuple):
    """What the model gets of one piece of a batch of clips.

    Attributes:
        clips: the samples of each clip up to its last sound.
        samples: length of the piece as the model gets it.
        sounding: int64 [batch], tokens after the last block that saw sound.
    """

    clips: list[np.ndarray]
    samples: int
    sounding: Tensor


class TimeFrontEnd:
    """Embedding, padding masks and grid of a model whose tokens follow each other in time.

    Attributes:
        least, limit: the shortest piece that gives a token in the blocks, and the longest, samples.
        window: the longest piece that the model is given, samples.
        cell_samples: samples between two tokens in the blocks.
        squeeze: tokens after the last block per token in the blocks.
        note: about the front end, for the manifest.
        log_mel, stages: see `Encoder`.
    """

    least: int = 1
    limit: float = math.inf
    squeeze: int = 1
    window: int
    cell_samples: int
    log_mel: Callable[[Tensor], Tensor] | None = None
    stages: Stages | None = None

    def __init__(self, model: Any, extractor: Any) -> None:
        self.model = model
        self.extractor = extractor
        masked = "with" if extractor.return_attention_mask else "without"
        self.note = f"{type(extractor).__name__}, {masked} attention mask"

    def sounding_tokens(self, samples: Tensor) -> Tensor:
        """Samples of sound [batch] -> how many tokens after the last block saw sound, by the model's own arithmetic."""
        raise NotImplementedError

    def tokens(self, samples: int) -> int:
        """Samples of a piece, `least` or more -> number of tokens in the blocks."""
        raise NotImplementedError

    def features(self, piece: Piece, **options: Any) -> Any:
        """What the extractor makes of a piece."""
        settings = {
            "sampling_rate": self.extractor.sampling_rate,
            "padding": "max_length",
            "max_length": piece.samples,
            "return_tensors": "pt",
        }
        features = self.extractor(piece.clips, **settings, **options)
        parameter = next(self.model.parameters())
        return features.to(parameter.device)

    def last_tokens(self, piece: Piece) -> Tensor:
        """Tokens [batch, tokens, dim] after the last block."""
        features = self.features(piece, return_attention_mask=True)
        mask = None
        # Models with a group norm over time were trained without a mask, on zeros; their extractor says so.
        if self.extractor.return_attention_mask:
            mask = features["attention_mask"]
        output = self.model(features[self.model.main_input_name], attention_mask=mask)
        return output.last_hidden_state

    def __call__(self, wave: Tensor) -> Tensor:
        """Wave [batch, samples] -> mean over the tokens that saw sound [batch, dim]; over all where none did."""
        pieces = self._cut(wave)
        sequences = [self.last_tokens(piece) for piece in pieces]
        return self._mean(sequences, pieces)

    def padding_masks(self, valid_samples: Tensor, samples: int) -> list[Tensor]:
        """Tokens behind those that saw sound, one mask [batch, tokens] per piece; the model's own padding too."""
        masks = []
        for start in range(0, samples, self.window):
            length = self._length(start, samples)
            valid = (valid_samples - start).clamp(0, length)
            sounding = -(-self.sounding_tokens(valid) // self.squeeze)
            count = self.tokens(max(length, self.least))
            tokens = torch.arange(count, device=valid.device)
            masks.append(tokens[None, :] >= sounding[:, None])
        return masks

    def token_grid(self, samples: int) -> list[Tensor]:
        """Frequency 0, time running on across pieces."""
        counts, starts = [], []
        for start in range(0, samples, self.window):
            length = self._length(start, samples)
            counts.append(self.tokens(max(length, self.least)))
            starts.append(start / self.cell_samples)
        return time_grid(counts, starts)

    def _length(self, start: int, samples: int) -> int:
        """Length of the piece that begins at a sample."""
        return min(self.window, samples - start)

    def _cut(self, wave: Tensor) -> list[Piece]:
        """The pieces of a wave [batch, samples]; the model gets at least `least` samples."""
        values = wave.detach().float().cpu()
        samples = wave.shape[1]
        places = torch.arange(1, samples + 1)
        sounding_places = torch.where(values != 0, places, 0)
        ends = sounding_places.amax(dim=1)  # [batch], behind the last sound
        ends = torch.where(ends == 0, samples, ends)
        pieces = []
        for start in range(0, samples, self.window):
            length = self._length(start, samples)
            sound = (ends - start).clamp(0, length)
            missing = max(0, self.least - length)
            piece = values[:, start : start + length]
            padded = nn.functional.pad(piece, (0, missing))
            kept = sound.clamp(min=self.least)
            clips = []
            for row, samples_kept in zip(padded.numpy(), kept, strict=True):
                clips.append(row[:samples_kept])
            # A clip that is too short for a whole token still has its first one.
            sounding = self.sounding_tokens(sound)
            if start == 0:
                sounding = sounding.clamp(min=1)
            pieces.append(Piece(clips, length + missing, sounding))
        return pieces

    def _mean(self, sequences: list[Tensor], pieces: list[Piece]) -> Tensor:
        """Mean [batch, dim] over the tokens that saw sound, of the tokens [batch, tokens, dim] of each piece."""
        total: Any = 0
        count: Any = 0
        for tokens, piece in zip(sequences, pieces, strict=True):
            length, device = tokens.shape[1], tokens.device
            sounding = piece.sounding.clamp(max=length).to(device)
            mask = torch.arange(length, device=device) < sounding[:, None]
            masked = tokens * mask[:, :, None]
            total = total + masked.sum(dim=1)
            count = count + sounding
        return total / count[:, None]


class Convolutions(TimeFrontEnd):
    """wav2vec2 and its relatives: convolutions over the wave."""

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__(model, extractor)
        config = model.config
        self.squeeze = getattr(
            config, "squeeze_factor", 1
        )  # SEW: blocks work on every second token
        stride = math.prod(config.conv_stride)
        self.cell_samples = self.squeeze * stride
        self.least = self.squeeze
        layers = zip(config.conv_kernel, config.conv_stride, strict=True)
        for kernel, stride in reversed(list(layers)):
            self.least = (self.least - 1) * stride + kernel

    def sounding_tokens(self, samples: Tensor) -> Tensor:
        lengths = self.model._get_feat_extract_output_lengths(samples)
        return lengths.clamp(min=0).long()

    def tokens(self, samples: int) -> int:
        count = self.sounding_tokens(torch.tensor(samples))
        return int(count) // self.squeeze


class FilterBank(TimeFrontEnd):
    """wav2vec2-bert: Kaldi's filter bank (25 ms every 10 ms), several frames joined into one token."""

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__(model, extractor)
        self.stride = int(extractor.stride)
        check_bands(extractor.feature_size * self.stride, model.config.feature_projection_input_dim)
        self.hop = extractor.sampling_rate // 100
        self.frame = 5 * self.hop // 2
        between = (self.stride - 1) * self.hop
        self.least = self.frame + between
        self.cell_samples = self.stride * self.hop

    def _frames(self, samples: Any) -> Any:
        return (samples - self.frame) // self.hop + 1

    def features(self, piece: Piece, **options: Any) -> Any:
        in_frames = piece._replace(samples=self._frames(piece.samples))
        return super().features(in_frames, pad_to_multiple_of=self.stride, **options)

    def sounding_tokens(self, samples: Tensor) -> Tensor:
        return self._frames(samples).clamp(min=0) // self.stride

    def tokens(self, samples: int) -> int:
        return -(-self._frames(samples) // self.stride)


class Whisper(TimeFrontEnd):
    """Whisper: two convolutions over a log-mel that is normalised by the clip's loudest band.

    Args:
        model: the encoder.
        extractor: its feature extractor.
        full_window: pad every piece to the model's 30 s instead of running at the piece's length.
    """

    def __init__(self, model: Any, extractor: Any, full_window: bool = False) -> None:
        super().__init__(model, extractor)
        check_bands(extractor.feature_size, model.config.num_mel_bins)
        self.full_window = full_window
        self.hop = int(extractor.hop_length)
        self.positions = int(model.config.max_source_positions)
        self.cell_samples = 2 * self.hop
        self.limit = self.positions * self.cell_samples
        length = "padded to the full window" if full_window else "at the clip length"
        self.note = f"WhisperFeatureExtractor, {length}"
        self.blocks = [block_of(layer) for layer in model.layers]
        projections = [layer.fc2 for layer in model.layers]
        self.stages = Stages(self._begin, self.blocks, projections)

    def features(self, piece: Piece, **options: Any) -> Any:
        if self.full_window:
            piece = piece._replace(samples=self.positions * self.cell_samples)
        return super().features(piece, pad_to_multiple_of=self.cell_samples, **options)

    def last_tokens(self, piece: Piece) -> Tensor:
        tokens = self._first_tokens(piece)
        for block in self.blocks:
            tokens = block(tokens)
        return self.model.layer_norm(tokens)

    def sounding_tokens(self, samples: Tensor) -> Tensor:
        lengths = self.model._get_feat_extract_output_lengths(samples // self.hop)
        return lengths.clamp(min=0)

    def tokens(self, samples: int) -> int:
        if self.full_window:
            return self.positions
        return -(-samples // self.cell_samples)

    def log_mel(self, wave: Tensor) -> Tensor:
        """The spectrogram of each piece, one after the other [batch, bands, frames]."""
        spectrograms = []
        for piece in self._cut(wave):
            frames = -(-piece.samples // self.hop)
            spectrogram = self.features(piece)["input_features"]
            spectrograms.append(spectrogram[:, :, :frames])
        return torch.cat(spectrograms, dim=2)

    def _first_tokens(self, piece: Piece) -> Tensor:
        """Tokens before block 0, with the first of the model's positions."""
        spectrogram = self.features(piece)["input_features"]
        hidden = nn.functional.gelu(self.model.conv1(spectrogram))
        hidden = nn.functional.gelu(self.model.conv2(hidden))
        tokens = hidden.transpose(1, 2)
        positions = self.model.embed_positions.weight
        return tokens + positions[: tokens.shape[1]]

    def _begin(self, wave: Tensor) -> tuple[list[Tensor], Finish]:
        """See `Stages.begin`."""
        pieces = self._cut(wave)

        def finish(sequences: list[Tensor]) -> Tensor:
            normalised = [self.model.layer_norm(tokens) for tokens in sequences]
            return self._mean(normalised, pieces)

        return [self._first_tokens(piece) for piece in pieces], finish


def check_bands(given: int, expected: int) -> None:
    """Refuse a feature extractor that belongs to another model.

    Raises:
        ValueError: it does not give the bands of the spectrogram that the model takes.
    """
    if given != expected:
        raise ValueError(
            f"the front end (preprocessor_config.json) gives {given} mel bands, the model (config.json) takes {expected}: they "
            "are of different models. Restore the preprocessor_config.json of this model."
        )


def block_of(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """A layer of transformers without masks: [batch, tokens, width] -> the same."""
    signature = inspect.signature(layer.forward)
    required = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.default is parameter.empty
    ]
    masks = [None] * (len(required) - 1)  # transformers 4 requires two masks, 5 one

    def block(x: Tensor) -> Tensor:
        out = layer(x, *masks)
        return out[0] if isinstance(out, tuple) else out

    return block
