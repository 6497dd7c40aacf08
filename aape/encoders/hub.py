"""Audio Transformers by name: twelve families of transformers, and timm's audio ViTs, from the Hub or from a folder.

    encoder = from_hub("openai/whisper-tiny")

Neurons are the channels after the activation function of each MLP, as many as the intermediate size. Where a block has two
MLPs (ffn1 and ffn2 of conformers) it gives two layers. The front end is the model's own feature extractor, clip by clip, and
gradients start behind it. Weights are float32 whatever the file holds. The model is given a clip up to its last sample that
is not zero. The clip embedding is the mean over the tokens that saw sound (AST and timm's ViTs: their own pooled output);
the model's own arithmetic of lengths says which tokens these are.

Waves longer than `clip_seconds` are cut into pieces of that length. Whisper was trained on 30 s, padded with silence; here it
runs at the clip's length, with the first of its positions, unless `full_window` is set.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import transformers
from safetensors import SafetensorError
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers.utils import cached_file, logging

from aape.encoders.encoder import Encoder, sha256_of_state
from aape.encoders.front_ends import Convolutions, FilterBank, TimeFrontEnd, Whisper
from aape.encoders.module import from_module
from aape.encoders.patch_front_ends import PatchFrontEnd, ast_front_end, timm_front_end

DEFAULT_SECONDS = 30.0  # the longest piece of models that take any length


class Family(NamedTuple):
    """A kind of model.

    Attributes:
        front_end: (model, feature extractor) -> front end.
        activations: globs over its modules; the first that matches is used (names differ between transformers 4 and 5).
    """

    front_end: Callable[..., TimeFrontEnd | PatchFrontEnd]
    activations: tuple[str, ...]


_CONVOLUTIONAL = Family(Convolutions, ("encoder.layers.*.feed_forward.intermediate_act_fn",))
_CONFORMER = ("encoder.layers.*.ffn[12].intermediate_act_fn",)
_AST = ("layers.*.mlp.activation_fn", "encoder.layer.*.intermediate.intermediate_act_fn")
FAMILIES: dict[str, Family] = {  # by model type
    "wav2vec2": _CONVOLUTIONAL,
    "hubert": _CONVOLUTIONAL,
    "wavlm": _CONVOLUTIONAL,
    "data2vec-audio": _CONVOLUTIONAL,
    "unispeech": _CONVOLUTIONAL,
    "unispeech-sat": _CONVOLUTIONAL,
    "sew": _CONVOLUTIONAL,
    "sew-d": Family(Convolutions, ("encoder.encoder.layer.*.intermediate.intermediate_act_fn",)),
    "wav2vec2-conformer": Family(Convolutions, _CONFORMER),
    "wav2vec2-bert": Family(FilterBank, _CONFORMER),
    "whisper": Family(Whisper, ("layers.*.activation_fn",)),
    "audio-spectrogram-transformer": Family(ast_front_end, _AST),
    "timm": Family(timm_front_end, ("blocks.*.mlp.act",)),
}


def from_hub(
    name_or_folder: str | Path,
    *,
    revision: str | None = None,
    layers: Sequence[str | int] | None = None,
    clip_seconds: float | None = None,
    full_window: bool = False,
    seed: int | None = None,
) -> Encoder:
    """An audio Transformer of the Hugging Face Hub, or of a folder that `save_pretrained` wrote, as an `Encoder`.

    The model is given each clip up to its last sound, but padding is only what is appended to a file that ends early: zeros
    at the end of a file itself count as sound, also in `probabilities(padding=False)`.

    Args:
        name_or_folder: "openai/whisper-tiny", or a folder with config.json, preprocessor_config.json and weights.
        revision: commit, tag or branch of the Hub's repository. The commit that was found is recorded in `weights`.
        layers: the layers to count, by name or by index from 0; default: all.
        clip_seconds: the longest wave that goes through the blocks at once, s; default: 30, or what the model takes.
        full_window: Whisper only: pad every clip to the model's 30 s, as in training, instead of running at the clip's
            length. A clip of 5 s then has 83 % padding.
        seed: draw the weights at random with this seed instead of loading them: the untrained baseline.

    Raises:
        OSError: no such model, no access to it, no network; the message says which, and what to do.
        ValueError: not an audio Transformer of these families (the message shows what to write instead), weights missing in
            the file, an unknown layer, or a length that the model does not take.
    """
    folder = Path(name_or_folder).expanduser()
    source = str(folder if folder.is_dir() else name_or_folder)
    if folder.is_dir() and revision is not None:
        raise ValueError(
            f"revision={revision!r} is for models of the Hub, but {source} is a folder: leave it out"
        )
    revision = revision or "main"
    config_path, family = _family_of(source, revision)
    if full_window and family != "whisper":
        raise ValueError(
            f"full_window is Whisper's 30 s, but {source} is a {family} model: leave it out"
        )
    model, extractor = _loaded(source, family, revision, seed)
    front_end = _front_end(source, family, model, extractor, clip_seconds, full_window)
    origin: dict[str, Any] = {
        "source": source,
        "family": family,
        "front_end": front_end.note,
        "sha256": sha256_of_state(model),
    }
    if not folder.is_dir():
        origin["revision"] = config_path.parent.name  # .../snapshots/<commit>/config.json
    if seed is not None:
        origin |= {"drawn": "at random", "seed": seed}
    rate = extractor.sampling_rate
    encoder = from_module(
        model,
        activations=_activations_of(model, family),
        embed=front_end,
        sample_rate=rate,
        clip_seconds=front_end.window / rate,
        name=Path(source).name + ("" if seed is None else " (untrained)"),
        weights=origin,
        chunks=True,
        padding_masks=front_end.padding_masks,
        token_grid=front_end.token_grid,
        stages=front_end.stages,
        cell_seconds=front_end.cell_samples / rate,
        log_mel=front_end.log_mel,
    )
    return encoder if layers is None else _with_layers(encoder, layers)


def _with_layers(encoder: Encoder, layers: Sequence[str | int]) -> Encoder:
    """The encoder with these layers, given by name or index, in order of depth."""
    names: dict[Any, str] = dict(enumerate(encoder.layers))
    chosen = {names.get(layer, str(layer)) for layer in layers}
    in_order = [name for name in encoder.layers if name in chosen]
    unknown = sorted(chosen.difference(in_order))
    return encoder.with_layers([*in_order, *unknown])


def _activations_of(model: nn.Module, family: str) -> str:
    """The glob of a family that matches this model."""
    names = {name for name, _ in model.named_modules()}
    patterns = FAMILIES[family].activations
    return next(p for p in patterns if p.replace("*", "0").replace("[12]", "1") in names)


def _front_end(
    source: str,
    family: str,
    model: nn.Module,
    extractor: Any,
    clip_seconds: float | None,
    full_window: bool,
) -> TimeFrontEnd | PatchFrontEnd:
    """The front end of a model, with its window set."""
    options = {"full_window": True} if full_window else {}
    try:
        front_end = FAMILIES[family].front_end(model, extractor, **options)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    rate = extractor.sampling_rate
    longest = min(front_end.limit, DEFAULT_SECONDS * rate)
    window = round(longest if clip_seconds is None else clip_seconds * rate)
    if not front_end.least <= window <= front_end.limit:
        takes = f"{front_end.least / rate:g} to {front_end.limit / rate:g} s at once"
        raise ValueError(
            f"clip_seconds={clip_seconds}: this {family} model takes {takes} (longer waves are cut into such pieces)"
        )
    front_end.window = window
    return front_end


# --- finding and loading -----------------------------------------------------------------------------------------


def _family_of(source: str, revision: str) -> tuple[Path, str]:
    """Where config.json of a model lies, and which of `FAMILIES` it names."""
    is_folder = Path(source).is_dir()
    if not is_folder and not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source):
        raise FileNotFoundError(
            f"there is no folder {source}; give a folder that save_pretrained wrote, or a name of the Hub such as "
            "'openai/whisper-tiny'"
        )
    if (Path(source) / "adapter_config.json").is_file() and not (
        Path(source) / "config.json"
    ).is_file():
        raise OSError(
            f"{source} holds an adapter (adapter_config.json) without its base model. Load both with peft, then save "
            "model.merge_and_unload() with save_pretrained and give that folder."
        )
    try:
        path = Path(cached_file(source, "config.json", revision=revision) or "no config.json")
        settings = dict(json.loads(path.read_text(encoding="utf-8")))
    except (
        OSError,
        ValueError,
        TypeError,
    ) as error:  # transformers says what is the matter, and what to do about it
        what = (
            "its config.json cannot be read"
            if is_folder
            else "no folder of this name, and the Hub did not give it"
        )
        raise OSError(f"{source} ({revision}): {what}. {' '.join(str(error).split())}") from error
    if "quantization_config" in settings:
        raise ValueError(
            f"{source} holds quantised weights; neurons are read in float32: give the model before quantisation"
        )
    family = "timm" if "architecture" in settings else settings.get("model_type")
    if family not in FAMILIES:
        raise ValueError(_write_it_yourself(source, f"holds a model of type {family!r}"))
    return path, family


def _write_it_yourself(source: str, found: str) -> str:
    """What to say of a model that from_hub does not know."""
    return (
        f"{source} {found}; from_hub knows {', '.join(FAMILIES)}. For any other model, write three lines:\n"
        '    model = ...  # a torch module; print(model) shows its names, such as "layers.3.mlp.act"\n'
        "    embed = lambda wave: model(wave).mean(dim=1)  # [batch, samples] -> [batch, dim], its front end included\n"
        '    encoder = aape.from_module(model, activations="layers.*.mlp.act", embed=embed, sample_rate=16000, '
        'clip_seconds=5.0, name="mine")'
    )


def _loaded(source: str, family: str, revision: str, seed: int | None) -> tuple[nn.Module, Any]:
    """Model and feature extractor, frozen, in float32."""
    load = _from_timm if family == "timm" else _from_transformers
    with _quietly(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        try:
            model, extractor = load(source, family, revision, seed is None)
        except SafetensorError as error:
            raise OSError(
                f"{source}: its weights are damaged ({error}); download them again"
            ) from error
    return model.float().eval().requires_grad_(False), extractor


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' report of tensors: missing ones are an error here, superfluous ones belong to other heads."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def _from_transformers(
    source: str, family: str, revision: str, trained: bool
) -> tuple[nn.Module, Any]:
    """Model and feature extractor of one of transformers' families."""
    config = transformers.AutoConfig.from_pretrained(source, revision=revision)
    config.mask_time_prob = config.mask_feature_prob = (
        0.0  # only for training; they need a tensor that files may lack
    )
    config.add_adapter = False  # layers behind the last block that shorten the sequence
    if config._attn_implementation not in (None, "eager", "sdpa"):
        config._attn_implementation = (
            "eager"  # others, such as flash attention, do not compute in float32
        )
    # Whisper's encoder is the body of its audio classifier; WhisperModel would draw a decoder at random.
    whisper = family == "whisper"
    kind: Any = transformers.WhisperForAudioClassification if whisper else transformers.AutoModel
    report: dict[str, Any] = {}
    extractor = transformers.AutoFeatureExtractor.from_pretrained(source, revision=revision)
    if trained:
        model, report = kind.from_pretrained(
            source, config=config, revision=revision, output_loading_info=True
        )
    else:
        model = kind(config) if whisper else kind.from_config(config)
    _refuse_missing(source, family, report)
    return (model.encoder if whisper else model), extractor


def _refuse_missing(source: str, family: str, report: dict[str, Any]) -> None:
    """Refuse a model with weights that its file does not hold, except those of a head."""
    heads = {"projector", "classifier"}
    absent = [key for key in report.get("missing_keys", ()) if not heads & set(key.split("."))]
    absent = sorted(map(str, [*absent, *report.get("mismatched_keys", ())]))
    if absent:
        raise ValueError(
            f"{source} does not hold all weights of its {family} model: {len(absent)} are missing or of another shape, "
            f"e.g. {', '.join(absent[:3])}. Random ones in their place would not be this model."
        )


def _from_timm(source: str, family: str, revision: str, trained: bool) -> tuple[nn.Module, Any]:
    """A spectrogram ViT of timm (such as AudioMAE), and the filter bank that it is used with (its authors' AST recipe)."""
    address = f"local-dir:{source}" if Path(source).is_dir() else f"hf_hub:{source}@{revision}"
    model = timm.create_model(address, pretrained=trained, num_classes=0)
    if not isinstance(model, VisionTransformer) or model.patch_embed.proj.in_channels != 1:
        raise ValueError(_write_it_yourself(source, "is not a ViT on a spectrogram of 1 channel"))
    frames, mels = model.patch_embed.img_size
    return model, transformers.ASTFeatureExtractor(num_mel_bins=mels, max_length=frames)
