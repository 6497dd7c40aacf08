"""AST and AudioMAE adapters, offline: random weights, small configurations, and saved checkpoints of those."""

import json

import numpy as np
import pytest
import torch

from aape.counting import count_batch, widths
from aape.encoders import hub as pretrained
from aape.encoders import m2d
from aape.encoders.hub import load_ast, load_audiomae

SMALL_AST = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_length": 64,
}
SMALL_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": (64, 128)}
pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
LOADERS = {
    "ast": lambda **options: load_ast("random", config=SMALL_AST, **options),
    "audiomae": lambda **options: load_audiomae("random", config=SMALL_VIT, **options),
}


@pytest.fixture(scope="module", params=LOADERS)
def encoder(request):
    return LOADERS[request.param]()


def noise(batch=2, samples=10240, seed=0):
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


def test_shapes_and_layers(encoder):
    assert encoder.sample_rate == 16000
    assert encoder.clip_seconds == 64 * 160 / 16000
    assert len(encoder.layers) == 2
    assert set(widths(encoder).values()) == ({48} if encoder.name == "AST" else {128})
    assert not encoder.preactivation
    embedding = encoder.embed(noise())
    assert embedding.shape == (2, 32)
    assert torch.isfinite(embedding).all()
    assert "ASTFeatureExtractor with" in encoder.weights["front_end"]


def test_a_clip_is_encoded_the_same_alone_and_in_a_batch(encoder):
    wave = noise()
    with torch.inference_mode():
        together = encoder.embed(wave)
        alone = torch.cat([encoder.embed(wave[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@pytest.mark.parametrize("kind", LOADERS)
def test_seeds(kind):
    one, again, other = (LOADERS[kind](seed=s) for s in (1, 1, 2))
    assert one.weights["sha256"] == again.weights["sha256"] != other.weights["sha256"]


def test_short_waves_are_padded_by_the_front_end_and_long_ones_cut(encoder):
    with torch.inference_mode():
        assert encoder.embed(noise(samples=5000)).shape == (2, 32)
        assert encoder.embed(noise(samples=100)).shape == (2, 32)
        wave = noise(samples=2 * 10240 + 3000)
        pieces = [encoder.embed(p) for p in wave.split(10240, dim=-1)]
        lengths = torch.tensor([10240, 10240, 3000.0])
        expected = (torch.stack(pieces) * lengths[:, None, None]).sum(0) / lengths.sum()
        torch.testing.assert_close(encoder.embed(wave), expected, atol=1e-5, rtol=1e-5)


def test_padding_masks_agree_with_what_the_front_end_sees(encoder):
    """A patch is marked exactly when changing the valid samples cannot change it."""
    valid, samples = 3000, 10240
    wave = torch.zeros(1, samples)
    wave[:, :valid] = noise(1, valid)
    other = torch.zeros(1, samples)
    other[:, :valid] = noise(1, valid, seed=1)
    chunked = encoder.embed
    same = chunked.front_end(wave) == chunked.front_end(other)  # [1, frames, mels]
    frame_same = same.all(dim=-1)[0]
    (mask,) = encoder.padding_masks(torch.tensor([valid]), samples)
    starts = chunked.first_frames
    expected = torch.tensor([bool(frame_same[s : s + 16].all()) for s in starts.tolist()])
    extra = chunked.extra_tokens
    assert not mask[0, :extra].any()
    # frames behind the last whole window are the model's padding, equal for both waves
    torch.testing.assert_close(mask[0, extra:], expected)
    assert mask.any()
    assert not mask.all()


def test_counting(encoder):
    wave, valid = noise(samples=10240 + 4000), torch.tensor([10240 + 4000, 6000])
    wave[1, 6000:] = 0
    neurons = next(iter(widths(encoder).values()))
    with torch.inference_mode():
        counts = count_batch(encoder, wave, valid, encoder.layers, neurons)
    masks = encoder.padding_masks(valid, wave.shape[1])
    assert counts.tokens.tolist() == [sum(m.shape[1] for m in masks)] * 2
    assert counts.padding_tokens.tolist() == [sum(int(m[i].sum()) for m in masks) for i in range(2)]
    assert counts.padding_tokens[1] > counts.padding_tokens[0] > 0
    assert counts.counts.float().mean() > 0


def test_ast_embedding_is_transformers_own(tmp_path):
    encoder = LOADERS["ast"]()
    wave = noise()
    extractor = encoder.embed.front_end.extractor
    features = extractor(list(wave.numpy()), sampling_rate=16000, return_tensors="pt")["input_values"]
    with torch.inference_mode():
        expected = encoder.module(features).pooler_output
        torch.testing.assert_close(encoder.embed(wave), expected)


def test_ast_from_a_folder_without_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    first = LOADERS["ast"](seed=5)
    first.module.save_pretrained(tmp_path)
    first.embed.front_end.extractor.save_pretrained(tmp_path)
    second = load_ast(tmp_path)
    assert second.weights["sha256"] == first.weights["sha256"]
    torch.testing.assert_close(second.embed(noise()), first.embed(noise()))
    with pytest.raises(ValueError, match="own configuration"):
        load_ast(tmp_path, config=SMALL_AST)
    first.embed.front_end.extractor.max_length = 32
    first.embed.front_end.extractor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pads to 32 frames"):
        load_ast(tmp_path)


def test_audiomae_from_a_file(tmp_path):
    first = LOADERS["audiomae"](seed=5)
    state = {**first.module.state_dict(), "head.weight": torch.zeros(527, 32), "head.bias": torch.zeros(527)}
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path)
    second = load_audiomae(path, config=SMALL_VIT)
    assert second.weights["source"] == str(path)
    torch.testing.assert_close(second.embed(noise()), first.embed(noise()))
    del state["blocks.1.mlp.fc1.weight"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"1 tensors missing \(blocks\.1\.mlp\.fc1\.weight\)"):
        load_audiomae(path, config=SMALL_VIT)
    with pytest.raises(FileNotFoundError):
        load_audiomae(tmp_path / "gone.pth")


def test_audiomae_from_timms_folder(tmp_path):
    first = LOADERS["audiomae"](seed=5)
    torch.save(first.module.state_dict(), tmp_path / "pytorch_model.bin")
    # as on the Hub: an architecture of timm and the arguments that make it this model
    arguments = {
        "img_size": [64, 128],
        "in_chans": 1,
        "global_pool": "avg",
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
    }
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architecture": "vit_base_patch16_224",
                "num_classes": 0,
                "global_pool": "avg",
                "model_args": arguments,
                "pretrained_cfg": {"input_size": [1, 64, 128], "first_conv": "patch_embed.proj", "classifier": "head"},
            }
        )
    )
    second = load_audiomae(tmp_path)
    torch.testing.assert_close(second.embed(noise()), first.embed(noise()))
    with pytest.raises(ValueError, match="own configuration"):
        load_audiomae(tmp_path, config=SMALL_VIT)


def test_full_size_defaults():
    """The published shape: 3,072 neurons a layer, 512 patches of 10.24 s (one layer here instead of twelve)."""
    encoder = load_audiomae("random", config={"depth": 1})
    assert encoder.clip_seconds == pytest.approx(10.24)
    assert encoder.module.blocks[0].mlp.fc1.out_features == 3072
    assert len(encoder.embed.first_frames) == 512
    front = encoder.embed.front_end(torch.zeros(1, 16000))
    assert front.shape == (1, 1024, 128)
    # behind the wave: log energy 0, normalised with AudioSet's statistics
    np.testing.assert_allclose(front[0, -1].numpy(), 4.2677393 / (2 * 4.5689974), rtol=1e-6)
    assert pretrained.AUDIOMAE.endswith("audiomae_as2m_ft_as20k")


def test_sl_vit_as_evars_finetune_saves_it(tmp_path):
    """EVAR fine-tunes AudioSet on 1,001 frames; patches of 16 cover 992 of them, chunks are still cut at 1,001."""
    vit = m2d.M2DViT((80, 1001), (16, 16), 64, 1, 1)
    state = {f"module.ar.runtime.backbone.{k}": v for k, v in vit.state_dict().items()}
    folder = tmp_path / "vit_base-80x1001p16x16-supervised"
    folder.mkdir()
    torch.save({**state, "module.head.mlp.mlp.0.weight": torch.zeros(527, 320)}, folder / "weights.pth")
    encoder = m2d.load(folder / "weights.pth", name="ViT")
    assert encoder.clip_seconds == 10.01
    wave, valid = noise(1, 240000), torch.tensor([30000])  # 1,501 frames: a chunk of 1,001 and one of 500
    with torch.inference_mode():
        counts = count_batch(encoder, wave, valid, encoder.layers, 256)
    assert counts.tokens.tolist() == [2 + 5 * (62 + 32)]
    assert counts.padding_tokens.tolist() == [5 * (62 - 12) + 5 * 32]
