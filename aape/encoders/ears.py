"""How the models of `aape.encoders.hub` hear: waves to tokens, which tokens heard only padding, and where they lie."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aape.encoder import Stages
from aape.tokens import in_time

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
    rate = extractor.sampling_rate
    if family in ("timm", "audio-spectrogram-transformer"):
        patches = (_of_timm if family == "timm" else _of_ast)(model, extractor)
        least, longest = patches.window, float(patches.window)
    else:
        of = {"whisper": _of_whisper, "wav2vec2-bert": _of_filter_bank}.get(family, _of_convolutions)
        steps, patches = of(model, extractor, full_window), None
        least, longest = steps.least, steps.limit or math.inf
    window = min(longest, round(WINDOW * rate)) if clip_seconds is None else round(clip_seconds * rate)
    if not least <= window <= longest:
        raise ValueError(
            f"clip_seconds={clip_seconds}: this {family} model takes {least / rate:g} to {longest / rate:g} s at once "
            "(longer waves are cut into such pieces)"
        )
    return patches or TimeEars(steps, int(window))


# --- models whose tokens follow each other in time ---------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """How one family turns waves into tokens.

    Attributes:
        hidden: (each clip's samples up to its last sound, samples of the piece) -> tokens after the last block
            [batch, tokens, width].
        heard: sound samples [batch] -> how many of these tokens heard sound, by the model's own arithmetic.
        tokens: samples of a piece -> number of tokens in the blocks.
        least: the shortest piece that gives a token in the blocks, samples.
        step: samples between two tokens in the blocks.
        squeeze: how many of `hidden`'s tokens one token in the blocks stands for.
        limit: the longest piece, samples; None without one.
        note: about the front end, for the manifest.
        log_mel: as `hidden` -> the spectrogram that goes in [batch, bands, frames]; None where the wave itself does.
        apart: (as `hidden` -> tokens before block 0, the blocks, tokens after the last block -> `hidden`); None: not known.
    """

    hidden: Callable[[list[np.ndarray], int], Tensor]
    heard: Callable[[Tensor], Tensor]
    tokens: Callable[[int], int]
    least: int
    step: int
    squeeze: int = 1
    limit: int | None = None
    note: str = ""
    log_mel: Callable[[list[np.ndarray], int], Tensor] | None = None
    apart: tuple[Callable[[list[np.ndarray], int], Tensor], list[Any], Callable[[Tensor], Tensor]] | None = None


class TimeEars:
    """Embedding, padding masks and grid of a model whose tokens follow each other in time."""

    def __init__(self, steps: Steps, window: int) -> None:
        self.steps, self.window, self.note, self.cell_samples = steps, window, steps.note, steps.step

    def _pieces(self, samples: int) -> list[tuple[int, int, int]]:
        """First sample, samples, and samples as the model gets them, of each piece of a wave."""
        starts = [(start, min(self.window, samples - start)) for start in range(0, samples, self.window)]
        return [(start, length, max(length, self.steps.least)) for start, length in starts]

    def __call__(self, wave: Tensor) -> Tensor:
        """Wave [batch, samples] -> mean over the tokens that heard sound [batch, dim]; over all where none did."""
        parts = self._parts(wave)
        return self._mean([self.steps.hidden(clips, given) for clips, given, _ in parts], parts)

    def _parts(self, wave: Tensor) -> list[tuple[list[np.ndarray], int, Tensor]]:
        """Of each piece: the clips up to their last sound, samples as the model gets them, tokens [batch] that heard."""
        samples = wave.shape[1]
        values = wave.detach().float().cpu()
        places = torch.arange(1, samples + 1)
        heard = torch.where(values != 0, places, 0).amax(dim=1)
        heard = torch.where(heard == 0, samples, heard)  # [batch], last sound
        parts = []
        for start, length, given in self._pieces(samples):
            sound = (heard - start).clamp(0, length)
            piece = nn.functional.pad(values[:, start : start + length], (0, given - length)).numpy()
            clips = [row[: max(int(n), self.steps.least)] for row, n in zip(piece, sound, strict=True)]
            # A clip that is too short for a whole token still has its first one.
            parts.append((clips, given, self.steps.heard(sound).clamp(min=1 if start == 0 else 0)))
        return parts

    def _mean(self, sequences: list[Tensor], parts: list[tuple[list[np.ndarray], int, Tensor]]) -> Tensor:
        """Mean [batch, dim] over the tokens that heard sound, of the tokens [batch, tokens, dim] of each piece."""
        total, count = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        for tokens, (_, _, heard) in zip(sequences, parts, strict=True):
            mine = heard.clamp(max=tokens.shape[1])
            mask = (torch.arange(tokens.shape[1]) < mine[:, None]).to(tokens.device)
            total = total.to(tokens.device) + (tokens * mask[:, :, None]).sum(dim=1)
            count = count + mine
        return total / count[:, None].to(total.device)

    @property
    def stages(self) -> Stages | None:
        """The model taken apart at its blocks, where its family says how."""
        if self.steps.apart is None:
            return None
        before, layers, after = self.steps.apart

        def begin(wave: Tensor) -> tuple[list[Tensor], Callable[[list[Tensor]], Tensor]]:
            parts = self._parts(wave)
            sequences = [before(clips, given) for clips, given, _ in parts]
            return sequences, lambda last: self._mean([after(x) for x in last], parts)

        return Stages(begin, [block_of(layer) for layer in layers], [layer.fc2 for layer in layers])

    def padding_masks(self, valid_samples: Tensor, samples: int) -> list[Tensor]:
        """Tokens behind those that heard sound, one mask [batch, tokens] a piece; the model's own padding too."""
        masks = []
        for start, length, given in self._pieces(samples):
            heard = self.steps.heard((valid_samples - start).clamp(0, length))
            mine = -(-heard // self.steps.squeeze)
            places = torch.arange(self.steps.tokens(given), device=valid_samples.device)
            masks.append(places[None, :] >= mine[:, None])
        return masks

    def token_grid(self, samples: int) -> list[Tensor]:
        """Frequency 0, time counted on across pieces."""
        return in_time([self.steps.tokens(given) for _, _, given in self._pieces(samples)])

    def log_mel(self, wave: Tensor) -> Tensor:
        """The spectrogram of each piece, one after the other [batch, bands, frames]."""
        assert self.steps.log_mel is not None
        values = wave.detach().float().cpu().numpy()
        return torch.cat(
            [self.steps.log_mel(list(values[:, s : s + n]), n) for s, n, _ in self._pieces(wave.shape[1])], dim=2
        )


def _given(model: nn.Module, extractor: Any, clips: list[np.ndarray], length: int, **options: Any) -> Any:
    """What an extractor makes of clips that it pads to a length, on the model's device."""
    return extractor(
        clips, sampling_rate=extractor.sampling_rate, padding="max_length", max_length=length, return_tensors="pt",
        **options,
    ).to(next(model.parameters()).device)  # fmt: skip


def _of_convolutions(model: Any, extractor: Any, full_window: bool) -> Steps:
    """wav2vec2 and its relatives: convolutions over the wave."""
    config = model.config
    squeeze = getattr(config, "squeeze_factor", 1)  # SEW: blocks work on every second token
    least, step = squeeze, squeeze * math.prod(config.conv_stride)
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        least = (least - 1) * stride + kernel

    def hidden(clips: list[np.ndarray], samples: int) -> Tensor:
        given = _given(model, extractor, clips, samples, return_attention_mask=True)
        # Models with a group norm over time were trained without a mask, on zeros; their extractor says so.
        mask = given["attention_mask"] if extractor.return_attention_mask else None
        return model(given["input_values"], attention_mask=mask).last_hidden_state

    def heard(sound: Tensor) -> Tensor:
        return model._get_feat_extract_output_lengths(sound).clamp(min=0).long()

    note = f"Wav2Vec2FeatureExtractor, {'with' if extractor.return_attention_mask else 'without'} attention mask"
    return Steps(hidden, heard, lambda n: int(heard(torch.tensor(n))) // squeeze, least, step, squeeze, note=note)


def _of_filter_bank(model: Any, extractor: Any, full_window: bool) -> Steps:
    """wav2vec2-bert: Kaldi's filter bank (25 ms every 10 ms), every two frames side by side."""
    stride, unit = int(extractor.stride), extractor.sampling_rate // 100

    def frames(samples: Any) -> Any:
        return (samples - 5 * unit // 2) // unit + 1

    def hidden(clips: list[np.ndarray], samples: int) -> Tensor:
        options = {"pad_to_multiple_of": stride, "return_attention_mask": True}
        given = _given(model, extractor, clips, frames(samples), **options)
        mask = given["attention_mask"] if extractor.return_attention_mask else None
        return model(given["input_features"], attention_mask=mask).last_hidden_state

    least = 5 * unit // 2 + (stride - 1) * unit
    note = f"SeamlessM4TFeatureExtractor, {'with' if extractor.return_attention_mask else 'without'} attention mask"
    heard, tokens = lambda n: frames(n).clamp(min=0) // stride, lambda n: -(-frames(n) // stride)
    return Steps(hidden, heard, tokens, least, stride * unit, note=note)


def _of_whisper(encoder: Any, extractor: Any, full_window: bool) -> Steps:
    """Whisper: two convolutions over a log-mel that is normalised by the clip's loudest band."""
    hop, positions = int(extractor.hop_length), int(encoder.config.max_source_positions)
    step, limit = 2 * hop, 2 * hop * positions  # samples a token, samples of the full window

    def features(clips: list[np.ndarray], samples: int) -> Tensor:
        length = limit if full_window else samples
        return _given(encoder, extractor, clips, length, pad_to_multiple_of=step)["input_features"]

    def before(clips: list[np.ndarray], samples: int) -> Tensor:
        x = nn.functional.gelu(encoder.conv1(features(clips, samples)))
        x = nn.functional.gelu(encoder.conv2(x)).transpose(1, 2)
        return x + encoder.embed_positions.weight[: x.shape[1]]

    def hidden(clips: list[np.ndarray], samples: int) -> Tensor:
        x = before(clips, samples)
        for block in blocks:
            x = block(x)
        return encoder.layer_norm(x)

    blocks = [block_of(layer) for layer in encoder.layers]
    return Steps(
        hidden,
        lambda sound: encoder._get_feat_extract_output_lengths(sound // hop).clamp(min=0),
        lambda samples: positions if full_window else -(-samples // step),
        least=1,
        step=step,
        limit=limit,
        note=f"WhisperFeatureExtractor, {'padded to the full window' if full_window else 'at the clip length'}",
        log_mel=lambda clips, samples: features(clips, samples)[:, :, : -(-samples // hop)],
        apart=(before, list(encoder.layers), encoder.layer_norm),
    )


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

    def __init__(
        self, extractor: Any, encode: Callable[[Tensor], Tensor], cells: Tensor, stride: int, extra: int
    ) -> None:
        self.extractor, self.encode, self.cells, self.stride, self.extra = extractor, encode, cells, stride, extra
        self.window = int(extractor.max_length) * _HOP
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
        """The cells of each piece, time counted on; -1 for class and distillation tokens."""
        columns = int(self.cells[:, 1].max()) + 1
        shifts = [torch.tensor([0, piece * columns]) for piece in range(-(-samples // self.window))]
        return [nn.functional.pad(self.cells + shift, (0, 0, self.extra, 0), value=-1) for shift in shifts]


def _of_ast(model: Any, extractor: Any) -> PatchEars:
    """AST (Gong et al. 2021, arXiv 2104.01778); the clip embedding is its own: the mean of class and distillation token."""
    config = model.config
    if int(extractor.max_length) != config.max_length:
        raise ValueError(f"the front end pads to {extractor.max_length} frames, the model takes {config.max_length}")
    rows, columns = model.embeddings.get_shape(config)  # frequency, time
    cells = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))  # frequency outermost
    return PatchEars(extractor, lambda features: model(features).pooler_output, cells, config.time_stride, 2)


def _of_timm(model: Any, extractor: Any) -> PatchEars:
    """AudioMAE (Huang et al. 2022, arXiv 2207.06405); the clip embedding is the checkpoint's own pooling."""
    (frames, mels), (step_t, step_f) = model.patch_embed.img_size, model.patch_embed.patch_size
    # The spectrogram enters as [batch, 1, frames, mels]: time outermost.
    cells = torch.cartesian_prod(torch.arange(frames // step_t), torch.arange(mels // step_f)).flip(1)
    return PatchEars(extractor, lambda x: model(x.unsqueeze(1)), cells, step_t, int(model.num_prefix_tokens))
