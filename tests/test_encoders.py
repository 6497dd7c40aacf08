"""Encoders: M2D's own loader, and any torch module."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import make_toy
from torch import nn

from aape.counting import count_active, count_batch
from aape.encoder import Encoder, from_module, hooked
from aape.encoders import m2d
from aape.shapes import common_width, dry_run, widths


def width_of(encoder: Encoder, layers) -> int:
    return common_width(encoder, layers, dry_run(encoder)[0])


SMALL = {"width": 64, "depth": 2}
FOLDER = "small-80x64p16x16-0"


def save(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    encoder = m2d.load("random", seed=3, input_size=(80, 64), **SMALL)
    return dict(encoder.module.vit.state_dict())


@pytest.mark.parametrize("neurons", [24, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_count_active_equals_a_plain_sum_over_more_tokens_than_a_byte_holds(neurons: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(3, 704, neurons, generator=generator) - 0.1).to(dtype)
    values[:, :, 0] = 1.0
    values[:, :300, 1] = 0.0
    mask = torch.rand(3, 704, generator=generator) > 0.5
    mask[2] = False
    counts, marked, sums = count_active(values, mask)
    assert torch.equal(counts, (values > 0).sum(dim=1).int())
    assert marked is not None and torch.equal(marked, ((values > 0) & mask[:, :, None]).sum(dim=1).int())
    assert count_active(values)[1] is None
    torch.testing.assert_close(sums.double(), values.double().sum(dim=1), rtol=1e-5, atol=1e-3)
    assert torch.equal(count_active(values.transpose(1, 2))[0], (values.transpose(1, 2) > 0).sum(dim=1).int())


def test_toy_counts_by_hand():
    """Weights that copy two samples of every token: counts can be read off the wave."""
    toy = make_toy()
    with torch.no_grad():
        for layer in toy.module.layers:
            layer.fc.weight.zero_()
            layer.fc.bias.zero_()
            layer.fc.weight[0, 0] = layer.fc.weight[1, 1] = 1.0
            layer.fc.weight[2, 0] = -1.0
    wave = torch.zeros(1, 300)
    wave[0, 0] = wave[0, 100] = 0.5  # neuron 0 copies the first sample of a token: active in tokens 0 and 1
    wave[0, 201] = 0.5  # neuron 1 copies the second: active in token 2
    wave[0, 200] = -0.5  # neuron 2 of the first layer is the first sample negated: active in token 2
    counted = count_batch(toy, wave, torch.tensor([200]), toy.layers, 8)
    assert counted.counts[0, :, 0].tolist() == [2, 2, 2]
    assert counted.counts[0, :, 1].tolist() == [1, 1, 1]
    assert counted.counts[0, :, 2].tolist() == [1, 0, 0]  # layer 1 negates neuron 0, which is never below 0 any more
    assert counted.counts[0, :, 3:].sum() == 0
    assert counted.tokens.tolist() == [3] and counted.padding_tokens.tolist() == [1]
    torch.testing.assert_close(counted.means[0, :2, :3], torch.tensor([[1 / 3, 0.5 / 3, 0.5 / 3], [1 / 3, 0.5 / 3, 0]]))
    assert counted.padding is not None
    assert counted.padding[0, :, 1].tolist() == [1, 1, 1]  # the third token lies behind 200 valid samples
    assert counted.padding[0, :, 0].tolist() == [0, 0, 0]


def test_counting_leaves_no_hook_behind_even_after_an_error():
    toy = make_toy()
    modules = list(toy.activations.values())
    count_batch(toy, torch.zeros(1, 1000), torch.tensor([1000]), toy.layers, 8)
    assert all(not m._forward_hooks for m in modules)
    with pytest.raises(KeyboardInterrupt), hooked(toy, toy.layers, lambda *_: None):
        assert all(m._forward_hooks for m in modules)
        raise KeyboardInterrupt
    assert all(not m._forward_hooks for m in modules)


def test_what_a_hook_returns_takes_the_place_of_the_activations_and_of_the_first_of_a_tuple():
    class Pair(nn.ReLU):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:  # type: ignore[override]
            return super().forward(x), "kept"

    toy = make_toy()
    toy.module.layers[1].act = pair = Pair()

    def forward(wave: torch.Tensor) -> torch.Tensor:
        x = wave.unflatten(1, (-1, 100))
        for i, layer in enumerate(toy.module.layers):
            out = layer.act(layer.fc(x))
            if i == 1:
                assert out[1] == "kept"
                out = out[0]
            x = out
        return x.mean(dim=1)

    encoder = dataclasses.replace(toy, activations={**toy.activations, "layers.1.act": pair}, embed=forward)
    wave = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    places: list[int] = []

    def see(place: int, activations: torch.Tensor) -> torch.Tensor | None:
        places.append(place)
        return torch.zeros_like(activations) if place == 0 else None

    with torch.no_grad(), hooked(encoder, ["layers.1.act", "layers.2.act"], see):
        changed = encoder.embed(wave)
    last = toy.module.layers[2]
    assert places == [0, 1]
    torch.testing.assert_close(changed, last.act(last.fc.bias).expand(2, -1).detach())


def test_timm_vit_matches_a_literal_count():
    vit = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64, in_chans=1, num_classes=0, depth=2)
    encoder = from_module(
        vit,
        activations="blocks.*.mlp.act",
        embed=lambda wave: vit(wave.unflatten(1, (1, 64, 64))),
        sample_rate=4096,
        clip_seconds=1.0,
        name="timm",
    )
    assert encoder.layers == ("blocks.0.mlp.act", "blocks.1.mlp.act")
    wave = torch.randn(3, 4096, generator=torch.Generator().manual_seed(0))
    counted = count_batch(encoder, wave, torch.full((3,), 4096), encoder.layers, 768)
    with torch.no_grad():  # the blocks by hand
        x = vit._pos_embed(vit.patch_embed(wave.unflatten(1, (1, 64, 64))))
        for layer, block in enumerate(vit.blocks):
            x = x + block.attn(block.norm1(x))
            hidden = block.mlp.act(block.mlp.fc1(block.norm2(x)))
            x = x + block.mlp.fc2(hidden)
            clear = (hidden.abs() > 1e-5).all(dim=1)  # rounding may move a sign near zero
            assert clear.float().mean() > 0.9
            assert torch.equal(counted.counts[:, layer][clear], (hidden > 0).sum(dim=1).int()[clear])
    assert counted.padding is None and counted.tokens.tolist() == [17, 17, 17]


def test_transformers_ast_and_whisper_encoder():
    transformers = pytest.importorskip("transformers")
    ast = transformers.ASTModel(
        transformers.ASTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_length=48,
            num_mel_bins=32,
        )
    )
    names = [n for n, m in ast.named_modules() if "GELU" in type(m).__name__]
    assert len(names) == 2
    pattern = names[0].replace(".0.", ".*.")
    encoder = from_module(
        ast,
        activations=pattern,
        embed=lambda wave: ast(wave.unflatten(1, (48, 32))).pooler_output,
        sample_rate=1536,
        clip_seconds=1.0,
        name="AST",
    )
    assert widths(encoder) == dict.fromkeys(names, 64)
    whisper = transformers.WhisperModel(
        transformers.WhisperConfig(
            d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, decoder_layers=1,
            decoder_attention_heads=2, decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=20, vocab_size=50,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )
    ).encoder  # fmt: skip
    encoder = from_module(
        whisper,
        activations="layers.*.activation_fn",
        embed=lambda wave: whisper(wave.unflatten(1, (8, 40))).last_hidden_state.mean(dim=1),
        sample_rate=320,
        clip_seconds=1.0,
        name="Whisper",
    )
    counted = count_batch(encoder, torch.randn(2, 320), torch.tensor([320, 320]), encoder.layers, 64)
    assert counted.counts.shape == (2, 2, 64)
    assert counted.tokens.tolist() == [20, 20]
    assert 0 < counted.counts.sum() < 2 * 2 * 64 * 20


def test_identity_is_of_the_whole_state_and_follows_a_change_in_place():
    toy, same = make_toy(), make_toy()
    before = toy.identity
    assert before == same.identity != make_toy(seed=1).identity
    toy.module.layers[2].fc.bias.data[7] += 1e-6  # behind autograd's back
    assert toy.identity != before
    assert same.module.to(torch.bfloat16) and same.identity != before and same.dtype == "bfloat16"
    renamed = nn.ModuleDict({"other": make_toy().module})
    assert dataclasses.replace(toy, module=renamed).identity != before
    pooled = dataclasses.replace(toy, embed=lambda wave: toy.embed(wave) + 0.01)
    assert pooled.identity == toy.identity and toy.probe == toy.probe
    assert np.abs(np.subtract(pooled.probe, toy.probe)).max() > 1e-3 * np.abs(toy.probe).max()


class Strided(nn.Module):
    """Tokens of 100 samples, each 80 after the last: 12 in 1,000 samples, where 1,000 / 80 = 12.5."""

    def __init__(self, extra: int = 0) -> None:
        super().__init__()
        self.conv, self.act, self.extra = nn.Conv1d(1, 8, 100, 80), nn.ReLU(), extra

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        ends = []
        for piece in wave.split(1000, dim=1):
            tokens = self.conv(piece[:, None]).transpose(1, 2)
            ends.append(self.act(nn.functional.pad(tokens, (0, 0, self.extra, 0))).mean(dim=1))
        return torch.stack(ends).mean(dim=0)


def strided(extra: int = 0) -> Encoder:
    module = Strided(extra)
    return from_module(
        module, activations="act", embed=module, sample_rate=1000, clip_seconds=1.0, name="strided", chunks=True,
        samples_per_token=80,
    )  # fmt: skip


def test_samples_per_token_gives_padding_and_grid_over_chunks():
    encoder = strided()
    grid = encoder.token_grid(1500)
    assert [g.shape for g in grid] == [(12, 2), (6, 2)]
    assert torch.equal(torch.cat(grid), torch.stack([torch.zeros(18), torch.arange(18)], dim=1).long())
    masks = encoder.padding_masks(torch.tensor([1500, 1080, 300]), 1500)
    first = torch.cat([torch.arange(12) * 80, 1000 + torch.arange(6) * 80])  # first sample of each token
    for row, valid in enumerate((1500, 1080, 300)):
        assert torch.equal(torch.cat(masks, dim=1)[row], first >= valid)
    wave = torch.randn(3, 1500)
    counted = count_batch(encoder, wave, torch.tensor([1500, 1080, 300]), encoder.layers, 8)
    assert counted.tokens.tolist() == [18] * 3 and counted.padding_tokens.tolist() == [0, 5, 14]


def test_samples_per_token_that_does_not_agree_is_refused():
    with pytest.raises(ValueError, match="Class tokens"):
        strided(extra=2).padding_masks(torch.tensor([1000]), 1000)
    module = Strided()
    with pytest.raises(ValueError, match="gives padding_masks"):
        from_module(
            module, activations="act", embed=module, sample_rate=1000, clip_seconds=1.0, name="both",
            samples_per_token=80, padding_masks=lambda valid, samples: [],
        )  # fmt: skip


def test_an_encoder_shows_itself_in_a_few_lines():
    toy = make_toy()
    lines = repr(toy).splitlines()
    assert lines[0] == "Encoder toy" and len(lines) < 10 and all(len(line) <= 120 for line in lines)
    assert "3: layers.0.act to layers.2.act" in repr(toy) and "float32 on cpu" in repr(toy)
    assert "<table>" in toy._repr_html_() and "1000 Hz, 1 s" in toy._repr_html_()


def test_a_functional_activation_gets_advice():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc2(nn.functional.gelu(self.fc1(x)))

    module = nn.Sequential(Block(), Block())
    with pytest.raises(ValueError, match=r"linear layer in front \(0\.fc1\?\).*nn\.GELU"):
        from_module(module, activations="*.act", embed=module, sample_rate=4, clip_seconds=1.0, name="functional")


class Halving(nn.Module):
    """Three layers of 8 neurons; the last sees half the tokens, or `how` says what else goes wrong."""

    def __init__(self, how: str = "halves") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.fc = nn.ModuleList([nn.Linear(n, 8) for n in (100, 8, 8)])
        self.act = nn.ModuleList([nn.ReLU() for _ in range(3)])
        self.conv = nn.Conv1d(1, 8, 10, 10)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        x = wave.unflatten(1, (-1, 100))
        x = self.act[1](self.fc[1](self.act[0](self.fc[0](x))))
        if self.how == "halves":
            x = x[:, ::2]
        if self.how == "channels first":
            return self.act[2](self.conv(wave[:, None])).mean(dim=2)
        if self.how == "twice":
            x = self.act[2](self.fc[2](x))
        if self.how == "loud":  # one clip overflows behind the first layer
            x = x + torch.where(wave.amax(dim=1) > 5, torch.nan, 0.0)[:, None, None]
        x = self.act[2](self.fc[2](x))
        return nn.functional.normalize(x.nan_to_num().mean(dim=1)) if self.how == "loud" else x.mean(dim=1)


def halving(how: str = "halves") -> Encoder:
    module = Halving(how)
    return from_module(
        module, activations="act.*", embed=module, sample_rate=1000, clip_seconds=1.0, name="halving"
    )  # fmt: skip


def test_layers_with_different_tokens_are_refused_and_named_and_right_by_themselves():
    wave = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    full = torch.full((3,), 1000)
    for how, words in (
        ("halves", "10 tokens in act.0, act.1; 5 tokens in act.2"),
        ("twice", r"10 \+ 10 tokens in act.2"),
    ):
        encoder = halving(how)
        with pytest.raises(ValueError, match=f"{words}.*layers="):
            width_of(encoder, encoder.layers)
        with pytest.raises(ValueError, match=words):
            count_batch(encoder, wave, full, encoder.layers, 8)
        with torch.no_grad():
            encoder.module.fc[2].bias.fill_(100.0)  # every token of the last layer is active
        assert width_of(encoder, ["act.2"]) == width_of(encoder, ["act.0", "act.1"]) == 8
        last = count_batch(encoder, wave, full, ["act.2"], 8)
        assert (last.counts == last.tokens[:, None, None]).all()
        assert last.tokens.tolist() == [5 if how == "halves" else 20] * 3


def test_time_on_the_last_axis_is_not_taken_for_neurons():
    encoder = halving("channels first")
    with pytest.raises(ValueError, match=r"'act\.2' has 50 or 100 channels, by the length of the wave"):
        width_of(encoder, ["act.2"])


def test_what_is_not_finite_in_a_layer_shows_in_the_means_of_that_clip_and_layer():
    encoder = halving("loud")
    wave = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    wave[2, 17] = 9.0
    counted = count_batch(encoder, wave, torch.full((4,), 1000), encoder.layers, 8)
    assert counted.embeddings.isfinite().all()  # nothing is to be seen of it at the end
    assert counted.means.isfinite().all(dim=2).logical_not().nonzero().tolist() == [[2, 2]]


def test_a_models_output_in_place_of_an_embedding_is_named():
    @dataclasses.dataclass
    class ModelOutput:
        last_hidden_state: torch.Tensor

    toy = make_toy()
    for embed, words in (
        (lambda wave: ModelOutput(wave), "a ModelOutput.*last_hidden_state"),
        (lambda wave: wave[:, :, None], r"\[2, 1000, 1\]"),
    ):
        with pytest.raises(ValueError, match=f"embed gave {words}"):
            width_of(dataclasses.replace(toy, embed=embed), toy.layers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_counts_of_other_types_are_those_of_the_type(dtype: torch.dtype):
    toy = make_toy()
    toy.module.to(dtype)
    encoder = dataclasses.replace(toy, embed=lambda wave: toy.module(wave.to(dtype)))
    wave = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    counted = count_batch(encoder, wave, torch.full((3,), 1000), encoder.layers, 8)
    x = wave.to(dtype).unflatten(1, (-1, 100))
    for i, layer in enumerate(toy.module.layers):
        x = layer.act(layer.fc(x))
        assert torch.equal(counted.counts[:, i], (x > 0).sum(dim=1).int())
    assert encoder.dtype == str(dtype).removeprefix("torch.") and counted.embeddings.dtype == torch.float32


def test_the_linear_before_the_activation_counts_the_same_and_warns():
    toy = make_toy()
    with pytest.warns(UserWarning, match="silencing there is refused"):
        linear = from_module(
            toy.module, activations="layers.*.fc", embed=toy.module, sample_rate=1000, clip_seconds=1.0, name="linear"
        )
    wave = torch.randn(4, 1000, generator=torch.Generator().manual_seed(1))
    full = torch.full((4,), 1000)
    ours, theirs = (count_batch(e, wave, full, e.layers, 8).counts for e in (toy, linear))
    assert torch.equal(ours, theirs) and linear.preactivation and not toy.preactivation


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("blocks.*.mlp.act", "matches no module of Toy.*layers.0.act"),
        ("layers.*", "must match activation functions.*layers.0"),
        ("layers.*.*", "must match activation functions"),
    ],
)
def test_patterns_that_hit_nothing_or_the_wrong_thing(pattern: str, message: str):
    module = make_toy().module
    with pytest.raises(ValueError, match=message):
        from_module(module, activations=pattern, embed=module, sample_rate=1000, clip_seconds=1.0, name="toy")


def test_a_shared_activation_module_and_unequal_widths_are_refused():
    shared = nn.ReLU()
    module = nn.ModuleDict({"a": nn.ModuleDict({"act": shared}), "b": nn.ModuleDict({"act": shared})})
    with pytest.raises(ValueError, match="one and the same module"):
        from_module(module, activations="*.act", embed=lambda w: w, sample_rate=10, clip_seconds=1.0, name="shared")
    uneven = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 16), nn.ReLU())
    encoder = from_module(uneven, activations="[13]", embed=uneven, sample_rate=10, clip_seconds=1.0, name="uneven")
    with pytest.raises(ValueError, match="1 has 8, 3 has 16"):
        width_of(encoder, encoder.layers)
    assert width_of(encoder, ["3"]) == 16


@pytest.mark.parametrize("layout", ["model key", "top level", "full with args", "EVAR prefix", "safetensors"])
def test_checkpoints_load_in_every_layout(tmp_path: Path, tensors: dict[str, torch.Tensor], layout: str):
    path = tmp_path / FOLDER / "checkpoint-300.pth"
    if layout == "model key":
        save(path, {"model": tensors})
    elif layout == "top level":
        save(path, {k: v for k, v in tensors.items() if k != "norm_stats"})
    elif layout == "full with args":
        extra = {"decoder_embed.weight": torch.zeros(3, 3), "mask_token": torch.zeros(1)}
        args = argparse.Namespace(lr=0.1, output_dir=Path("x"))
        save(path, {"model": tensors | extra, "args": args, "epoch": 300, "optimizer": {"state": {}}})
    elif layout == "EVAR prefix":
        save(path, {"module.ar.runtime.backbone." + k: v for k, v in tensors.items()})
    else:
        from safetensors.torch import save_file

        path = path.with_suffix(".safetensors")
        path.parent.mkdir()
        save_file(tensors, path)
    encoder = m2d.load(path)
    wave = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0))
    expected = m2d.load("random", seed=3, input_size=(80, 64), **SMALL)
    with torch.no_grad():
        assert torch.equal(encoder.embed(wave), expected.embed(wave))
    assert encoder.clip_seconds == pytest.approx(0.64) and len(encoder.weights["sha256"]) == 64
    assert expected.weights["sha256"] != m2d.load("random", seed=4, input_size=(80, 64), **SMALL).weights["sha256"]


class Payload:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("code ran",))


def test_bad_checkpoints_are_named_and_never_run(tmp_path: Path, tensors, capsys):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*Install.md"):
        m2d.load(tmp_path / "nothing.pth")
    whole = save(tmp_path / FOLDER / "a.pth", {"model": tensors})
    cut = tmp_path / FOLDER / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:5000])
    text = tmp_path / FOLDER / "text.pth"
    text.write_text("<html>not found</html>")
    evil = save(tmp_path / FOLDER / "evil.pth", {"model": tensors, "args": Payload()})
    for path in (cut, text, evil):
        with pytest.raises(ValueError, match=f"{path.name}.* is not a checkpoint that can be read safely"):
            m2d.load(path)
    assert "code ran" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="is no M2D encoder.*patch_embed"):
        m2d.load(save(tmp_path / FOLDER / "other.pth", {"conv1.weight": torch.zeros(2)}))
    less = {k: v for k, v in tensors.items() if k != "blocks.1.attn.qkv.bias"}
    with pytest.raises(ValueError, match=r"1 tensors missing \(blocks.1.attn.qkv.bias"):
        m2d.load(save(tmp_path / FOLDER / "less.pth", less))
    odd = tensors | {"blocks.1.norm1.weight": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"blocks.1.norm1.weight is \(3,\), expected \(64,\)"):
        m2d.load(save(tmp_path / FOLDER / "odd.pth", odd))
    for name, change, words in (
        ("far", {"blocks.999999999.norm1.weight": torch.zeros(64)}, "12 tensors missing"),
        ("flat", {"pos_embed": torch.zeros(21)}, r"'pos_embed': \(21,\)"),
        ("vast", {"pos_embed": torch.zeros(1, 1, 64).expand(1, 10**9, 64)}, r"says \[1, 1000000000, 64\]"),
        ("tall", {"patch_embed.proj.weight": torch.zeros(64, 1, 96, 16)}, "no ViT of M2D's kind"),
        ("nan", {"norm.bias": torch.full((64,), torch.nan)}, "norm.bias holds .* not finite"),
        ("whole", {"norm.bias": torch.zeros(64, dtype=torch.int64)}, "norm.bias holds whole numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            m2d.load(save(tmp_path / FOLDER / f"{name}.pth", tensors | change))
    with pytest.raises(ValueError, match="name says input 80x608 .* tensors hold 20 positions"):
        m2d.load(save(tmp_path / "m2d_vit_base-80x608p16x16-221006-mr7" / "c.pth", tensors))


def test_a_name_that_says_nothing_leaves_the_size_to_the_tensors(tmp_path: Path, tensors):
    encoder = m2d.load(save(tmp_path / "mine" / "weights.pth", tensors))
    assert encoder.module.vit.input_size == (80, 64)
    assert m2d.sizes_from_name("m2d_vit_base-80x608p16x16-221006-mr7") == ((80, 608), (16, 16), 16000)
    assert m2d.sizes_from_name("m2d_vit_base-80x1001p16x16p32k-240413") == ((80, 1001), (16, 16), 32000)


def test_padding_masks_agree_with_what_the_tokens_see():
    """Changing only what lies behind the valid samples moves no token that is said to be sound, and only those."""
    encoder = m2d.load("random", input_size=(80, 64), **SMALL)
    rng = np.random.default_rng(0)
    samples = 16000  # 101 frames: chunks of 64 and 37
    for valid in (3000, 9000, 10240, 15990):
        wave = torch.zeros(1, samples)
        wave[0, :valid] = torch.from_numpy(rng.normal(0, 0.1, valid).astype(np.float32))
        silence = encoder.module.begin(torch.zeros(1, samples))
        masks = encoder.padding_masks(torch.tensor([valid]), samples)
        for mask, tokens, silent in zip(masks, encoder.module.begin(wave), silence, strict=True):
            same = (tokens == silent).all(dim=-1)[0]
            same[0] = False  # the class token is no padding
            assert torch.equal(mask[0], same)
    assert not any(m.any() for m in encoder.padding_masks(torch.tensor([samples]), samples))


def test_the_token_grid_says_which_patch_a_token_is_of():
    encoder = m2d.load("random", input_size=(80, 64), **SMALL)
    samples, columns = 14000, 0  # 88 frames: chunks of 4 and 2 columns of patches
    grid = encoder.token_grid(samples)
    chunks = encoder.module.chunks(torch.zeros(1, samples))
    assert len(grid) == len(chunks) == 2
    for cells, chunk in zip(grid, chunks, strict=True):
        plain = encoder.module.vit.tokens(chunk)
        assert cells.shape == (plain.shape[1], 2) and cells[0].tolist() == [-1, -1]
        for f in range(chunk.shape[2] // 16):
            for t in range(chunk.shape[3] // 16):
                changed = chunk.clone()
                changed[:, :, f * 16 + 5, t * 16 + 5] += 1
                (moved,) = (encoder.module.vit.tokens(changed) != plain).any(dim=-1)[0].nonzero()
                assert cells[moved[0]].tolist() == [f, columns + t]
        columns += chunk.shape[3] // 16


def test_stages_give_the_same_embedding():
    encoder = m2d.load("random", input_size=(80, 64), **SMALL)
    wave = torch.randn(2, 20000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sequences, finish = encoder.stages.begin(wave)
        for block in encoder.stages.blocks:
            sequences = [block(x) for x in sequences]
        assert torch.equal(finish(sequences), encoder.embed(wave))
