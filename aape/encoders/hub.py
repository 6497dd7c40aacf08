"""Audio Transformers by name: twelve families of transformers, and timm's audio ViTs, from the Hub or from a folder.

    encoder = from_hub("openai/whisper-tiny")

Neurons are the channels behind the activation function of each MLP, as many as the intermediate size; where a block has
two MLPs (conformers' ffn1 and ffn2) it gives two layers. The front end is the model's own feature extractor, clip by
clip, and gradients start behind it. Weights are float32 whatever the file holds. The model hears a clip up to its last
sample that is not zero; the clip embedding is the mean over the tokens that heard sound (AST and timm's ViTs: their own
pooled output). Which tokens these are comes from the model's own arithmetic of lengths.

Waves longer than `clip_seconds` are cut into pieces of that length. Whisper was trained on 30 s, padded with silence;
here it runs at the clip's length, its positions cut, unless `full_window` says otherwise.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from safetensors import SafetensorError
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers.utils import cached_file, logging

from aape.encoders.encoder import Encoder, from_module, sha256_of_state
from aape.encoders.front_ends import ears_of

_MLP = "encoder.layers.*.feed_forward.intermediate_act_fn"
_CONFORMER = "encoder.layers.*.ffn[12].intermediate_act_fn"
# model type -> globs over its modules, of which the first that matches is taken (names differ between transformers 4, 5)
FAMILIES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat", "sew"), (_MLP,)),
    **dict.fromkeys(("wav2vec2-conformer", "wav2vec2-bert"), (_CONFORMER,)),
    "sew-d": ("encoder.encoder.layer.*.intermediate.intermediate_act_fn",),
    "whisper": ("layers.*.activation_fn",),
    "audio-spectrogram-transformer": ("layers.*.mlp.activation_fn", "encoder.layer.*.intermediate.intermediate_act_fn"),
    "timm": ("blocks.*.mlp.act",),
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
    """An audio Transformer of the Hugging Face Hub, or of a folder that `save_pretrained` wrote, as an Encoder.

    The model is given each clip up to its last sound, but padding is what is put behind a file that ends early: zeros at
    the end of a file itself count as sound, also in `probabilities(padding=False)`.

    Args:
        name_or_folder: "openai/whisper-tiny", or a folder with config.json, preprocessor_config.json and weights.
        revision: commit, tag or branch of the Hub's repository. The commit that was found is recorded in `weights`.
        layers: the layers to count, by name or by place from 0; all.
        clip_seconds: the longest wave that goes through the blocks at once, s; 30, or what the model takes.
        full_window: Whisper only: pad every clip to the model's 30 s, as it was trained, instead of running at the
            clip's length. A clip of 5 s then has 83 % padding.
        seed: draw the weights at random with this seed instead of loading them: the untrained twin.

    Raises:
        OSError: no such model, no access to it, no network; the message says which, and what to do.
        ValueError: no audio Transformer of these families (the message shows what to write instead), weights missing in
            the file, an unknown layer, or a clip longer than the model takes.
    """
    folder = Path(name_or_folder).expanduser()
    source = str(folder if folder.is_dir() else name_or_folder)
    if folder.is_dir() and revision is not None:
        raise ValueError(f"revision={revision!r} is of the Hub, {source} is a folder on this machine: leave it out")
    revision = revision or "main"
    try:
        path = Path(cached_file(source, "config.json", revision=revision) or "no config.json")
        settings = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:  # transformers says what is the matter, and what to do about it
        raise OSError(_write_it_yourself(source, f"({revision}): {' '.join(str(error).split())[:400]}")) from error
    family = "timm" if "architecture" in settings else settings.get("model_type")
    if family not in FAMILIES:
        raise ValueError(_write_it_yourself(source, f"holds a model of type {family!r}"))
    if full_window and family != "whisper":
        raise ValueError(f"full_window is Whisper's 30 s, {source} is a {family} model: leave it out")
    with _quietly(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        load = _from_timm if family == "timm" else _from_transformers
        try:
            model, extractor = load(source, family, revision, seed is None)
        except SafetensorError as error:
            raise OSError(f"{source}: its weights are damaged ({error}); fetch them again") from error
    model.float().eval().requires_grad_(False)
    ears = ears_of(model, extractor, family, clip_seconds, full_window)
    origin = {"source": source, "family": family, "front_end": ears.note, "sha256": sha256_of_state(model)}
    if not folder.is_dir():
        origin["revision"] = path.parent.name  # .../snapshots/<commit>/config.json
    if seed is not None:
        origin |= {"drawn": "at random", "seed": seed}
    names = {name for name, _ in model.named_modules()}
    encoder = from_module(
        model,
        activations=next(p for p in FAMILIES[family] if p.replace("*", "0").replace("[12]", "1") in names),
        embed=ears,
        sample_rate=extractor.sampling_rate,
        clip_seconds=ears.window / extractor.sampling_rate,
        name=Path(source).name + ("" if seed is None else " (untrained)"),
        weights=origin,
        chunks=True,
        padding_masks=ears.padding_masks,
        token_grid=ears.token_grid,
        stages=ears.stages,
        cell_seconds=ears.cell_samples / extractor.sampling_rate,
        log_mel=ears.log_mel,
    )
    if layers is None:
        return encoder
    places: dict[Any, str] = dict(enumerate(encoder.layers))
    chosen = {places.get(layer, str(layer)) for layer in layers}
    return encoder.with_layers(sorted(chosen, key=lambda name: (*encoder.layers, name).index(name)))


# --- finding and loading -----------------------------------------------------------------------------------------


def _write_it_yourself(source: str, found: str) -> str:
    """What to say of a model that from_hub does not know."""
    return (
        f"{source} {found}; from_hub knows {', '.join(FAMILIES)}. Any other module in three lines of your own:\n"
        '    model = ...  # a torch module; print(model) shows its names, e.g. "layers.3.mlp.act"\n'
        "    embed = lambda wave: model(wave).mean(dim=1)  # [batch, samples] -> [batch, dim], its front end included\n"
        '    encoder = aape.from_module(model, activations="layers.*.mlp.act", embed=embed, sample_rate=16000, '
        'clip_seconds=5.0, name="mine")'
    )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' report of tensors: what is missing is an error here, what is left over is of other heads."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def _from_transformers(source: str, family: str, revision: str, trained: bool) -> tuple[nn.Module, Any]:
    """Model and feature extractor of one of transformers' families."""
    config = transformers.AutoConfig.from_pretrained(source, revision=revision)
    config.mask_time_prob = config.mask_feature_prob = 0.0  # of training only, with a tensor that no file need hold
    config.add_adapter = False  # layers behind the last block that shorten the sequence
    # Whisper's encoder alone is what its audio classifier has; WhisperModel would draw a decoder at random.
    whisper = family == "whisper"
    kind: Any = transformers.WhisperForAudioClassification if whisper else transformers.AutoModel
    report: dict[str, Any] = {}
    extractor = transformers.AutoFeatureExtractor.from_pretrained(source, revision=revision)
    if trained:
        model, report = kind.from_pretrained(source, config=config, revision=revision, output_loading_info=True)
    else:
        model = kind(config) if whisper else kind.from_config(config)
    lost = [k for k in report.get("missing_keys", ()) if not {"projector", "classifier"} & set(k.split("."))]
    if lost := sorted(map(str, [*lost, *report.get("mismatched_keys", ())])):
        raise ValueError(
            f"{source} does not hold all weights of its {family} model: {len(lost)} are missing or of another shape, "
            f"e.g. {', '.join(lost[:3])}. Random ones in their place would not be this model."
        )
    return (model.encoder if whisper else model), extractor


def _from_timm(source: str, family: str, revision: str, trained: bool) -> tuple[nn.Module, Any]:
    """A spectrogram ViT of timm (AudioMAE, say), and the filter bank that it is used with (its authors' AST recipe)."""
    address = f"local-dir:{source}" if Path(source).is_dir() else f"hf_hub:{source}@{revision}"
    model = timm.create_model(address, pretrained=trained, num_classes=0)
    if not isinstance(model, VisionTransformer) or model.patch_embed.proj.in_channels != 1:
        raise ValueError(_write_it_yourself(source, "is no ViT on a spectrogram of 1 channel"))
    frames, mels = model.patch_embed.img_size
    return model, transformers.ASTFeatureExtractor(num_mel_bins=mels, max_length=frames)
