"""from_hub's models on patches of a spectrogram of fixed length: AST and timm's ViTs."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_models import TINY, write_model
from torch import Tensor

from aape.encoders.encoder import Encoder
from aape.encoders.hub import from_hub

pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")


@pytest.fixture(scope="module", params=[kind for kind, tiny in TINY.items() if tiny.patches])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def encoder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder: Path = write_model(tmp_path_factory.mktemp("patches-of-this-machine") / kind, kind)
    return from_hub(folder)


def noise(batch: int, samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


def test_a_patch_is_padding_exactly_when_changing_the_valid_samples_cannot_change_it(encoder):
    valid, samples = 3000, 10240
    waves = torch.zeros(2, samples)
    waves[0, :valid], waves[1, :valid] = noise(1, valid), noise(1, valid, seed=1)
    front_end = encoder.embed
    first, second = front_end.spectrogram(waves)
    same_frame = (first == second).all(dim=-1)
    starts = front_end.cells[:, 1] * front_end.stride
    expected = torch.tensor([bool(same_frame[s : s + 16].all()) for s in starts.tolist()])
    ((mask,),) = encoder.padding_masks(torch.tensor([valid]), samples)
    assert 0 < expected.sum() < len(expected)
    assert not mask[: front_end.extra].any() and torch.equal(mask[front_end.extra :], expected)


def test_patches_lie_where_the_grid_says(kind, encoder):
    model, front_end = encoder.module, encoder.embed
    plain = torch.zeros(1, 64, 128)
    # the last corner of an AST patch that overlaps with its neighbours is in fewer patches than the first
    step = 16 if kind == "timm" else 10

    def tokens(spectrogram: Tensor) -> Tensor:
        if kind == "timm":
            return model.patch_embed(spectrogram[:, None])[0]
        return model.embeddings(spectrogram)[0, 2:]

    for place, (row, column) in enumerate(front_end.cells.tolist()):
        changed = plain.clone()
        frame, mel = column * front_end.stride, row * step
        changed[0, frame : frame + 16, mel : mel + 16] = 1
        differ = (tokens(changed) - tokens(plain)).abs().sum(dim=1)
        assert differ.argmax() == place or differ[place] > 0.9 * differ.max()


def test_pooled_outputs_are_the_models_own(kind, encoder):
    wave = noise(2, 10240)
    extractor = transformers.ASTFeatureExtractor(max_length=64)
    features = extractor(list(wave.numpy()), sampling_rate=16000, return_tensors="pt")[
        "input_values"
    ]
    expected = (
        encoder.module(features[:, None])
        if kind == "timm"
        else encoder.module(features).pooler_output
    )
    embedding = encoder.embed(wave)
    torch.testing.assert_close(embedding, expected)
    assert embedding.shape == (2, 32) and "ASTFeatureExtractor with" in encoder.weights["front_end"]
    assert encoder.clip_seconds == 0.64
    # behind the wave: log energy 0, normalised with AudioSet's statistics
    silence = encoder.embed.spectrogram(wave[:, :4000])[0, -1]
    np.testing.assert_allclose(silence.numpy(), 4.2677393 / (2 * 4.5689974), rtol=1e-6)
