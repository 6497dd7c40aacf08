"""Silencing: what it does to a toy worked out by hand, to real encoder shapes, and what it leaves behind."""

import contextlib
import doctest
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from aape.causal import silencing
from aape.causal.silencing import NeuronSet, embed_with_sets, neuron_set, silenced
from aape.encoders.encoder import Encoder
from aape.encoders.m2d import load
from aape.encoders.module import from_module


def hooks_left(encoder: Encoder) -> dict[str, int]:
    return {
        name: len(m._forward_hooks)
        for name, m in encoder.module.named_modules()
        if m._forward_hooks
    }


class Toy(nn.Module):
    """Two layers of three neurons by hand: wave [batch, 2] as two tokens of one number each."""

    def __init__(self) -> None:
        super().__init__()
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        x = torch.stack((wave, -wave, wave + 1), dim=-1)  # [batch, tokens, 3]
        x = self.act2(2 * self.act1(x))
        return x.mean(dim=1)  # [batch, 3]


def toy() -> Encoder:
    module = Toy()
    return from_module(
        module, activations="act*", embed=module, sample_rate=2, clip_seconds=1.0, name="toy"
    )


@pytest.fixture(scope="module")
def vit() -> Encoder:
    """Four layers of 256 neurons; waves of 3 s make a chunk of 208 frames and a shorter one."""
    return load("random", width=64, depth=4, input_size=(80, 208), seed=3)


@pytest.fixture(scope="module")
def wave() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (3, 48000)).astype(np.float32))


def test_toy_by_hand() -> None:
    encoder = toy()
    wave = torch.tensor([[1.0, -3.0]])
    assert encoder.embed(wave).tolist() == [
        [1.0, 3.0, 2.0]
    ]  # 2 * relu(+-x, x + 1), mean over two tokens
    for neurons, change, expected in (
        ([[0, 1]], {}, [1.0, 0.0, 2.0]),
        ([[0, 0], [1, 2]], {"gain": 0.5}, [0.5, 3.0, 1.0]),
        ([[0, 0], [1, 2]], {"gain": 2.0}, [2.0, 3.0, 4.0]),
        (np.array([[1, 2], [0, 0]]), {"replace_by": [7.0, 5.0]}, [10.0, 3.0, 7.0]),
    ):
        with silenced(encoder, neurons, **change):  # type: ignore[arg-type]
            assert encoder.embed(wave).tolist() == [expected]
    assert encoder.embed(wave).tolist() == [[1.0, 3.0, 2.0]]


def test_gain_of_one_changes_no_bit(vit: Encoder, wave: torch.Tensor) -> None:
    everything = np.argwhere(np.ones((4, 256), dtype=bool))
    with torch.no_grad():
        before = vit.embed(wave)
        with silenced(vit, everything, gain=1.0):
            assert torch.equal(vit.embed(wave), before)


def test_no_hook_is_left_when_a_pass_fails(
    vit: Encoder, wave: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding, change = vit.embed(wave), [neuron_set(vit, [[0, 1], [2, 4]])]
    with monkeypatch.context() as patch:
        patch.setattr(vit.module.vit.blocks[3], "forward", Mock(side_effect=KeyboardInterrupt))  # type: ignore
        for encoder in (vit, replace(vit, stages=None)):
            with pytest.raises(KeyboardInterrupt):
                embed_with_sets(encoder, wave, change)
        with pytest.raises(KeyboardInterrupt), silenced(vit, [[0, 1], [3, 4]]):
            vit.embed(wave)
    assert not hooks_left(vit) and torch.equal(vit.embed(wave), embedding)


@pytest.mark.parametrize(
    ("neurons", "options", "message"),
    [
        ([], {}, "empty"),
        ([[4, 0]], {}, r"neuron \[4, 0\] is not in .* layers 0 to 3 have 256"),
        ([[1, 2], [0, 5], [1, 2]], {}, r"\[1, 2\] is in the set 2 times"),
        (np.ones((4, 256), dtype=bool), {}, "integers"),
        ([[0, 1]], {"gain": -0.5}, "0 or more"),
        ([[0, 1]], {"gain": 0.5, "replace_by": [1.0]}, "cannot be combined"),
        ([[0, 1]], {"replace_by": [1.0, 2.0]}, "1 finite values"),
    ],
)
def test_bad_sets_are_refused(vit: Encoder, neurons: object, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message), silenced(vit, neurons, **options):  # type: ignore[arg-type]
        pass
    assert not hooks_left(vit)


def test_a_layer_that_never_runs_is_not_passed_over_in_silence() -> None:
    encoder = toy()
    encoder.embed(torch.ones(1, 2))
    with (
        pytest.warns(RuntimeWarning, match=r"did not run.*\n.*torch.compile"),
        silenced(encoder, [[0, 0]]),
    ):
        pass
    compiled = replace(encoder, embed=lambda wave: wave)  # whose hooks it passes by
    with pytest.raises(ValueError, match="did not run"):
        embed_with_sets(compiled, torch.ones(1, 2), [None, neuron_set(encoder, [[0, 0]])])


def by_hooks(encoder: Encoder, change: NeuronSet | None, wave: torch.Tensor) -> torch.Tensor:
    """The embedding under a set, one pass with hooks written by hand."""

    def put(out: torch.Tensor, layer: int) -> torch.Tensor:
        out = out.clone()
        for i, (set_layer, n) in enumerate([] if change is None else change.neurons.tolist()):
            if set_layer == layer and change is not None:
                out[..., n] = (
                    change.gain * out[..., n]
                    if change.replace_by is None
                    else float(change.replace_by[i])
                )
        return out

    with contextlib.ExitStack() as hooks:
        for i, name in enumerate(encoder.layers):
            module = encoder.activations[name]
            hooks.enter_context(module.register_forward_hook(lambda _m, _i, out, i=i: put(out, i)))
        return encoder.embed(wave)


def test_staged_and_full_passes_equal_hooks_by_hand(vit: Encoder, wave: torch.Tensor) -> None:
    """Staged to 1e-6 of the largest value, full ones bit for bit; both chunks of the wave take part."""
    sets = [
        neuron_set(vit, [[2, 7], [3, 200]]),
        None,
        neuron_set(vit, [[0, 0], [0, 255], [1, 3], [3, 9]]),
        neuron_set(vit, [[3, 1]], gain=2.0),
        neuron_set(vit, [[2, 7], [2, 5], [3, 3]], replace_by=[0.3, -0.1, 2.0]),
        neuron_set(vit, [[1, n] for n in range(0, 256, 2)]),
    ]
    staged = embed_with_sets(vit, wave, sets)
    full = embed_with_sets(replace(vit, stages=None), wave, sets)
    assert torch.equal(staged[1], full[1])
    for s, change in enumerate(sets):
        with torch.no_grad():
            expected = by_hooks(vit, change, wave)
        assert torch.equal(full[s], expected)
        assert (staged[s] - expected).abs().max() <= 1e-6 * expected.abs().max()
        assert change is None or not torch.equal(full[1], full[s])  # it does something


def test_lower_blocks_run_once_for_all_sets(
    vit: Encoder, wave: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [Mock(wraps=block) for block in vit.stages.blocks]  # type: ignore[union-attr]
    counted = replace(vit, stages=replace(vit.stages, blocks=blocks))  # type: ignore[type-var]
    embed_with_sets(
        counted, wave[:, :32000], [neuron_set(vit, [[2, n], [3, n]]) for n in range(5)]
    )  # one chunk
    assert [block.call_count for block in blocks] == [
        1,
        1,
        1,
        5,
    ]  # layer 2 is corrected by its projection


def test_stages_that_do_not_fit_are_refused(vit: Encoder, wave: torch.Tensor) -> None:
    assert vit.stages is not None
    short = replace(vit, stages=replace(vit.stages, blocks=list(vit.stages.blocks)[:3]))
    with pytest.raises(ValueError, match="3 blocks for 4 counted layers"):
        embed_with_sets(short, wave, [None])


def test_the_examples_in_the_documentation_hold() -> None:
    failed, tried = doctest.testmod(silencing)
    assert tried >= 8 and not failed
