"""from_module: which modules are counted, where their tokens lie, and what is refused."""

import dataclasses

import pytest
import timm
import torch
from conftest import make_toy
from torch import Tensor, nn

from aape.causal.silencing import silenced
from aape.collecting.counting import count_batch
from aape.encoders.dry_run import dry_run, widths
from aape.encoders.encoder import Encoder, hooked
from aape.encoders.module import from_module

WAVE = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))


WHOLE = torch.full((3,), 1000)


def bare(module: nn.Module, activations: str, **options) -> Encoder:
    """A module that is its own `embed`, on 1 s of 1,000 samples."""
    options = {"embed": module, "sample_rate": 1000, "clip_seconds": 1.0, "name": "bare"} | options
    return from_module(module, activations=activations, **options)


class Strided(nn.Module):
    """Tokens of 100 samples, each 80 after the last: 12 in 1,000 samples, where 1,000 / 80 = 12.5."""

    def __init__(self, extra: int = 0) -> None:
        super().__init__()
        self.conv, self.act, self.extra = nn.Conv1d(1, 8, 100, 80), nn.ReLU(), extra

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        tokens = [self.conv(piece[:, None]).transpose(1, 2) for piece in wave.split(1000, dim=1)]
        ends = [self.act(nn.functional.pad(t, (0, 0, self.extra, 0))).mean(dim=1) for t in tokens]
        return torch.stack(ends).mean(dim=0)


def test_samples_per_token_gives_padding_and_grid_over_chunks_or_is_refused():
    encoder = bare(Strided(), "act", chunks=True, samples_per_token=80)
    grid = encoder.token_grid(1500)
    assert [g.shape for g in grid] == [(12, 2), (6, 2)]
    assert torch.equal(
        torch.cat(grid), torch.stack([torch.zeros(18), torch.arange(18)], dim=1).long()
    )
    valid = torch.tensor([1500, 1080, 300])
    first = torch.cat(
        [torch.arange(12) * 80, 1000 + torch.arange(6) * 80]
    )  # first sample of each token
    assert torch.equal(
        torch.cat(encoder.padding_masks(valid, 1500), dim=1), first[None, :] >= valid[:, None]
    )
    counted = count_batch(encoder, torch.randn(3, 1500), valid, encoder.layers, 8)
    assert counted.tokens.tolist() == [18] * 3 and counted.padding_tokens.tolist() == [0, 5, 14]
    with pytest.raises(ValueError, match="Class tokens"):
        bare(Strided(extra=2), "act", samples_per_token=80).padding_masks(
            torch.tensor([1000]), 1000
        )
    with pytest.raises(ValueError, match="it gives padding_masks"):
        bare(Strided(), "act", samples_per_token=80, padding_masks=lambda valid, samples: [])
    lying = bare(
        Strided(), "act", padding_masks=lambda valid, samples: [torch.ones(3, 5, dtype=torch.bool)]
    )
    with pytest.raises(
        ValueError, match=r"padding_masks describes \[5\] tokens.*embed made \[12\]"
    ):
        count_batch(lying, WAVE, WHOLE, lying.layers, 8)


def test_the_linear_before_the_activation_counts_the_same_and_warns():
    toy = make_toy()
    with pytest.warns(
        UserWarning, match="means are not, so none are kept; silencing there is refused"
    ):
        linear = bare(toy.module, "layers.*.fc")
    after, before = (count_batch(e, WAVE, WHOLE, e.layers, 8).counts for e in (toy, linear))
    assert torch.equal(after, before) and linear.preactivation and not toy.preactivation
    with pytest.raises(ValueError, match="before the activation"), silenced(linear, [[0, 0]]):
        pass


class SwiGLU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = x.chunk(2, dim=-1)
        return nn.functional.silu(gate) * value


def test_neurons_of_a_gated_activation_are_its_products():
    gated = nn.Sequential(nn.Unflatten(1, (-1, 100)), nn.Linear(100, 32), SwiGLU())
    encoder = bare(gated, "2", embed=lambda wave: gated(wave).mean(dim=1))
    assert widths(encoder) == {"2": 16}
    counted = count_batch(encoder, WAVE, WHOLE, encoder.layers, 16)
    gate, value = gated[:2](WAVE).chunk(2, dim=-1)
    assert torch.equal(counted.counts[:, 0], (gate * value > 0).sum(dim=1))  # SiLU keeps signs
    with silenced(encoder, [[0, 3]]), torch.no_grad():
        assert (encoder.embed(WAVE) == 0).sum(dim=0).tolist() == [3 * (i == 3) for i in range(16)]


class Swapped(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x.transpose(0, 1)).transpose(0, 1)


def test_a_time_first_model_is_told_what_to_do_and_that_helps():
    module = make_toy().module

    def embed(wave: torch.Tensor) -> torch.Tensor:
        x = wave.unflatten(1, (-1, 100)).transpose(0, 1)
        for layer in module.layers:
            x = layer.act(layer.fc(x))
        return x.mean(dim=0)

    with pytest.raises(
        ValueError, match=r"\(10, 2, 8\) for 2 clips.*\n.*self.act\(x.transpose\(0, 1\)\)"
    ):
        dry_run(bare(module, "layers.*.act", embed=embed))
    for layer in module.layers:
        layer.act = Swapped(layer.act)
    encoder, toy = bare(module, "layers.*.act.act", embed=embed), make_toy()
    dry_run(encoder)
    swapped, plain = (count_batch(e, WAVE, WHOLE, e.layers, 8).counts for e in (encoder, toy))
    assert torch.equal(swapped, plain)


RELU = nn.ReLU()


FUNCTIONAL = nn.ModuleDict(
    {"fc1": nn.Linear(4, 16), "fc2": nn.Linear(16, 4)}
)  # its GELU is a function


@pytest.mark.parametrize(
    ("module", "pattern", "message"),
    [
        (make_toy().module, "blocks.*.mlp.act", "matches no module of Toy.*layers.0.act"),
        (
            make_toy().module,
            "layers.*",
            "must match activation functions.*layers.0.*has one of these words in its name",
        ),
        (nn.ModuleList([RELU, RELU]), "[01]", "one and the same module"),
        (
            nn.ModuleList([FUNCTIONAL, FUNCTIONAL]),
            "*.act",
            r"linear layer in front \(0\.fc1\?\).*nn\.GELU",
        ),
    ],
)
def test_patterns_that_hit_nothing_or_the_wrong_thing(
    module: nn.Module, pattern: str, message: str
):
    with pytest.raises(ValueError, match=message):
        bare(module, pattern)


def test_patterns_tell_capitals_apart_on_windows_too(monkeypatch):
    monkeypatch.setattr("fnmatch.posixpath", None)  # as there
    monkeypatch.setattr("os.path.normcase", str.lower)
    with pytest.raises(ValueError, match="matches no module"):
        bare(make_toy().module, "Layers.*.act")


class Centred(nn.Module):
    """The frames of torch's centred STFT with a hop of 100: 11 of 1,000 samples, centred on samples 0, 100, ..., 1,000."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, wave: Tensor) -> Tensor:
        spectrum = torch.stft(
            wave, 200, 100, window=torch.hann_window(200), center=True, return_complex=True
        )
        return self.act(spectrum.abs().mT).mean(dim=1)


@pytest.mark.parametrize("samples", [1000, 950])
def test_a_centred_stft_has_one_more_frame_which_is_padding_only_in_clips_that_end_early(samples):
    encoder = bare(Centred(), "act", samples_per_token=100)
    (grid,) = encoder.token_grid(samples)
    assert grid[:, 1].tolist() == list(range(samples // 100 + 1))
    (mask,) = encoder.padding_masks(torch.tensor([samples, samples - 1, 400, 401]), samples)
    early = samples == 1000  # the last frame is centred on sample 1,000, which is not there
    assert mask.sum(dim=1).tolist() == [0, int(early), samples // 100 - 3, samples // 100 - 4]


def blocks_of(module: nn.Module) -> dict[str, nn.Module]:
    return {f"stream {i}": layer.fc for i, layer in enumerate(module.layers)}


def test_a_mapping_counts_modules_of_any_class_as_they_are():
    module = make_toy().module
    encoder = bare(module, blocks_of(module))
    assert encoder.layers == ("stream 0", "stream 1", "stream 2") and not encoder.preactivation
    counted = count_batch(encoder, WAVE, WHOLE, encoder.layers, 8)
    stream = module.layers[0].fc(WAVE.unflatten(1, (-1, 100)))
    assert torch.equal(counted.counts[:, 0], (stream > 0).sum(dim=1).int())
    torch.testing.assert_close(counted.means[:, 0], stream.mean(dim=1))
    with pytest.raises(ValueError, match="'other' .* is not inside module"):
        bare(module, {"other": nn.ReLU()})


class Sparse(nn.Module):
    """A sparse autoencoder of 8 channels and 20 features."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.act, self.decode = nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 8)

    def forward(self, stream: Tensor) -> Tensor:
        return self.decode(self.act(self.encode(stream)))


def test_features_of_a_sparse_autoencoder_are_counted_and_silenced_and_belong_to_the_identity():
    toy, sparse = make_toy().module, Sparse()

    def embed(wave: Tensor) -> Tensor:
        handle = toy.layers[1].act.register_forward_hook(
            lambda module, inputs, stream: sparse(stream)
        )
        try:
            return toy(wave)
        finally:
            handle.remove()

    encoder = bare(nn.ModuleList([toy, sparse]), {"features": sparse.act}, embed=embed)
    assert widths(encoder) == {"features": 20}
    with torch.no_grad(), silenced(encoder, [[0, n] for n in range(20)]):
        embedding = encoder.embed(WAVE)
        constant = toy.layers[2].act(toy.layers[2].fc(sparse.decode.bias))
    torch.testing.assert_close(embedding, constant.expand(3, -1))
    before = encoder.identity
    sparse.decode.weight.data.neg_()
    assert encoder.identity != before
    attached = dataclasses.replace(make_toy(), activations={"features": sparse})
    before = attached.identity
    sparse.decode.weight.data.neg_()
    assert attached.identity != before  # although it is outside `module`


def test_a_layer_that_runs_twice_in_a_pass_is_named():
    module = nn.Sequential(
        nn.Unflatten(1, (-1, 100)), nn.Linear(100, 8), nn.ReLU(), nn.Linear(8, 8)
    )

    def embed(wave: Tensor) -> Tensor:
        first, linear, act = module[1], module[3], module[2]
        return act(linear(act(first(module[0](wave))))).mean(dim=1)

    with pytest.warns(
        UserWarning, match="'2' runs 2 times per forward pass.*an activation module of its own"
    ):
        dry_run(bare(module, "2", embed=embed))


def test_nested_tensors_of_torchs_transformer_are_named_and_the_remedy_helps():
    layer = nn.TransformerEncoderLayer(20, 2, 16, batch_first=True, activation=nn.GELU())
    model = nn.TransformerEncoder(layer, 2).eval()

    def embed(wave: Tensor) -> Tensor:
        tokens = wave.unflatten(1, (-1, 20))
        return model(tokens, src_key_padding_mask=(tokens == 0).all(dim=2)).mean(dim=1)

    encoder = bare(model, "layers.*.activation", embed=embed)
    wave = WAVE.clone()
    wave[1, 500:] = 0
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match="gave a nested tensor.*enable_nested_tensor=False"),
    ):
        count_batch(encoder, wave, WHOLE, encoder.layers, 16)
    model.use_nested_tensor = False
    assert count_batch(encoder, wave, WHOLE, encoder.layers, 16).tokens.tolist() == [50] * 3


def test_blocks_run_once_although_the_model_checkpoints_its_gradients():
    shape = {
        "img_size": (10, 100),
        "patch_size": 10,
        "in_chans": 1,
        "embed_dim": 8,
        "depth": 2,
        "num_heads": 1,
    }
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="avg", **shape)
    model.set_grad_checkpointing(True)
    encoder = bare(
        model, "blocks.*.mlp.act", embed=lambda wave: model(wave.reshape(-1, 1, 10, 100))
    )
    leaves: list[Tensor] = []

    def see(_layer: int, activations: Tensor) -> Tensor:
        leaves.append(activations if leaves else activations.detach().requires_grad_())
        return leaves[-1]

    with hooked(encoder, encoder.layers, see):
        embedding = encoder.embed(WAVE)
    gradients = torch.autograd.grad(embedding.square().sum(), leaves)
    assert len(gradients) == 2 and all(gradient.abs().sum() > 0 for gradient in gradients)
