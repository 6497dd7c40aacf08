"""Supervised audio Transformers from the Hugging Face Hub as encoders: AST (transformers) and AudioMAE (timm).

They stand in for the paper's SL ViT where nobody wants to train one. They are not that model: AST (Gong et al. 2021,
arXiv 2104.01778) starts from an image model and is fine-tuned on AudioSet with labels; AudioMAE (Huang et al. 2022,
arXiv 2207.06405) is self-supervised first and then fine-tuned on AudioSet-20k with labels. Both see 128 mel bands of
10.24 s, M2D sees 80 bands of 6.08 s.

The front end of both is the Kaldi filter bank of transformers' ASTFeatureExtractor, with its padding to the model's
1,024 frames. It computes with torchaudio where that is installed and with numpy where not; the two differ in the last
digits, so the manifest says which it was. Gradients do not pass through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aape.encoder import Encoder, from_module, sha256_of_state
from aape.encoders.checkpoint import fill, read_checkpoint
from aape.files import sha256_of

AST = "MIT/ast-finetuned-audioset-10-10-0.4593"
AUDIOMAE = "gaunernst/vit_base_patch16_1024_128.audiomae_as2m_ft_as20k"

_WINDOW, _HOP = 400, 160  # samples at 16 kHz: 25 ms every 10 ms (Kaldi)


class Fbank:
    """Wave [batch, samples] at 16 kHz -> normalised log-mel [batch, frames, mels], padded to the model's frames.

    What is normalised is the log energy e of a band: (e - mean) / (2 std), with AudioSet's mean and standard deviation.
    Frames behind the wave hold e = 0 before that (AST, AudioMAE), which is not what silence gives.
    """

    def __init__(self, extractor: Any) -> None:
        self.extractor = extractor
        self.frames = int(extractor.max_length)
        self.sample_rate = int(extractor.sampling_rate)

    def __call__(self, wave: Tensor) -> Tensor:
        if wave.shape[-1] < _WINDOW:  # a last chunk shorter than one frame
            wave = nn.functional.pad(wave, (0, _WINDOW - wave.shape[-1]))
        clips = list(wave.detach().float().cpu().numpy())
        features = self.extractor(clips, sampling_rate=self.sample_rate, return_tensors="pt")["input_values"]
        return features.to(device=wave.device, dtype=torch.float32)

    @property
    def computed_with(self) -> str:
        """The library that computes the filter bank here."""
        return "numpy" if hasattr(self.extractor, "mel_filters") else "torchaudio"


class _Chunked:
    """Cuts waves into pieces of the model's length, encodes each, and averages their embeddings by length.

    A piece is as many samples as the model has frames times the hop; the last one may be shorter.
    """

    def __init__(
        self, front_end: Fbank, encode: Callable[[Tensor], Tensor], first_frames: Tensor, extra_tokens: int
    ) -> None:
        self.front_end = front_end
        self.encode = encode
        self.first_frames = first_frames  # first frame that each patch sees [patches], in token order
        self.extra_tokens = extra_tokens  # class and distillation tokens, in front
        self.samples = front_end.frames * _HOP

    def __call__(self, wave: Tensor) -> Tensor:
        pieces = wave.split(self.samples, dim=-1)
        embeddings = [self.encode(self.front_end(p)) * p.shape[-1] for p in pieces]
        return torch.stack(embeddings).sum(dim=0) / wave.shape[-1]

    def padding_masks(self, valid_samples: Tensor, samples: int) -> list[Tensor]:
        """Patches whose first frame begins behind the last valid sample, one mask [batch, tokens] a piece.

        That counts the model's own padding behind a short wave too. Class and distillation tokens never are padding.
        """
        first = self.first_frames.to(valid_samples.device) * _HOP  # [patches], samples
        masks = []
        for start in range(0, samples, self.samples):
            # Frames that would reach beyond the piece are not computed: they are the model's padding.
            length = max(_WINDOW, min(self.samples, samples - start))
            last_frame = (length - _WINDOW) // _HOP
            inside = (valid_samples - start).clamp(min=0)
            silent = (first[None, :] >= inside[:, None]) | (first > last_frame * _HOP)[None, :]
            masks.append(nn.functional.pad(silent, (self.extra_tokens, 0)))
        return masks


def load_ast(
    source: str | Path = AST,
    *,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    revision: str | None = None,
    name: str = "AST",
) -> Encoder:
    """An Audio Spectrogram Transformer through transformers.

    Args:
        source: a Hub name, a folder that `save_pretrained` wrote, or "random".
        config: settings of transformers' ASTConfig, for random weights only.
        seed: of random weights.
        revision: commit of the Hub repository; name one to be held to it.
        name: what tables call the model.

    The clip embedding is AST's own: the mean of class and distillation token after the last layer norm.

    Raises:
        ValueError: a config beside weights that have their own.
        OSError: transformers cannot find or fetch the source.
    """
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    if str(source) == "random":
        settings = ASTConfig(**(config or {}))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = ASTModel(settings)
        extractor = ASTFeatureExtractor(num_mel_bins=settings.num_mel_bins, max_length=settings.max_length)
        provenance = {"source": "random", "seed": seed, "sha256": sha256_of_state(model)}
    else:
        if config is not None:
            raise ValueError(f"{source} brings its own configuration; leave config out, or use source='random'")
        folder = str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else str(source)
        model = ASTModel.from_pretrained(folder, revision=revision or "main")
        extractor = ASTFeatureExtractor.from_pretrained(folder, revision=revision or "main")
        provenance = {"source": str(source), "sha256": sha256_of_state(model)}
        commit = getattr(model.config, "_commit_hash", None) or revision
        if commit:
            provenance["revision"] = commit
    settings = model.config
    front_end = Fbank(extractor)
    if front_end.frames != settings.max_length:
        raise ValueError(
            f"{source}: its front end pads to {front_end.frames} frames, its model takes {settings.max_length}"
        )
    rows, columns = model.embeddings.get_shape(settings)  # frequency, time
    starts = torch.arange(columns) * settings.time_stride
    chunked = _Chunked(
        front_end,
        lambda features: model(features).pooler_output,
        first_frames=starts.repeat(rows),  # tokens have frequency outermost
        extra_tokens=2,
    )
    return _encoder(model, chunked, _ast_pattern(model), name, provenance)


def _ast_pattern(model: nn.Module) -> str:
    """Where transformers keeps the activations: renamed between its versions 4 and 5."""
    names = {n for n, _ in model.named_modules()}
    return (
        "layers.*.mlp.activation_fn"
        if "layers.0.mlp.activation_fn" in names
        else ("encoder.layer.*.intermediate.intermediate_act_fn")
    )


def load_audiomae(
    source: str | Path = AUDIOMAE, *, config: Mapping[str, Any] | None = None, seed: int = 0, name: str = "AudioMAE"
) -> Encoder:
    """AudioMAE's encoder through timm.

    Args:
        source: a Hub name (of timm's kind), a folder with timm's config.json and weights, a file of weights, or
            "random".
        config: keyword arguments of timm's VisionTransformer, for random weights or a file: `embed_dim`, `depth`, ...
        seed: of random weights.
        name: what tables call the model.

    The clip embedding is the checkpoint's own: the mean of the patches, normalised.

    Raises:
        FileNotFoundError, ValueError: a file that is not there, or holds another model.
    """
    import timm

    settings: dict[str, Any] = {"img_size": (1024, 128), "in_chans": 1, "global_pool": "avg", "num_classes": 0}
    path = Path(source).expanduser()
    if str(source) == "random" or path.is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = timm.create_model("vit_base_patch16_224", pretrained=False, **{**settings, **(config or {})})
        provenance: dict[str, Any] = {"source": "random", "seed": seed, "sha256": sha256_of_state(model)}
        if path.is_file():
            fill(model, read_checkpoint(path), path)
            provenance = {"source": str(source), "sha256": sha256_of(path)}
    else:
        if config is not None:
            raise ValueError(f"{source} brings its own configuration; leave config out, or use source='random'")
        if path.suffix in (".pth", ".bin", ".safetensors"):
            raise FileNotFoundError(f"no weights at {path}")
        prefix = "local-dir:" if path.is_dir() else "hf_hub:"
        address = str(source) if ":" in str(source) else f"{prefix}{path if path.is_dir() else source}"
        model = timm.create_model(address, pretrained=True, num_classes=0)
        provenance = {"source": str(source), "sha256": sha256_of_state(model)}
    patch_embed: Any = model.patch_embed
    frames, mels = patch_embed.img_size
    step_t, step_f = patch_embed.patch_size
    if patch_embed.proj.in_channels != 1:
        raise ValueError(f"{source} takes {patch_embed.proj.in_channels} channels, expected 1 (a spectrogram)")
    prefix_tokens: Any = model.num_prefix_tokens
    from transformers import ASTFeatureExtractor

    chunked = _Chunked(
        Fbank(ASTFeatureExtractor(num_mel_bins=mels, max_length=frames)),
        lambda features: model(features.unsqueeze(1)),
        # tokens have time outermost: the spectrogram enters as [batch, 1, frames, mels]
        first_frames=(torch.arange(frames // step_t) * step_t).repeat_interleave(mels // step_f),
        extra_tokens=int(prefix_tokens),
    )
    return _encoder(model, chunked, "blocks.*.mlp.act", name, provenance)


def _encoder(model: nn.Module, chunked: _Chunked, pattern: str, name: str, provenance: Mapping[str, Any]) -> Encoder:
    model.requires_grad_(False)
    return from_module(
        model,
        activations=pattern,
        embed=chunked,
        sample_rate=chunked.front_end.sample_rate,
        clip_seconds=chunked.samples / chunked.front_end.sample_rate,
        name=name,
        weights={**provenance, "front_end": f"ASTFeatureExtractor with {chunked.front_end.computed_with}"},
        chunks=True,
        padding_masks=chunked.padding_masks,
    )
