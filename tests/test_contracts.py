"""from_hear and from_xares on toy models that keep the two contracts."""

import types

import pytest
import torch
from torch import Tensor, nn

from aape.collecting.counting import count_batch
from aape.encoders.contracts import from_hear, from_xares


class Frames(nn.Module):
    """Frames of 10 samples, two blocks; X-ARES's contract where `forward` is called, HEAR's through `hear` below."""

    sampling_rate, hop_size_in_ms, output_dim, sample_rate = 1000, 10, 8, 1000

    def __init__(self, class_token: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(n, 16), nn.GELU(), nn.Linear(16, 8)) for n in (10, 8)]
        self.blocks, self.class_token = nn.ModuleList(blocks), class_token

    def forward(self, audio: Tensor) -> Tensor:
        x = audio.unflatten(1, (-1, 10))
        if self.class_token:
            x = nn.functional.pad(x, (0, 0, 1, 0))
        for block in self.blocks:
            x = block(x)
        return x[:, 1:] if self.class_token else x


def by_hand(model: Frames, wave: Tensor) -> tuple[list[Tensor], Tensor]:
    x, counts = wave.unflatten(1, (-1, 10)), []
    for block in model.blocks:
        hidden = nn.functional.gelu(block[0](x))
        counts.append((hidden > 0).sum(dim=1).int())
        x = block[2](hidden)
    return counts, x.mean(dim=1)


WAVE = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_both_contracts_give_the_same_counts_as_the_blocks_by_hand():
    model = Frames()
    hear = types.ModuleType("toy.hear")
    hear.load_model, hear.get_scene_embeddings = (lambda path="": model), (lambda audio, m: m(audio).mean(dim=1))
    counts, embedding = by_hand(model, WAVE)
    for encoder in (from_hear(hear, clip_seconds=0.5), from_xares(model, clip_seconds=0.5)):
        assert encoder.layers == ("blocks.0.1", "blocks.1.1") and encoder.sample_rate == 1000
        counted = count_batch(encoder, WAVE, torch.tensor([500, 255]), encoder.layers, 16)
        assert torch.equal(counted.counts, torch.stack(counts, dim=1))
        torch.testing.assert_close(counted.embeddings, embedding)
    assert counted.padding_tokens.tolist() == [0, 24]  # X-ARES says the hop: frame 26 begins at sample 260


def test_an_output_hop_that_is_not_the_tokens_gives_no_masks():
    encoder = from_xares(Frames(class_token=True), clip_seconds=0.5)
    assert encoder.padding_masks is None and encoder.token_grid is None


def test_what_keeps_no_contract_is_named():
    with pytest.raises(AttributeError, match="get_scene_embeddings"):
        from_hear(types.SimpleNamespace(load_model=Frames))
    with pytest.raises(AttributeError, match="sampling_rate"):
        from_xares(nn.Linear(2, 2))
    model = Frames()
    for _ in range(2):
        model.blocks.append(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()))
    with pytest.raises(ValueError, match=r"pass activations=.*'blocks\.\*\.1' \(4\), 'blocks\.\*\.3' \(2\)"):
        from_xares(model)
