"""Encoders: counting, any torch module, and M2D's own loader."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, make_toy
from test_module import WAVE, WHOLE, bare
from torch import nn

from aape.collecting.counting import count_active, count_batch
from aape.encoders.dry_run import common_width, dry_run
from aape.encoders.encoder import Encoder, choose_device, hooked


def width_of(encoder: Encoder, layers) -> int:
    return common_width(encoder, layers, dry_run(encoder))


@pytest.mark.parametrize("neurons", [24, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_count_active_equals_a_plain_sum_over_more_tokens_than_a_byte_holds(
    neurons: int, dtype: torch.dtype
):
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(3, 704, neurons, generator=generator) - 0.1).to(dtype)
    values[:, :, 0] = 1.0
    values[:, :300, 1] = 0.0
    mask = torch.rand(3, 704, generator=generator) > 0.5
    mask[2] = False
    counts, marked, sums = count_active(values, mask)
    assert torch.equal(counts, (values > 0).sum(dim=1).int())
    assert marked is not None and torch.equal(
        marked, ((values > 0) & mask[:, :, None]).sum(dim=1).int()
    )
    assert count_active(values)[1] is None
    torch.testing.assert_close(sums.double(), values.double().sum(dim=1), rtol=1e-5, atol=1e-3)
    assert torch.equal(
        count_active(values.transpose(1, 2))[0], (values.transpose(1, 2) > 0).sum(dim=1).int()
    )


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
    wave[0, 0] = wave[0, 100] = (
        0.5  # neuron 0 copies the first sample of a token: active in tokens 0 and 1
    )
    wave[0, 201] = 0.5  # neuron 1 copies the second: active in token 2
    wave[
        0, 200
    ] = -0.5  # neuron 2 of the first layer is the first sample negated: active in token 2
    counted = count_batch(toy, wave, torch.tensor([200]), toy.layers, 8)
    assert counted.counts[0, :, :3].tolist() == [
        [2, 1, 1],
        [2, 1, 0],
        [2, 1, 0],
    ]  # behind layer 0 nothing is negative
    assert counted.counts[0, :, 3:].sum() == 0
    assert counted.tokens.tolist() == [3] and counted.padding_tokens.tolist() == [1]
    torch.testing.assert_close(
        counted.means[0, :2, :3], torch.tensor([[1 / 3, 0.5 / 3, 0.5 / 3], [1 / 3, 0.5 / 3, 0]])
    )
    assert counted.padding is not None  # the third token lies behind 200 valid samples
    assert counted.padding[0, :, :2].tolist() == [[0, 1]] * 3


def test_what_a_hook_returns_takes_the_place_of_the_activations_and_no_hook_stays():
    toy = make_toy()
    last = toy.module.layers[2]
    with torch.no_grad(), hooked(toy, ["layers.1.act"], lambda place, x: torch.zeros_like(x)):
        changed = toy.embed(WAVE)
    torch.testing.assert_close(changed, last.act(last.fc.bias).expand(3, -1).detach())
    with pytest.raises(KeyboardInterrupt), hooked(toy, toy.layers, lambda *_: None):
        assert all(m._forward_hooks for m in toy.activations.values())
        raise KeyboardInterrupt
    assert not any(m._forward_hooks for m in toy.activations.values())


def test_identity_is_of_the_whole_state_and_follows_a_change_in_place():
    toy, same = make_toy(), make_toy()
    before = toy.identity
    assert before == same.identity != make_toy(seed=1).identity
    toy.module.layers[2].fc.bias.data[7] += 1e-6  # behind autograd's back
    assert toy.identity != before
    assert same.module.to(torch.bfloat16) and same.identity != before and same.dtype == "bfloat16"
    assert (
        dataclasses.replace(toy, module=nn.ModuleDict({"other": make_toy().module})).identity
        != before
    )
    pooled = dataclasses.replace(toy, embed=lambda wave: toy.embed(wave) + 0.01)
    assert pooled.identity == toy.identity
    assert len(repr(toy).splitlines()) < 10 and "<table>" in toy._repr_html_()


def odd(how: str) -> Encoder:
    """The toy, whose last layer sees half the tokens, is called twice, ...: `how` says what."""
    module = make_toy().module
    one, two, three = module.layers

    def embed(wave: torch.Tensor) -> torch.Tensor:
        x = two.act(two.fc(one.act(one.fc(wave.unflatten(1, (-1, 100))))))
        if how == "halves":
            x = x[:, ::2]
        if how == "twice":
            x = three.act(three.fc(x))
        if how == "loud":  # one clip overflows behind the second layer
            x = x + torch.where(wave.amax(dim=1) > 5, torch.nan, 0.0)[:, None, None]
        if how == "channels first":
            return three.act(wave.unflatten(1, (-1, 10)).mT).mean(dim=2)
        return three.act(three.fc(x)).nan_to_num().mean(dim=1)

    return bare(module, "layers.*.act", embed=embed)


@pytest.mark.parametrize(
    ("how", "words", "tokens"),
    [
        ("halves", "10 tokens in layers.0.act, layers.1.act; 5 tokens in", 5),
        ("twice", r"10 \+ 10 tokens in layers.2", 20),
    ],
)
def test_layers_with_different_tokens_are_refused_and_named_and_right_by_themselves(
    how, words, tokens
):
    encoder = odd(how)
    with pytest.raises(ValueError, match=f"{words}.*layers="):
        width_of(encoder, encoder.layers)
    with pytest.raises(ValueError, match=words):
        count_batch(encoder, WAVE, WHOLE, encoder.layers, 8)
    with torch.no_grad():
        encoder.module.layers[2].fc.bias.fill_(1000.0)  # every token of the last layer is active
    assert width_of(encoder, encoder.layers[2:]) == width_of(encoder, encoder.layers[:2]) == 8
    last = count_batch(encoder, WAVE, WHOLE, encoder.layers[2:], 8)
    assert (last.counts == last.tokens[:, None, None]).all() and last.tokens.tolist() == [
        tokens
    ] * 3


def test_what_is_not_finite_in_a_layer_shows_in_the_means_of_that_clip_and_layer():
    encoder, wave = odd("loud"), WAVE.clone()
    wave[2, 17] = 9.0
    counted = count_batch(encoder, wave, WHOLE, encoder.layers, 8)
    assert counted.embeddings.isfinite().all()  # nothing is to be seen of it at the end
    assert counted.means.isfinite().all(dim=2).logical_not().nonzero().tolist() == [[2, 2]]


ModelOutput = dataclasses.make_dataclass("ModelOutput", ["last_hidden_state"])
UNEVEN = nn.Sequential(nn.Linear(1000, 8), nn.ReLU(), nn.Linear(8, 16), nn.ReLU())
DAMAGED = nn.Sequential(nn.Linear(1000, 8), nn.ReLU())
DAMAGED[0].weight.data.fill_(torch.nan)


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        (
            odd("channels first"),
            r"'layers\.2\.act' has \[50, 100\] channels, by the length of the wave",
        ),
        (bare(UNEVEN, "[13]"), "1 has 8, 3 has 16"),
        (bare(DAMAGED, "1"), "damaged weights"),
        (
            dataclasses.replace(make_toy(), embed=ModelOutput),
            "embed gave a ModelOutput.*last_hidden_state",
        ),
        (
            dataclasses.replace(make_toy(), embed=lambda wave: wave[:, :, None]),
            r"embed gave \[2, 1000, 1\]",
        ),
        (dataclasses.replace(make_toy(), embed=lambda wave: wave), "was never called"),
    ],
)
def test_what_cannot_be_counted_is_named(encoder: Encoder, words: str):
    with pytest.raises(ValueError, match=words):
        width_of(encoder, encoder.layers)


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"),
    reason="this torch has the old switches",
)
@pytest.mark.parametrize(
    "how", ["fp32_precision = 'tf32'", "fp32_precision = 'ieee'", "cudnn.allow_tf32 = True"]
)
def test_full_precision_whichever_switches_were_set_and_back(how: str):
    script = f"""
import torch
from aape.encoders.encoder import full_precision
torch.backends.{how}
places = torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.cuda.matmul
before = [place.fp32_precision == "tf32" for place in places]
with full_precision():
    assert "tf32" not in [place.fp32_precision for place in places]
assert [place.fp32_precision == "tf32" for place in places] == before
"""
    subprocess.run(
        [sys.executable, "-c", script], check=True, cwd=REPOSITORY
    )  # the switches are the process's


@pytest.mark.parametrize("device", ["gpu", "cuda:one"])
def test_a_device_that_torch_does_not_know_is_one_clear_sentence(device: str):
    with pytest.raises(ValueError, match=f"device='{device}' is not a device of torch: use 'cuda'"):
        choose_device(device)
