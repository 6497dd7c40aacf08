"""The contract of from_hub, over every family: a tiny random model of each in a folder of this machine."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_models import TINY, Tiny, write_model
from torch import Tensor

from aape.causal.silencing import embed_with_sets, neuron_set
from aape.collecting.counting import BatchCounts, count_batch
from aape.encoders.dry_run import widths
from aape.encoders.encoder import Encoder, hooked
from aape.encoders.hub import FAMILIES, from_hub

pytestmark = pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")
PATCHES = [kind for kind, tiny in TINY.items() if tiny.patches]
IN_TIME = [kind for kind in TINY if kind not in PATCHES]
CLEAN = [kind for kind, tiny in TINY.items() if tiny.clean]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models-of-this-machine")
    return {kind: write_model(root / kind.replace(" ", "-"), kind) for kind in TINY}


@pytest.fixture(scope="module")
def encoders(folders: dict[str, Path]) -> dict[str, Encoder]:
    return {kind: from_hub(folder) for kind, folder in folders.items()}


@pytest.fixture(params=TINY)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tiny(kind: str) -> Tiny:
    return TINY[kind]


@pytest.fixture
def encoder(encoders: dict[str, Encoder], kind: str) -> Encoder:
    return encoders[kind]


@pytest.fixture
def pieces(encoder: Encoder) -> Encoder:
    """The encoder with pieces of 0.64 s."""
    front_end = copy.copy(encoder.embed)
    front_end.window = 10240
    return dataclasses.replace(
        encoder,
        embed=front_end,
        clip_seconds=0.64,
        padding_masks=front_end.padding_masks,
        token_grid=front_end.token_grid,
    )


def noise(batch: int = 2, samples: int = 9600, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


def count(encoder: Encoder, wave: Tensor, *valid: int, neurons: int = 48) -> BatchCounts:
    return count_batch(encoder, wave, torch.tensor(valid), encoder.layers, neurons)


def test_every_family_is_tested():
    assert {kind.split(" ")[0] for kind in TINY} == set(FAMILIES)


def run_transformers(kind: str, folder: Path, wave: Tensor) -> Tensor:
    """A model's tokens [batch, tokens, width] as transformers' own documentation has it, without aape."""
    options = {"sampling_rate": 16000, "return_tensors": "pt"}
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    clips = list(wave.numpy())
    if kind == "whisper":
        encoder = model.encoder
        features = extractor(clips, padding="max_length", max_length=wave.shape[1], **options)
        positions = wave.shape[1] // 320
        encoder.embed_positions = torch.nn.Embedding.from_pretrained(
            encoder.embed_positions.weight[:positions]
        )
        encoder.config.max_source_positions = positions
        return encoder(features["input_features"]).last_hidden_state
    if hasattr(model, "adapter"):
        model.adapter = None
    return model(**extractor(clips, **options)).last_hidden_state


@torch.no_grad()
@pytest.mark.parametrize("kind", IN_TIME)
def test_counts_and_embedding_equal_hooks_on_transformers_own_model(folders, kind, tiny, encoder):
    wave = noise(samples=9600)
    counted = count(encoder, wave, 9600, 9600)
    hidden: list[
        Tensor
    ] = []  # whatever any activation function of transformers gives, 48 channels wide

    def see(module, args, output):
        of_transformers = "activation" in type(module).__module__
        if of_transformers and not list(module.children()) and output.shape[-1] == 48:
            hidden.append(output)

    with torch.nn.modules.module.register_module_forward_hook(see):
        tokens = run_transformers(kind, folders[kind], wave)
    assert len(hidden) == len(encoder.layers) == tiny.layers
    for layer, activations in enumerate(hidden):
        expected = (activations > 0).sum(dim=1).int()
        assert torch.equal(counted.counts[:, layer], expected)
    torch.testing.assert_close(counted.embeddings, tokens.mean(dim=1), rtol=0, atol=1e-6)
    assert counted.padding is None and counted.tokens.tolist() == [hidden[0].shape[1]] * 2


@torch.no_grad()
@pytest.mark.parametrize("kind", CLEAN)
def test_padding_changes_neither_the_embedding_nor_a_count_where_the_mask_leaves_it_out(
    kind, encoder
):
    alone, padded = noise(1, 6400, seed=1), torch.zeros(2, 9600)
    padded[0, :6400] = alone
    padded[1] = noise(1, 9600)
    one = count(encoder, alone, 6400)
    both = count(encoder, padded, 6400, 9600)
    torch.testing.assert_close(both.embeddings[0], one.embeddings[0], rtol=0, atol=1e-5)
    assert both.padding is not None and both.padding_tokens[0] > 0 and both.padding_tokens[1] == 0
    assert both.tokens[0] - both.padding_tokens[0] == one.tokens[0]
    sounding = both.counts - both.padding
    assert (sounding[0] - one.counts[0]).abs().sum() <= 2  # rounding near zero


def before_the_blocks(kind: str, encoder: Encoder, wave: Tensor) -> Tensor:
    """What the front end makes of a whole wave [samples] before anything looks across time: [tokens, width]."""
    model = encoder.module
    extractor = transformers.AutoFeatureExtractor.from_pretrained(encoder.weights["source"])
    options = {"sampling_rate": 16000, "return_tensors": "pt"}
    if kind == "whisper":
        features = extractor(wave.numpy(), max_length=len(wave), **options)
        first = torch.nn.functional.gelu(model.conv1(features["input_features"]))
        return model.conv2(first)[0].T
    if kind == "wav2vec2-bert":
        features = extractor([wave.numpy()], do_normalize_per_mel_bins=False, **options)
        return features["input_features"][0]
    if kind == "wav2vec2":
        model = copy.deepcopy(model)
        model.feature_extractor.conv_layers[0].layer_norm = torch.nn.Identity()  # looks across time
    tokens = model.feature_extractor(wave[None])[0].T
    if kind.startswith("sew"):  # a token of the blocks is two of the front end
        return tokens[: len(tokens) // 2 * 2].reshape(len(tokens) // 2, -1)
    return tokens


@torch.no_grad()
@pytest.mark.parametrize("valid", [4800, 6421])
@pytest.mark.parametrize("kind", IN_TIME)
def test_masks_by_changing_what_lies_in_the_padding_and_in_the_sound(kind, tiny, encoder, valid):
    samples = 9600
    sound, other_sound = noise(1, samples)[0], noise(1, samples, seed=1)[0]
    silence, other_padding = torch.zeros(samples), noise(1, samples, seed=2)[0] / 10
    place = torch.arange(samples)

    def tokens(inside: Tensor, behind: Tensor) -> Tensor:
        wave = torch.where(place < valid, inside, behind)
        loud = torch.where(
            place < 1000, 10 * sound, wave
        )  # all begin alike: Whisper normalises by the loudest
        return before_the_blocks(kind, encoder, loud)

    plain = tokens(sound, silence)
    sees_padding = (plain != tokens(sound, other_padding)).any(dim=1)
    sees_sound = (plain != tokens(other_sound, silence)).any(dim=1)
    sees_sound[: 1000 // 320] = True
    ((mask,),) = encoder.padding_masks(torch.tensor([valid]), samples)
    assert mask.any() and not mask.all()
    assert mask[~sees_sound].all() and not mask[~sees_padding].any()
    edge = sees_sound & sees_padding  # here the model's own arithmetic decides
    assert edge.sum() <= tiny.edge
    if kind.startswith("sew"):  # of the two tokens of the front end, one saw only sound
        assert mask.tolist().index(True) == -(-((valid - 400) // 320 + 1) // 2)
    elif kind != "whisper":
        assert mask[
            edge
        ].all()  # a convolution that reaches into the padding gives no token of the sound


@torch.no_grad()
def test_the_grid_has_a_cell_for_every_token_and_time_runs_on_across_pieces(tiny, pieces):
    samples = 10240 + 4000
    counted = count(pieces, noise(1, samples), samples, neurons=tiny.neurons)
    grid = pieces.token_grid(samples)
    assert len(grid) == 2 and sum(map(len, grid)) == counted.tokens[0]
    first, second = (cells[cells[:, 0] >= 0, 1].unique() for cells in grid)
    for times, start in ((first, 0.0), (second, 0.64 / pieces.cell_seconds)):
        assert torch.equal(times, times[0] + torch.arange(len(times)))
        assert abs(times[0] - start) <= 0.5
    assert second[0] > first[-1]


@torch.no_grad()
@pytest.mark.parametrize("kind", IN_TIME)
def test_cells_are_as_far_apart_as_is_said(encoder):
    (grid,) = encoder.token_grid(9600)
    columns = int(grid[:, 1].max()) + 1
    assert encoder.cell_seconds * columns == pytest.approx(0.6, abs=encoder.cell_seconds + 0.03)


@torch.no_grad()
def test_pictures_show_what_the_model_gets(encoder):
    if encoder.log_mel is None:
        pytest.skip("this family works on the wave")
    quiet = noise(1, 9600)
    loud = quiet.clone()
    loud[:, 4000:4800] += 0.5 * torch.sin(torch.arange(800) * 2 * torch.pi * 3000 / 16000)
    before, after = (encoder.log_mel(wave)[0] for wave in (quiet, loud))
    bands, frames = before.shape
    assert frames == pytest.approx(60, abs=1)
    band, frame = np.unravel_index(int((after - before).argmax()), before.shape)
    assert (
        24 <= frame <= 31 and bands / 2 < band < bands
    )  # 0.25 to 0.3 s, 3 kHz of 8, the lowest band first


@torch.no_grad()
def test_longer_waves_are_cut_and_pieces_count_by_their_tokens(tiny, pieces):
    wave = noise(samples=10240 + 3200)
    parts = wave.split(10240, dim=1)
    lengths = torch.tensor([part.shape[1] for part in parts])
    # tokens after the last block, twice those in the blocks of SEW; patches by length
    weights = lengths if tiny.patches else pieces.embed.sounding_tokens(lengths)
    embeddings = torch.stack([pieces.embed(part) for part in parts])
    expected = (embeddings * weights[:, None, None]).sum(dim=0) / weights.sum()
    torch.testing.assert_close(pieces.embed(wave), expected, rtol=0, atol=1e-5)
    for short in (noise(samples=10), noise(samples=10240 + 3), torch.zeros(1, 800)):
        assert torch.isfinite(pieces.embed(short)).all()


def test_gradients_start_behind_the_front_end(encoder):
    leaves: list[Tensor] = []

    def see(place: int, activations: Tensor) -> Tensor:
        leaf = activations if leaves else activations.detach().requires_grad_()
        leaves.append(leaf)
        return leaf

    with hooked(encoder, encoder.layers, see):
        embedding = encoder.embed(noise(samples=9600))
    for gradient in torch.autograd.grad(embedding[:, 0].sum(), leaves):
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


def test_names_widths_layers_and_weights(folders, kind, tiny, encoder):
    assert set(widths(encoder).values()) == {tiny.neurons} and len(encoder.layers) == tiny.layers
    assert encoder.sample_rate == 16000 and encoder.chunks and encoder.dtype == "float32"
    assert encoder.weights["source"] == str(folders[kind])
    first, last = encoder.layers[0], encoder.layers[-1]
    again = from_hub(folders[kind], layers=[tiny.layers - 1, first])
    assert again.layers == (first, last) and again.identity == encoder.identity
    one, twin, two = (from_hub(folders[kind], seed=seed) for seed in (1, 1, 2))
    assert one.name.endswith("(untrained)") and one.weights["seed"] == 1
    assert one.identity == twin.identity != two.identity != encoder.identity


def test_whisper_with_silenced_neurons_is_the_same_in_stages(encoders):
    """Pieces of 2 s, the second clip half silent: both engines, sets from the first and from the last layer."""
    encoder, wave = encoders["whisper"], noise(samples=40000)
    wave[1, 20000:] = 0
    sets = [None, neuron_set(encoder, [[0, 3], [1, 5]]), neuron_set(encoder, [[1, 7], [1, 40]])]
    staged = embed_with_sets(encoder, wave, sets)
    full = embed_with_sets(dataclasses.replace(encoder, stages=None), wave, sets)
    assert encoder.stages is not None and (staged - full).abs().max() <= 1e-6 * full.abs().max()
    assert not torch.equal(staged[0], staged[1]) and not torch.equal(staged[0], staged[2])
