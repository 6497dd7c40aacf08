"""from_hub, offline: what is read from folders and the Hub, what is refused, and the real whisper-tiny."""

import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import soundfile
import torch
import transformers
from conftest import shared_folder
from safetensors.torch import load_file, save_file
from tiny_models import TIMM, edit_json, write_model

from aape.collecting.counting import count_batch
from aape.encoders.hub import from_hub

WHISPER, RAVDESS = shared_folder("models", "whisper-tiny-encoder"), shared_folder("data", "ravdess")


@pytest.fixture
def hubert(tmp_path: Path) -> Path:
    return write_model(tmp_path / "hubert-of-this-machine", "hubert")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    return {key: value.clone() for key, value in tensors.items()}  # the file itself is mapped


def write_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def ending(tensors: dict[str, torch.Tensor], end: str) -> str:
    return next(key for key in tensors if key.endswith(end))


def test_half_precision_files_become_float32(hubert):
    tensors = {key: value.half() for key, value in weights_of(hubert).items()}
    write_weights(hubert, tensors)
    edit_json(hubert / "config.json", dtype="float16", torch_dtype="float16")
    encoder = from_hub(hubert)
    weight = encoder.module.encoder.layers[1].feed_forward.intermediate_dense.weight
    expected = tensors[ending(tensors, "layers.1.feed_forward.intermediate_dense.weight")]
    assert encoder.dtype == "float32" and torch.equal(weight, expected.float())


def test_models_of_other_families_get_the_lines_to_write(tmp_path):
    folder = write_model(tmp_path / "photos-here", "timm")
    edit_json(folder / "config.json", model_args=TIMM | {"in_chans": 3})
    three_channels = (folder / "config.json").read_text()
    for config, found in (
        (three_channels, "1 channel"),
        ('{"model_type": "bert"}', "type 'bert'"),
        ("{}", "type None"),
    ):
        (folder / "config.json").write_text(config)
        with pytest.raises(
            ValueError,
            match=rf"(?s){found}.*wav2vec2.*from_module\(model, activations=.*embed=embed",
        ):
            from_hub(folder, seed=0)


def test_a_name_that_cannot_be_had_says_why_and_the_commit_is_recorded(hubert, monkeypatch):
    """The Hub's answers are simulated: no test reaches a hub."""
    cached_file = Mock(
        side_effect=OSError("You are trying to access a gated repo.\nMake sure to have access")
    )
    monkeypatch.setattr("aape.encoders.hub.cached_file", cached_file)
    with pytest.raises(
        OSError, match=r"nobody-here/unmistakably-local.*no folder.*gated repo. Make sure"
    ):
        from_hub("nobody-here/unmistakably-local", revision="v9")
    snapshot = (
        hubert.parent / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    )  # as in the Hub's cache
    shutil.copytree(hubert, snapshot)
    cached_file.configure_mock(side_effect=None, return_value=str(snapshot / "config.json"))
    model = transformers.AutoModel.from_pretrained(snapshot)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(snapshot)
    monkeypatch.setattr("aape.encoders.hub._from_transformers", lambda *_: (model, extractor))
    encoder = from_hub("nobody-here/unmistakably-local", revision="v9")
    cached_file.assert_called_with("nobody-here/unmistakably-local", "config.json", revision="v9")
    assert encoder.weights["revision"] == snapshot.name


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("hubert", {"revision": "main"}, "is a folder"),
        ("hubert", {"full_window": True}, "full_window is Whisper's"),
        ("hubert", {"layers": [7]}, r"layers=\['7'\]"),
        ("hubert", {"layers": []}, r"layers=\[\]"),
        ("hubert", {"clip_seconds": 0.001}, "takes 0.025 to inf s"),
        ("whisper", {"clip_seconds": 3.0}, "takes 6.25e-05 to 2 s"),
    ],
)
def test_bad_arguments(tmp_path, kind, options, words):
    folder = write_model(tmp_path / "model", kind)
    with pytest.raises(ValueError, match=words):
        from_hub(folder, **options)


def test_folders_that_are_damaged_or_lack_something(hubert):
    tensors = weights_of(hubert)
    file = hubert / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(OSError, match="hubert-of-this-machine: its weights are damaged"):
        from_hub(hubert)
    del tensors[ending(tensors, "layers.1.feed_forward.intermediate_dense.bias")]
    write_weights(hubert, tensors)
    with pytest.raises(ValueError, match=r"1 are missing.*intermediate_dense\.bias"):
        from_hub(hubert)
    file.unlink()
    with pytest.raises(OSError, match=r"no file named model.safetensors.*hubert-of-this-machine"):
        from_hub(hubert)
    for text in ("{", "[1]"):
        (hubert / "config.json").write_text(text)
        with pytest.raises(OSError, match="hubert-of-this-machine"):
            from_hub(hubert)
    (hubert / "config.json").unlink()
    with pytest.raises(OSError, match=r"hubert-of-this-machine.*config.json"):
        from_hub(hubert)


@pytest.mark.parametrize(
    ("kind", "key", "value", "found"),
    [
        ("whisper", "feature_size", 128, "gives 128 mel bands, the model .* takes 80"),
        ("wav2vec2-bert", "feature_size", 40, "gives 80 mel bands, the model .* takes 160"),
        (
            "audio-spectrogram-transformer",
            "num_mel_bins",
            64,
            "gives 64 mel bands, the model .* takes 128",
        ),
    ],
)
def test_the_front_end_of_another_model_is_refused(tmp_path, kind, key, value, found):
    folder = write_model(tmp_path / "model", kind)
    edit_json(folder / "preprocessor_config.json", **{key: value})
    with pytest.raises(ValueError, match=f"{folder}: .*preprocessor_config.json.*{found}"):
        from_hub(folder)


def test_configurations_that_ask_for_what_is_not_here(hubert):
    plain = from_hub(hubert)
    edit_json(hubert / "config.json", attn_implementation="flash_attention_2")
    assert from_hub(hubert).identity == plain.identity
    edit_json(hubert / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ValueError, match="holds quantised weights.*before quantisation"):
        from_hub(hubert)
    (hubert / "config.json").unlink()
    (hubert / "adapter_config.json").write_text("{}")
    with pytest.raises(OSError, match="holds an adapter.*merge_and_unload"):
        from_hub(hubert)


@pytest.mark.parametrize("name", ["./wisper", "/nowhere/whisper", "~/no/such/folder"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(FileNotFoundError, match=f"there is no folder {name}") as error:
        from_hub(name)
    assert "wav2vec2" not in str(error.value)


@pytest.mark.skipif(
    not (WHISPER / "model.safetensors").is_file(), reason=f"no whisper-tiny weights at {WHISPER}"
)
@pytest.mark.parametrize("full_window", [True, False])
@torch.no_grad()
def test_whisper_tiny_equals_hooks_on_transformers_own_encoder(full_window):
    wave = 0.1 * torch.randn(2, 32000, generator=torch.Generator().manual_seed(0))
    for row, path in enumerate(sorted(RAVDESS.rglob("*.ogg"))[:2]):
        wave[row] = torch.from_numpy(soundfile.read(path, frames=32000, dtype="float32")[0])
    encoder = from_hub(WHISPER, full_window=full_window)
    counted = count_batch(encoder, wave, torch.full((2,), 32000), encoder.layers, 1536)

    tokens = 1500 if full_window else 100
    state = {
        key.removeprefix("model.encoder."): value.float()
        for key, value in weights_of(WHISPER).items()
    }
    state["embed_positions.weight"] = state["embed_positions.weight"][:tokens]
    config = transformers.WhisperConfig.from_pretrained(WHISPER, max_source_positions=tokens)
    reference = transformers.models.whisper.modeling_whisper.WhisperEncoder(config).eval()
    reference.load_state_dict(state)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(WHISPER)
    features = extractor(
        list(wave.numpy()), sampling_rate=16000, max_length=tokens * 320, return_tensors="pt"
    )
    seen: list[torch.Tensor] = []
    for layer in reference.layers:
        layer.activation_fn.register_forward_hook(lambda module, args, out: seen.append(out))
    hidden = reference(features["input_features"]).last_hidden_state
    for layer, activations in enumerate(seen):
        assert torch.equal(counted.counts[:, layer], (activations > 0).sum(dim=1).int())
        torch.testing.assert_close(
            counted.means[:, layer], activations.mean(dim=1), rtol=1e-4, atol=1e-5
        )
    assert len(seen) == 4 and counted.tokens.tolist() == [tokens] * 2
    torch.testing.assert_close(counted.embeddings, hidden[:, :100].mean(dim=1), rtol=0, atol=1e-5)
    assert counted.padding_tokens.tolist() == [tokens - 100] * 2
