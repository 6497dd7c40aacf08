"""How the models of `aape.encoders.hub` hear: waves to tokens, which tokens heard only padding, and where they lie."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aape.encoders.encoder import Stages
from aape.encoders.tokens import in_time

WINDOW = 30.0  # s, of models without a longest input


def ears_of(
    model: nn.Module, extractor: Any, family: str, clip_seconds: float | None, full_window: bool
) -> TimeEars | PatchEars:
    """What a model of a family of `FAMILIES` hears with.

    Args:
        model: of transformers or timm; of Whisper the encoder.
        extractor: its feature extractor.
        family: model type.
        clip_seconds: the longest piece that it gets at once, s; None: what it takes, or `WINDOW`.
        full_window: Whisper at its 30 s instead of the piece's length.

    Raises:
        ValueError: a length that this model does not take.
    """
    kinds: dict[str, Any] = {
        "whisper": partial(Whisper, full_window=full_window),
        "wav2vec2-bert": FilterBank,
        "audio-spectrogram-transformer": _of_ast,
        "timm": _of_timm,
    }
    ears: TimeEars | PatchEars = kinds.get(family, Convolutions)(model, extractor)
    rate = extractor.sampling_rate
    window = min(ears.limit, WINDOW * rate) if clip_seconds is None else clip_seconds * rate
    if not ears.least <= round(window) <= ears.limit:
        takes = f"{ears.least / rate:g} to {ears.limit / rate:g} s at once (longer waves are cut into such pieces)"
        raise ValueError(f"clip_seconds={clip_seconds}: this {family} model takes {takes}")
    ears.window = round(window)
    return ears


# --- models whose tokens follow each other in time ---------------------------------------------------------------


class TimeEars:
    """Embedding, padding masks and grid of a model whose tokens follow each other in time.

    Attributes:
        least, limit: the shortest piece that gives a token in the blocks, and the longest, samples.
        window: the longest piece that the model is given, samples.
        cell_samples: samples between two tokens in the blocks.
        squeeze: how many tokens after the last block one token in the blocks stands for.
        note: about the front end, for the manifest.
        log_mel, stages: see `Encoder`.
    """

    least: int = 1
    limit: float = math.inf
    squeeze = 1
    window: int
    cell_samples: int
    log_mel: Callable[[Tensor], Tensor] | None = None
    stages: Stages | None = None

    def __init__(self, model: Any, extractor: Any) -> None:
        self.model, self.extractor = model, extractor
        masked = "with" if extractor.return_attention_mask else "without"
        self.note = f"{type(extractor).__name__}, {masked} attention mask"

    def given(self, clips: list[np.ndarray], length: int, **options: Any) -> Any:
        """What the extractor makes of clips that it pads to a length."""
        return self.extractor(
            clips, sampling_rate=self.extractor.sampling_rate, padding="max_length", max_length=length,
            return_tensors="pt", **options,
        ).to(next(self.model.parameters()).device)  # fmt: skip

    def hidden(self, clips: list[np.ndarray], samples: int) -> Tensor:
        """Each clip's samples up to its last sound, samples of the piece -> tokens after the last block."""
        given = self.given(clips, samples, return_attention_mask=True)
        # Models with a group norm over time were trained without a mask, on zeros; their extractor says so.
        mask = given["attention_mask"] if self.extractor.return_attention_mask else None
        return self.model(given[self.model.main_input_name], attention_mask=mask).last_hidden_state

    def heard(self, sound: Tensor) -> Tensor:
        """Sound samples [batch] -> how many tokens after the last block heard sound, by the model's own arithmetic."""
        raise NotImplementedError

    def tokens(self, samples: int) -> int:
        """Samples of a piece -> number of tokens in the blocks."""
        raise NotImplementedError

    def _pieces(self, samples: int) -> list[tuple[int, int]]:
        """First sample and samples of each piece of a wave; the model gets at least `least`."""
        return [(start, min(self.window, samples - start)) for start in range(0, samples, self.window)]

    def _parts(self, wave: Tensor) -> list[tuple[list[np.ndarray], int, Tensor]]:
        """Of each piece: the clips up to their last sound, samples as the model gets them, tokens [batch] that heard."""
        samples, parts = wave.shape[1], []
        values = wave.detach().float().cpu()
        last = torch.where(values != 0, torch.arange(1, samples + 1), 0).amax(dim=1)
        last = torch.where(last == 0, samples, last)  # [batch], last sound
        for start, length in self._pieces(samples):
            sound, given = (last - start).clamp(0, length), max(length, self.least)
            piece = nn.functional.pad(values[:, start : start + length], (0, given - length)).numpy()
            clips = [row[: max(int(n), self.least)] for row, n in zip(piece, sound, strict=True)]
            # A clip that is too short for a whole token still has its first one.
            parts.append((clips, given, self.heard(sound).clamp(min=1 if start == 0 else 0)))
        return parts

    def _mean(self, sequences: list[Tensor], parts: list[tuple[list[np.ndarray], int, Tensor]]) -> Tensor:
        """Mean [batch, dim] over the tokens that heard sound, of the tokens [batch, tokens, dim] of each piece."""
        sums, counts = [], []
        for tokens, (_, _, heard) in zip(sequences, parts, strict=True):
            counts.append(heard.clamp(max=tokens.shape[1]).to(tokens.device))
            mask = torch.arange(tokens.shape[1], device=tokens.device) < counts[-1][:, None]
            sums.append((tokens * mask[:, :, None]).sum(dim=1))
        return sum(sums) / sum(counts)[:, None]  # type: ignore[index]

    def __call__(self, wave: Tensor) -> Tensor:
        """Wave [batch, samples] -> mean over the tokens that heard sound [batch, dim]; over all where none did."""
        parts = self._parts(wave)
        return self._mean([self.hidden(clips, given) for clips, given, _ in parts], parts)

    def padding_masks(self, valid_samples: Tensor, samples: int) -> list[Tensor]:
        """Tokens behind those that heard sound, one mask [batch, tokens] a piece; the model's own padding too."""
        masks = []
        for start, length in self._pieces(samples):
            heard = -(-self.heard((valid_samples - start).clamp(0, length)) // self.squeeze)
            tokens = torch.arange(self.tokens(max(length, self.least)), device=valid_samples.device)
            masks.append(tokens[None, :] >= heard[:, None])
        return masks

    def token_grid(self, samples: int) -> list[Tensor]:
        """Frequency 0, time running on across pieces."""
        pieces = self._pieces(samples)
        tokens = [self.tokens(max(length, self.least)) for _, length in pieces]
        return in_time(tokens, [start / self.cell_samples for start, _ in pieces])


class Convolutions(TimeEars):
    """wav2vec2 and its relatives: convolutions over the wave."""

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__(model, extractor)
        config = model.config
        self.least = self.squeeze = getattr(config, "squeeze_factor", 1)  # SEW: blocks work on every second token
        self.cell_samples = self.squeeze * math.prod(config.conv_stride)
        for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
            self.least = (self.least - 1) * stride + kernel

    def heard(self, sound: Tensor) -> Tensor:
        return self.model._get_feat_extract_output_lengths(sound).clamp(min=0).long()

    def tokens(self, samples: int) -> int:
        return int(self.heard(torch.tensor(samples))) // self.squeeze


class FilterBank(TimeEars):
    """wav2vec2-bert: Kaldi's filter bank (25 ms every 10 ms), every two frames side by side."""

    def __init__(self, model: Any, extractor: Any) -> None:
        super().__init__(model, extractor)
        self.stride, self.unit = int(extractor.stride), extractor.sampling_rate // 100
        self.least = 5 * self.unit // 2 + (self.stride - 1) * self.unit
        self.cell_samples = self.stride * self.unit

    def _frames(self, samples: Any) -> Any:
        return (samples - 5 * self.unit // 2) // self.unit + 1

    def given(self, clips: list[np.ndarray], length: int, **options: Any) -> Any:
        return super().given(clips, self._frames(length), pad_to_multiple_of=self.stride, **options)

    def heard(self, sound: Tensor) -> Tensor:
        return self._frames(sound).clamp(min=0) // self.stride

    def tokens(self, samples: int) -> int:
        return -(-self._frames(samples) // self.stride)


class Whisper(TimeEars):
    """Whisper: two convolutions over a log-mel that is normalised by the clip's loudest band."""

    def __init__(self, model: Any, extractor: Any, full_window: bool) -> None:
        super().__init__(model, extractor)
        self.full_window, self.hop = full_window, int(extractor.hop_length)
        self.positions, self.cell_samples = int(model.config.max_source_positions), 2 * self.hop
        self.limit = self.positions * self.cell_samples
        self.note = f"WhisperFeatureExtractor, {'padded to the full window' if full_window else 'at the clip length'}"
        self.blocks = [block_of(layer) for layer in model.layers]
        self.stages = Stages(self._begin, self.blocks, [layer.fc2 for layer in model.layers])

    def _features(self, clips: list[np.ndarray], samples: int) -> Tensor:
        length = self.positions * self.cell_samples if self.full_window else samples
        return self.given(clips, length, pad_to_multiple_of=self.cell_samples)["input_features"]

    def _before(self, clips: list[np.ndarray], samples: int) -> Tensor:
        """Tokens before block 0, with the first of the model's positions."""
        x = nn.functional.gelu(self.model.conv1(self._features(clips, samples)))
        x = nn.functional.gelu(self.model.conv2(x)).transpose(1, 2)
        return x + self.model.embed_positions.weight[: x.shape[1]]

    def _begin(self, wave: Tensor) -> tuple[list[Tensor], Callable[[list[Tensor]], Tensor]]:
        parts = self._parts(wave)
        sequences = [self._before(clips, given) for clips, given, _ in parts]
        return sequences, lambda last: self._mean([self.model.layer_norm(x) for x in last], parts)

    def hidden(self, clips: list[np.ndarray], samples: int) -> Tensor:
        x = self._before(clips, samples)
        for block in self.blocks:
            x = block(x)
        return self.model.layer_norm(x)

    def heard(self, sound: Tensor) -> Tensor:
        return self.model._get_feat_extract_output_lengths(sound // self.hop).clamp(min=0)

    def tokens(self, samples: int) -> int:
        return self.positions if self.full_window else -(-samples // self.cell_samples)

    def log_mel(self, wave: Tensor) -> Tensor:
        """The spectrogram of each piece, one after the other [batch, bands, frames]."""
        values = wave.detach().float().cpu().numpy()
        pieces = [(values[:, start : start + n], n) for start, n in self._pieces(wave.shape[1])]
        return torch.cat([self._features(list(piece), n)[:, :, : -(-n // self.hop)] for piece, n in pieces], dim=2)


def block_of(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """A layer of transformers without masks: [batch, tokens, width] -> the same."""
    parameters = list(inspect.signature(layer.forward).parameters.values())[1:]  # transformers 4 wants two masks, 5 one
    nothing = [None for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]

    def block(x: Tensor) -> Tensor:
        out = layer(x, *nothing)
        return out[0] if isinstance(out, tuple) else out

    return block


# --- models on patches of a spectrogram of fixed length ----------------------------------------------------------

_FRAME, _HOP = 400, 160  # samples at 16 kHz: 25 ms every 10 ms (Kaldi)


class PatchEars:
    """Embedding, padding masks and grid of a ViT on the filter bank of AST, as AudioMAE uses it too.

    What is normalised is the log energy e of a band: (e - mean) / (2 std), with AudioSet's mean and standard deviation.
    Frames behind the wave hold e = 0 before that (AST, AudioMAE), which is not what silence gives. Waves are cut into
    as many samples as the model has frames times the hop, and the embeddings of the pieces are averaged by length.

    Args:
        extractor: transformers' ASTFeatureExtractor.
        encode: normalised log-mel [batch, frames, mels] -> embedding [batch, dim].
        cells: (frequency, time) of each patch [patches, 2], in token order.
        stride: frames between two columns of patches.
        extra: class and distillation tokens, in front.
    """

    stages = None

    def __init__(
        self, extractor: Any, encode: Callable[[Tensor], Tensor], cells: Tensor, stride: int, extra: int
    ) -> None:
        self.extractor, self.encode, self.cells, self.stride, self.extra = extractor, encode, cells, stride, extra
        self.least = self.limit = self.window = int(extractor.max_length) * _HOP
        self.cell_samples = stride * _HOP
        with_library = "numpy" if hasattr(extractor, "mel_filters") else "torchaudio"  # they differ in the last digits
        self.note = f"ASTFeatureExtractor with {with_library}"

    def front_end(self, wave: Tensor) -> Tensor:
        """Wave [batch, samples] -> normalised log-mel [batch, frames, mels], padded to the model's frames."""
        wave = nn.functional.pad(wave, (0, max(0, _FRAME - wave.shape[-1])))  # a last piece shorter than one frame
        clips = list(wave.detach().float().cpu().numpy())
        given = self.extractor(clips, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        return given["input_values"].to(device=wave.device, dtype=torch.float32)

    def log_mel(self, wave: Tensor) -> Tensor:
        """The frames that hold the wave, piece after piece [batch, mels, frames]."""
        pieces = [self.front_end(p)[:, : max(1, -(-p.shape[-1] // _HOP))] for p in wave.split(self.window, dim=-1)]
        return torch.cat(pieces, dim=1).transpose(1, 2)

    def __call__(self, wave: Tensor) -> Tensor:
        pieces = wave.split(self.window, dim=-1)
        embeddings = [self.encode(self.front_end(p)) * p.shape[-1] for p in pieces]
        return torch.stack(embeddings).sum(dim=0) / wave.shape[-1]

    def padding_masks(self, valid_samples: Tensor, samples: int) -> list[Tensor]:
        """Patches whose first frame begins behind the last valid sample, one mask [batch, tokens] a piece.

        That counts the model's own padding behind a short wave too. Class and distillation tokens never are padding.
        """
        first = self.cells[:, 1].to(valid_samples.device) * self.stride * _HOP  # [patches], samples
        masks = []
        for start in range(0, samples, self.window):
            # Frames that would reach beyond the piece are not computed: they are the model's padding.
            length = max(_FRAME, min(self.window, samples - start))
            last_frame = (length - _FRAME) // _HOP
            inside = (valid_samples - start).clamp(min=0)
            silent = (first[None, :] >= inside[:, None]) | (first > last_frame * _HOP)[None, :]
            masks.append(nn.functional.pad(silent, (self.extra, 0)))
        return masks

    def token_grid(self, samples: int) -> list[Tensor]:
        """The cells of each piece at its place in time, between pieces a cell may be empty; -1 for class and distillation tokens."""
        starts = range(0, samples, self.window)
        shifts = [torch.tensor([0, math.ceil(start / self.cell_samples - 0.5)]) for start in starts]
        return [nn.functional.pad(self.cells + shift, (0, 0, self.extra, 0), value=-1) for shift in shifts]


def _of_ast(model: Any, extractor: Any) -> PatchEars:
    """AST (Gong et al. 2021, arXiv 2104.01778); the clip embedding is its own: the mean of class and distillation token."""
    rows, columns = model.embeddings.get_shape(model.config)  # frequency, time
    cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))  # frequency outermost
    return PatchEars(extractor, lambda features: model(features).pooler_output, cells, model.config.time_stride, 2)


def _of_timm(model: Any, extractor: Any) -> PatchEars:
    """AudioMAE (Huang et al. 2022, arXiv 2207.06405); the clip embedding is the checkpoint's own pooling."""
    (frames, mels), (step_t, step_f) = model.patch_embed.img_size, model.patch_embed.patch_size
    # The spectrogram enters as [batch, 1, frames, mels]: time outermost.
    cells = torch.cartesian_prod(torch.arange(frames // step_t), torch.arange(mels // step_f)).flip(1)
    return PatchEars(extractor, lambda x: model(x.unsqueeze(1)), cells, step_t, int(model.num_prefix_tokens))
