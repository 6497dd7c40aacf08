"""from_hub, offline: every family with a tiny random configuration in a folder of this machine, and whisper-tiny."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import timm
import torch
import transformers
from conftest import shared_folder, tiny_whisper
from safetensors.torch import load_file, save_file

from aape.causal.silencing import embed_with_sets, neuron_set
from aape.collecting.counting import count_batch
from aape.encoders.dry_run import widths
from aape.encoders.encoder import Encoder, hooked
from aape.encoders.hub import FAMILIES, from_hub

WHISPER, RAVDESS = shared_folder("models", "whisper-tiny-encoder"), shared_folder("data", "ravdess")
pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
CONV = SIZE | {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
CONFIGS = {
    "wav2vec2": transformers.Wav2Vec2Config(**CONV),  # group norm over time, trained without an attention mask
    "wav2vec2 with mask": transformers.Wav2Vec2Config(**CONV, feat_extract_norm="layer", do_stable_layer_norm=True,
                                                      add_adapter=True, num_adapter_layers=1),
    "hubert": transformers.HubertConfig(**CONV, feat_extract_norm="layer"),
    "wavlm": transformers.WavLMConfig(**CONV, feat_extract_norm="layer"),
    "data2vec-audio": transformers.Data2VecAudioConfig(**CONV, conv_pos_kernel_size=3),
    "unispeech": transformers.UniSpeechConfig(**CONV, feat_extract_norm="layer"),
    "unispeech-sat": transformers.UniSpeechSatConfig(**CONV, feat_extract_norm="layer"),
    "sew": transformers.SEWConfig(**(CONV | {"conv_dim": (8,) * 13}), feat_extract_norm="layer"),
    "sew-d": transformers.SEWDConfig(**(CONV | {"conv_dim": (8,) * 13}), feat_extract_norm="layer"),
    "wav2vec2-conformer": transformers.Wav2Vec2ConformerConfig(**CONV, feat_extract_norm="layer"),
    "wav2vec2-bert": transformers.Wav2Vec2BertConfig(**SIZE, feature_projection_input_dim=160),
    "whisper": None,  # see conftest.tiny_whisper
    "audio-spectrogram-transformer": transformers.ASTConfig(**SIZE, max_length=64),
}  # fmt: skip
MASKED = [n for n in CONFIGS if n not in ("wav2vec2", "whisper", "audio-spectrogram-transformer")]
# In these the mask leaves padding out altogether; the others convolve over tokens, whose biases leak across the edge.
CLEAN = ["wav2vec2 with mask", "hubert", "wavlm", "unispeech", "unispeech-sat", "wav2vec2-bert"]
TIMM = {"img_size": [64, 128], "in_chans": 1, "global_pool": "avg", "embed_dim": 32, "depth": 2, "num_heads": 2}


def write_model(folder: Path, kind: str) -> Path:
    """A tiny random model of one family, as save_pretrained (or timm's hub) writes it."""
    if kind == "whisper":
        return tiny_whisper(folder, seconds=2, width=32, neurons=48)
    folder.mkdir()
    torch.manual_seed(0)
    if kind == "timm":
        model = timm.create_model("vit_base_patch16_224", num_classes=0, **TIMM)
        save_file(model.state_dict(), folder / "model.safetensors")
        cfg = {"input_size": [1, 64, 128], "first_conv": "patch_embed.proj", "classifier": "head"}
        config = {"architecture": "vit_base_patch16_224", "num_classes": 0, "global_pool": "avg", "model_args": TIMM}
        (folder / "config.json").write_text(json.dumps(config | {"pretrained_cfg": cfg}))
        return folder
    transformers.AutoModel.from_config(CONFIGS[kind]).save_pretrained(folder)
    extractors = {
        "wav2vec2-bert": transformers.SeamlessM4TFeatureExtractor,
        "audio-spectrogram-transformer": lambda: transformers.ASTFeatureExtractor(max_length=64),
    }
    plain = lambda: transformers.Wav2Vec2FeatureExtractor(return_attention_mask=kind in MASKED)  # noqa: E731
    extractors.get(kind, plain)().save_pretrained(folder)
    return folder


WHOLE = ("timm", "audio-spectrogram-transformer")  # their grid is that of a whole window


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models-of-this-machine")
    return {kind: write_model(root / kind.replace(" ", "-"), kind) for kind in (*CONFIGS, "timm")}


@pytest.fixture(params=[*CONFIGS, "timm"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def encoders(folders: dict[str, Path]) -> dict[str, Encoder]:
    return {kind: from_hub(folder) for kind, folder in folders.items()}


@pytest.fixture
def encoder(encoders: dict[str, Encoder], kind: str) -> Encoder:
    return encoders[kind]


@pytest.fixture
def pieces(encoder: Encoder) -> Encoder:
    """The encoder with pieces of 0.64 s."""
    ears = copy.copy(encoder.embed)
    ears.window = 10240
    layout = {"padding_masks": ears.padding_masks, "token_grid": ears.token_grid}
    return dataclasses.replace(encoder, embed=ears, clip_seconds=0.64, **layout)


def noise(batch: int = 2, samples: int = 9600, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


def test_every_family_is_tested():
    assert {k.split(" ")[0] for k in CONFIGS} | {"timm"} == set(FAMILIES)


def hear(kind: str, folder: Path, wave: torch.Tensor) -> torch.Tensor:
    """A model's tokens [batch, tokens, width] as transformers' own documentation has it, without aape."""
    rate = {"sampling_rate": 16000, "return_tensors": "pt"}
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    if hasattr(model, "adapter"):
        model.adapter = None
    if kind == "whisper":
        encoder = model.encoder
        features = extractor(list(wave.numpy()), padding="max_length", max_length=wave.shape[1], **rate)
        positions = wave.shape[1] // 320
        encoder.embed_positions = torch.nn.Embedding.from_pretrained(encoder.embed_positions.weight[:positions])
        encoder.config.max_source_positions = positions
        return encoder(features["input_features"]).last_hidden_state
    return model(**extractor(list(wave.numpy()), **rate)).last_hidden_state


@torch.no_grad()
@pytest.mark.parametrize("kind", [k for k in CONFIGS if k != "audio-spectrogram-transformer"])  # that one: see below
def test_counts_and_embedding_equal_hooks_on_transformers_own_model(folders, kind, encoder):
    wave = noise(samples=9600)
    counted = count_batch(encoder, wave, torch.full((2,), 9600), encoder.layers, 48)
    hidden: list[torch.Tensor] = []  # whatever any activation function of transformers gives, 48 channels wide

    def see(module, args, output):
        if not list(module.children()) and "activation" in type(module).__module__ and output.shape[-1] == 48:
            hidden.append(output)

    with torch.nn.modules.module.register_module_forward_hook(see):
        tokens = hear(kind, folders[kind], wave)
    assert len(hidden) == len(encoder.layers) == (4 if kind in ("wav2vec2-conformer", "wav2vec2-bert") else 2)
    for layer, activations in enumerate(hidden):
        assert torch.equal(counted.counts[:, layer], (activations > 0).sum(dim=1).int())
    torch.testing.assert_close(counted.embeddings, tokens.mean(dim=1), rtol=0, atol=1e-6)
    assert counted.padding is None and counted.tokens.tolist() == [hidden[0].shape[1]] * 2


@torch.no_grad()
@pytest.mark.parametrize("kind", CLEAN)
def test_padding_changes_neither_the_embedding_nor_a_count_where_the_mask_leaves_it_out(kind, encoder):
    alone, padded = noise(1, 6400, seed=1), torch.zeros(2, 9600)
    padded[0, :6400], padded[1] = alone, noise(1, 9600)
    one = count_batch(encoder, alone, torch.tensor([6400]), encoder.layers, 48)
    both = count_batch(encoder, padded, torch.tensor([6400, 9600]), encoder.layers, 48)
    torch.testing.assert_close(both.embeddings[0], one.embeddings[0], rtol=0, atol=1e-5)
    assert both.padding is not None and both.padding_tokens[0] > 0 and both.padding_tokens[1] == 0
    assert both.tokens[0] - both.padding_tokens[0] == one.tokens[0]
    assert ((both.counts - both.padding)[0] - one.counts[0]).abs().sum() <= 2  # rounding near zero


def front(kind: str, encoder: Encoder, wave: torch.Tensor) -> torch.Tensor:
    """What the front end gives the blocks of the whole wave, before anything looks across time [tokens, width]."""
    model = encoder.module
    extractor = transformers.AutoFeatureExtractor.from_pretrained(encoder.weights["source"])
    if kind == "whisper":
        features = extractor(wave.numpy(), sampling_rate=16000, max_length=len(wave), return_tensors="pt")
        x = torch.nn.functional.gelu(model.conv1(features["input_features"]))
        return model.conv2(x)[0].T
    if kind == "wav2vec2-bert":
        given = extractor([wave.numpy()], sampling_rate=16000, do_normalize_per_mel_bins=False, return_tensors="pt")
        return given["input_features"][0]
    if kind == "wav2vec2":
        model = copy.deepcopy(model)
        model.feature_extractor.conv_layers[0].layer_norm = torch.nn.Identity()  # looks across time
    tokens = model.feature_extractor(wave[None])[0].T
    return torch.stack([t.reshape(-1) for t in tokens.split(2) if len(t) == 2]) if kind.startswith("sew") else tokens


@torch.no_grad()
@pytest.mark.parametrize("valid", [4800, 6421])
@pytest.mark.parametrize("kind", [k for k in CONFIGS if k != "audio-spectrogram-transformer"])
def test_masks_by_changing_what_lies_in_the_padding_and_in_the_sound(kind, encoder, valid):
    samples = 9600
    sound, other, padding = noise(1, samples)[0], noise(1, samples, seed=1)[0], noise(1, samples, seed=2)[0] / 10
    place = torch.arange(samples)
    waves = []
    for heard, behind in ((sound, torch.zeros(samples)), (sound, padding), (other, torch.zeros(samples))):
        wave = torch.where(place < valid, heard, behind)
        # all begin alike and loud: Whisper normalises by the loudest
        waves.append(front(kind, encoder, torch.where(place < 1000, 10 * sound, wave)))
    by_padding = (waves[0] != waves[1]).any(dim=1)
    by_sound = (waves[0] != waves[2]).any(dim=1)
    (mask,) = encoder.padding_masks(torch.tensor([valid]), samples)
    mask = mask[0]
    assert mask.any() and not mask.all()
    by_sound[: 1000 // 320] = True
    assert mask[~by_sound].all()  # a token that heard nothing of the sound is padding
    assert not mask[~by_padding].any()  # a token that heard nothing of the padding is none
    both = by_sound & by_padding  # across the edge, the model's own arithmetic decides
    assert both.sum() <= (4 if kind == "whisper" else 2)
    if kind.startswith("sew"):  # a token of the blocks is two of the front end, of which one heard nothing but sound
        assert mask.tolist().index(True) == -(-((valid - 400) // 320 + 1) // 2)
    elif kind != "whisper":
        assert mask[both].all()  # a convolution that reaches into the padding gives no token of the sound


def test_masks_of_patches(encoders):
    """A patch is marked exactly when changing the valid samples cannot change it."""
    for kind in ("timm", "audio-spectrogram-transformer"):
        encoder = encoders[kind]
        valid, samples = 3000, 10240
        waves = torch.zeros(2, samples)
        waves[0, :valid], waves[1, :valid] = noise(1, valid), noise(1, valid, seed=1)
        a, b = encoder.embed.front_end(waves)
        frame_same = (a == b).all(dim=-1)
        (mask,) = encoder.padding_masks(torch.tensor([valid]), samples)
        extra = encoder.embed.extra
        starts = encoder.embed.cells[:, 1] * encoder.embed.stride
        expected = torch.tensor([bool(frame_same[s : s + 16].all()) for s in starts.tolist()])
        assert not mask[0, :extra].any() and 0 < expected.sum() < len(expected)
        assert torch.equal(mask[0, extra:], expected)


@torch.no_grad()
def test_the_grid_has_a_cell_for_every_token_and_time_runs_on_across_pieces(kind, pieces):
    samples, width = 10240 + 4000, 128 if kind == "timm" else 48
    counted = count_batch(pieces, noise(1, samples), torch.tensor([samples]), pieces.layers, width)
    grid = pieces.token_grid(samples)
    assert len(grid) == 2 and sum(len(g) for g in grid) == counted.tokens[0]
    first, second = (cells[cells[:, 0] >= 0, 1].unique() for cells in grid)
    for times, start in ((first, 0.0), (second, 0.64 / pieces.cell_seconds)):
        assert torch.equal(times, times[0] + torch.arange(len(times)))
        assert abs(times[0] - start) <= 0.5
    assert second[0] > first[-1]


@torch.no_grad()
def test_cells_are_as_far_apart_as_is_said_and_pictures_show_what_the_model_gets(kind, encoder):
    columns = max(int(cells[:, 1].max()) + 1 for cells in encoder.token_grid(round(0.6 * 16000)))
    assert encoder.cell_seconds * columns == pytest.approx(0.6, abs=encoder.cell_seconds + 0.03) or kind in WHOLE
    if encoder.log_mel is None:
        return
    quiet = noise(1, 9600)
    loud = quiet.clone()
    loud[:, 4000:4800] += 0.5 * torch.sin(torch.arange(800) * 2 * torch.pi * 3000 / 16000)
    pictures = [encoder.log_mel(wave)[0] for wave in (quiet, loud)]
    bands, frames = pictures[0].shape
    assert frames == pytest.approx(60, abs=1)
    band, frame = np.unravel_index(int((pictures[1] - pictures[0]).argmax()), (bands, frames))
    assert 24 <= frame <= 31 and bands / 2 < band < bands  # 0.25 to 0.3 s, 3 kHz of 8, the lowest band first


@pytest.mark.parametrize("kind", ["timm", "audio-spectrogram-transformer"])
def test_patches_lie_where_the_grid_says(kind, encoder):
    model, ears = encoder.module, encoder.embed
    plain = torch.zeros(1, 64, 128)

    def tokens(spectrogram):
        return model.patch_embed(spectrogram[:, None])[0] if kind == "timm" else model.embeddings(spectrogram)[0, 2:]

    for place, (f, t) in enumerate(ears.cells.tolist()):
        changed = plain.clone()
        # the last corner of an AST patch that overlaps with its neighbours is in fewer patches than the first
        step_f, size = (16, 16) if kind == "timm" else (10, 16)
        changed[0, t * ears.stride : t * ears.stride + size, f * step_f : f * step_f + size] = 1
        differ = (tokens(changed) - tokens(plain)).abs().sum(dim=1)
        assert differ.argmax() == place or differ[place] > 0.9 * differ.max()


@torch.no_grad()
def test_longer_waves_are_cut_and_pieces_count_by_their_tokens(kind, pieces):
    wave = noise(samples=10240 + 3200)
    parts = wave.split(10240, dim=1)
    # tokens of what the model gives out, twice those in the blocks of SEW; patches by length
    heard = (lambda samples: samples) if kind in WHOLE else pieces.embed.heard
    share = torch.stack([heard(torch.tensor([p.shape[1]])) for p in parts]).float()[..., None]  # [pieces, 1, 1]
    expected = (torch.stack([pieces.embed(p) for p in parts]) * share).sum(dim=0) / share.sum()
    torch.testing.assert_close(pieces.embed(wave), expected, rtol=0, atol=1e-5)
    for short in (noise(samples=10), noise(samples=10240 + 3), torch.zeros(1, 800)):
        assert torch.isfinite(pieces.embed(short)).all()


def test_gradients_start_behind_the_front_end(kind, encoder):
    leaves: list[torch.Tensor] = []

    def see(place: int, activations: torch.Tensor) -> torch.Tensor | None:
        if place == 0:
            activations = activations.detach().requires_grad_()
        leaves.append(activations)
        return activations

    with hooked(encoder, encoder.layers, see):
        embedding = encoder.embed(noise(samples=9600))
    for gradient in torch.autograd.grad(embedding[:, 0].sum(), leaves):
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


def test_names_widths_layers_and_weights(folders, kind, encoder):
    width = 128 if kind == "timm" else 48
    assert set(widths(encoder).values()) == {width} and encoder.sample_rate == 16000 and encoder.chunks
    assert encoder.weights["source"] == str(folders[kind]) and encoder.dtype == "float32"
    again = from_hub(folders[kind], layers=[-1 + len(encoder.layers), encoder.layers[0]])
    assert again.layers == (encoder.layers[0], encoder.layers[-1]) and again.identity == encoder.identity
    one, twin, two = (from_hub(folders[kind], seed=seed) for seed in (1, 1, 2))
    assert one.name.endswith("(untrained)") and one.weights["seed"] == 1
    assert one.identity == twin.identity != two.identity != encoder.identity


def test_half_precision_files_are_heard_in_float32(tmp_path):
    folder = write_model(tmp_path / "half-on-this-machine", "hubert")
    tensors = {k: v.half() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float16", "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    encoder = from_hub(folder)
    weight = encoder.module.encoder.layers[1].feed_forward.intermediate_dense.weight
    expected = next(v for k, v in tensors.items() if k.endswith("layers.1.feed_forward.intermediate_dense.weight"))
    assert encoder.dtype == "float32" and torch.equal(weight, expected.float())


def test_pooled_outputs_are_the_models_own(encoders):
    wave = noise(samples=10240)
    for kind in ("timm", "audio-spectrogram-transformer"):
        encoder = encoders[kind]
        extractor = transformers.ASTFeatureExtractor(max_length=64)
        features = extractor(list(wave.numpy()), sampling_rate=16000, return_tensors="pt")["input_values"]
        model = encoder.module
        expected = model(features[:, None]) if kind == "timm" else model(features).pooler_output
        torch.testing.assert_close(encoder.embed(wave), expected)
        assert encoder.embed(wave).shape == (2, 32) and "ASTFeatureExtractor with" in encoder.weights["front_end"]
        assert encoder.clip_seconds == 0.64
        # behind the wave: log energy 0, normalised with AudioSet's statistics
        silence = encoder.embed.front_end(wave[:, :4000])[0, -1]
        np.testing.assert_allclose(silence.numpy(), 4.2677393 / (2 * 4.5689974), rtol=1e-6)


def test_models_that_are_none_of_these_get_the_lines_to_write(tmp_path):
    folder = write_model(tmp_path / "photos-here", "timm")
    colours = json.loads((folder / "config.json").read_text()) | {"model_args": TIMM | {"in_chans": 3}}
    for config, words in ((colours, "1 channel"), ({"model_type": "bert"}, "type 'bert'"), ({}, "type None")):
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=rf"(?s){words}.*wav2vec2.*from_module\(model, activations=.*embed=embed"):
            from_hub(folder, seed=0)


def test_a_name_that_cannot_be_had_says_why_and_the_commit_is_recorded(folders, monkeypatch):
    """The Hub's answers are played: no test reaches a hub."""
    cached_file = Mock(side_effect=OSError("You are trying to access a gated repo.\nMake sure to have access"))
    monkeypatch.setattr("aape.encoders.hub.cached_file", cached_file)
    with pytest.raises(OSError, match=r"(?s)nobody-here/unmistakably-local.*gated repo. Make sure.*from_module"):
        from_hub("nobody-here/unmistakably-local", revision="v9")
    # a snapshot in the layout of the Hub's cache
    place = folders["hubert"].parent / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folders["hubert"], place)
    cached_file.configure_mock(side_effect=None, return_value=str(place / "config.json"))
    made = transformers.AutoModel.from_pretrained(place), transformers.AutoFeatureExtractor.from_pretrained(place)
    monkeypatch.setattr("aape.encoders.hub._from_transformers", lambda *_: made)
    encoder = from_hub("nobody-here/unmistakably-local", revision="v9")
    cached_file.assert_called_with("nobody-here/unmistakably-local", "config.json", revision="v9")
    assert encoder.weights["revision"] == place.name


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("hubert", {"revision": "main"}, "is a folder on this machine"),
        ("hubert", {"full_window": True}, "full_window is Whisper's"),
        ("hubert", {"layers": [7]}, r"layers=\['7'\]"),
        ("hubert", {"layers": []}, r"layers=\[\]"),
        ("hubert", {"clip_seconds": 0.001}, "takes 0.025 to inf s"),
        ("whisper", {"clip_seconds": 3.0}, "takes 6.25e-05 to 2 s"),
    ],
)
def test_bad_arguments(folders, kind, options, words):
    with pytest.raises(ValueError, match=words):
        from_hub(folders[kind], **options)


def test_folders_that_are_damaged_or_lack_something(tmp_path):
    folder = write_model(tmp_path / "less-of-it-here", "hubert")
    tensors = {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}  # the file itself is mapped
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(OSError, match="less-of-it-here: its weights are damaged"):
        from_hub(folder)
    del tensors[next(k for k in tensors if k.endswith("layers.1.feed_forward.intermediate_dense.bias"))]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for error, words, gone in (
        (ValueError, r"1 are missing.*intermediate_dense\.bias", "model.safetensors"),
        (OSError, "no file named model.safetensors.*less-of-it-here", "config.json"),
        (OSError, r"less-of-it-here.*config.json(?s:.*)from_module", "nothing"),
    ):
        with pytest.raises(error, match=words):
            from_hub(folder)
        (folder / gone).unlink(missing_ok=True)
    for text in ("{", "[1]"):
        (folder / "config.json").write_text(text)
        with pytest.raises(OSError, match="less-of-it-here"):
            from_hub(folder)


def test_whisper_with_silenced_neurons_is_the_same_in_stages(encoders):
    """Pieces of 2 s, the second clip half silent: both engines, sets from the first and from the last layer."""
    encoder, wave = encoders["whisper"], noise(samples=40000)
    wave[1, 20000:] = 0
    places = [[[0, 3], [1, 5]], [[1, 7], [1, 40]]]
    sets = [None, *(neuron_set(encoder, pairs) for pairs in places)]
    staged = embed_with_sets(encoder, wave, sets)
    full = embed_with_sets(dataclasses.replace(encoder, stages=None), wave, sets)
    assert encoder.stages is not None and (staged - full).abs().max() <= 1e-6 * full.abs().max()
    assert not torch.equal(staged[0], staged[1]) and not torch.equal(staged[0], staged[2])


@pytest.mark.skipif(not (WHISPER / "model.safetensors").is_file(), reason=f"no whisper-tiny weights at {WHISPER}")
@pytest.mark.parametrize("full_window", [True, False])
@torch.no_grad()
def test_whisper_tiny_equals_hooks_on_transformers_own_encoder(full_window):
    clips = [soundfile.read(c, frames=32000, dtype="float32")[0] for c in sorted(RAVDESS.rglob("*.ogg"))[:2]]
    wave = torch.from_numpy(np.stack(clips)) if clips else noise(2, 32000)
    encoder = from_hub(WHISPER, full_window=full_window)
    counted = count_batch(encoder, wave, torch.full((2,), 32000), encoder.layers, 1536)

    state = {k.removeprefix("model.encoder."): v.float() for k, v in load_file(WHISPER / "model.safetensors").items()}
    tokens = 1500 if full_window else 100
    config = transformers.WhisperConfig.from_pretrained(WHISPER, max_source_positions=tokens)
    theirs = transformers.models.whisper.modeling_whisper.WhisperEncoder(config).eval()
    theirs.load_state_dict(state | {"embed_positions.weight": state["embed_positions.weight"][:tokens]})
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(WHISPER)
    features = extractor(list(wave.numpy()), sampling_rate=16000, max_length=tokens * 320, return_tensors="pt")
    seen: list[torch.Tensor] = []
    for layer in theirs.layers:
        layer.activation_fn.register_forward_hook(lambda module, args, out: seen.append(out))
    hidden = theirs(features["input_features"]).last_hidden_state
    for layer, activations in enumerate(seen):
        assert torch.equal(counted.counts[:, layer], (activations > 0).sum(dim=1).int())
        torch.testing.assert_close(counted.means[:, layer], activations.mean(dim=1), rtol=1e-4, atol=1e-5)
    assert len(seen) == 4 and counted.tokens.tolist() == [tokens] * 2
    torch.testing.assert_close(counted.embeddings, hidden[:, :100].mean(dim=1), rtol=0, atol=1e-5)
    assert counted.padding_tokens.tolist() == [tokens - 100] * 2
