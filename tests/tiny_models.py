"""Tiny random models of every family that from_hub knows, in folders of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import transformers
from conftest import tiny_whisper
from safetensors.torch import save_file

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
CONV = SIZE | {
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
LAYER_NORM = CONV | {"feat_extract_norm": "layer"}
SEW = LAYER_NORM | {"conv_dim": (8,) * 13}
ADAPTER = {"do_stable_layer_norm": True, "add_adapter": True, "num_adapter_layers": 1}
TIMM = {
    "img_size": [64, 128],
    "in_chans": 1,
    "global_pool": "avg",
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
}


class Tiny(NamedTuple):
    """A tiny model and what is known of its family.

    Attributes:
        config: of transformers; None for Whisper and timm.
        layers, neurons: what is counted.
        masked: its extractor gives an attention mask.
        clean: the mask leaves padding out altogether; in others, convolutions over tokens leak across the edge.
        edge: how many tokens may see both sound and padding.
        patches: it sees patches of a spectrogram of fixed length.
    """

    config: Any
    layers: int = 2
    neurons: int = 48
    masked: bool = True
    clean: bool = False
    edge: int = 2
    patches: bool = False


TINY = {
    "wav2vec2": Tiny(transformers.Wav2Vec2Config(**CONV), masked=False),  # group norm over time
    "wav2vec2 with mask": Tiny(transformers.Wav2Vec2Config(**LAYER_NORM, **ADAPTER), clean=True),
    "hubert": Tiny(transformers.HubertConfig(**LAYER_NORM), clean=True),
    "wavlm": Tiny(transformers.WavLMConfig(**LAYER_NORM), clean=True),
    "data2vec-audio": Tiny(transformers.Data2VecAudioConfig(**CONV, conv_pos_kernel_size=3)),
    "unispeech": Tiny(transformers.UniSpeechConfig(**LAYER_NORM), clean=True),
    "unispeech-sat": Tiny(transformers.UniSpeechSatConfig(**LAYER_NORM), clean=True),
    "sew": Tiny(transformers.SEWConfig(**SEW)),
    "sew-d": Tiny(transformers.SEWDConfig(**SEW)),
    "wav2vec2-conformer": Tiny(transformers.Wav2Vec2ConformerConfig(**LAYER_NORM), layers=4),
    "wav2vec2-bert": Tiny(
        transformers.Wav2Vec2BertConfig(**SIZE, feature_projection_input_dim=160),
        layers=4,
        clean=True,
    ),
    "whisper": Tiny(None, masked=False, edge=4),
    "audio-spectrogram-transformer": Tiny(
        transformers.ASTConfig(**SIZE, max_length=64), masked=False, patches=True
    ),
    "timm": Tiny(None, neurons=128, masked=False, patches=True),
}


def write_model(folder: Path, kind: str) -> Path:
    """A tiny random model of one family, as save_pretrained (or timm's hub) writes it; returns the folder."""
    if kind == "whisper":
        return tiny_whisper(folder, seconds=2, width=32, neurons=48)
    folder.mkdir()
    torch.manual_seed(0)
    if kind == "timm":
        return _write_timm(folder)
    model = transformers.AutoModel.from_config(TINY[kind].config)
    model.save_pretrained(folder)
    if kind == "wav2vec2-bert":
        extractor: Any = transformers.SeamlessM4TFeatureExtractor()
    elif kind == "audio-spectrogram-transformer":
        extractor = transformers.ASTFeatureExtractor(max_length=64)
    else:
        extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=TINY[kind].masked)
    extractor.save_pretrained(folder)
    return folder


def _write_timm(folder: Path) -> Path:
    model = timm.create_model("vit_base_patch16_224", num_classes=0, **TIMM)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "vit_base_patch16_224",
        "num_classes": 0,
        "global_pool": "avg",
        "model_args": TIMM,
        "pretrained_cfg": {
            "input_size": [1, 64, 128],
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))
