"""M2D's own loader: checkpoints, padding masks and token grid."""

import argparse
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aape.encoders import m2d
from aape.encoders.encoder import Encoder

WAVE = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
FOLDER = "small-80x64p16x16-0"


def small(seed: int = 0) -> Encoder:
    return m2d.load("random", seed=seed, input_size=(80, 64), width=64, depth=2)


def save(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return dict(small(seed=3).module.vit.state_dict())


def test_checkpoints_load_in_every_layout(tmp_path: Path, tensors: dict[str, torch.Tensor]):
    extra = {"decoder_embed.weight": torch.zeros(3, 3), "mask_token": torch.zeros(1)}
    args = argparse.Namespace(lr=0.1, output_dir=Path("x"))
    contents = (
        {"model": tensors},
        {k: v for k, v in tensors.items() if k != "norm_stats"},
        {"model": tensors | extra, "args": args, "epoch": 300, "optimizer": {"state": {}}},
        {"module.ar.runtime.backbone." + k: v for k, v in tensors.items()},  # EVAR's
    )
    paths = [
        save(tmp_path / FOLDER / f"{number}.pth", content)
        for number, content in enumerate(contents)
    ]
    paths += [
        tmp_path / FOLDER / "a.safetensors",
        save(tmp_path / "a name that says nothing" / "w.pth", tensors),
    ]
    save_file(tensors, paths[-2])
    expected = small(seed=3)
    with torch.no_grad():
        for path in paths:
            encoder = m2d.load(path)
            assert torch.equal(
                encoder.embed(WAVE.repeat(1, 16)), expected.embed(WAVE.repeat(1, 16))
            )
            assert (
                encoder.clip_seconds == pytest.approx(0.64) and len(encoder.weights["sha256"]) == 64
            )
    assert expected.weights["sha256"] != small(seed=4).weights["sha256"]
    assert encoder.name == "M2D" and expected.name == "M2D (untrained)"
    with_rest = dict(
        m2d.load("random", input_size=(80, 1001), width=64, depth=1).module.vit.state_dict()
    )
    rest = m2d.load(save(tmp_path / "m2d-80x1001p16x16p16k-0" / "w.pth", with_rest))
    assert rest.module.vit.input_size == (80, 1001) and rest.module.vit.grid == (5, 62)


class Payload:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("code ran",))


def test_bad_checkpoints_are_named_and_never_run(tmp_path: Path, tensors, capsys):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*Install.md"):
        m2d.load(tmp_path / "nothing.pth")
    path = save(tmp_path / FOLDER / "a.pth", {"model": tensors, "args": Payload()})
    for content in (path.read_bytes(), path.read_bytes()[:5000], b"<html>not found</html>"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="a.pth.* is not a checkpoint that can be read safely"):
            m2d.load(path)
    assert "code ran" not in capsys.readouterr().out
    less = {k: v for k, v in tensors.items() if k != "blocks.1.attn.qkv.bias"}
    for content, words in (
        ({"conv1.weight": torch.zeros(2)}, "is not an M2D encoder.*patch_embed"),
        (less, r"Missing key.*blocks.1.attn.qkv.bias"),
        (
            tensors | {"blocks.999999999.norm1.weight": torch.zeros(64)},
            "Missing key.*blocks.2.norm1.weight",
        ),
        (tensors | {"patch_embed.proj.weight": torch.zeros(64, 1, 96, 16)}, "patches of 96 x 16"),
        (
            tensors | {"patch_embed.proj.weight": torch.zeros(64, 3, 16, 16)},
            r"size mismatch for patch_embed.proj.weight",
        ),
        (tensors | {"norm.bias": torch.full((64,), torch.nan)}, "norm.bias holds .*not finite"),
        (tensors | {"norm.bias": torch.zeros(64, dtype=torch.int64)}, "norm.bias holds integers"),
    ):
        with pytest.raises(ValueError, match=words):
            m2d.load(save(tmp_path / FOLDER / "bad.pth", content))
    for folder in (
        "m2d_vit_base-80x608p16x16-221006-mr7",
        "m2d-80x64p16x16p32k",
    ):  # another size; another rate
        with pytest.raises(
            ValueError, match="name says -80x.* tensors hold 20 positions .* at 16 kHz"
        ):
            m2d.load(save(tmp_path / folder / "c.pth", tensors))


def test_padding_masks_agree_with_what_the_tokens_see():
    """Changing only what lies behind the valid samples moves no token that is said to be sound, and only those."""
    encoder, samples = small(), 16000  # 101 frames: chunks of 64 and 37
    silence = encoder.module.begin(torch.zeros(1, samples))
    for valid in (3000, 9000, 10240, 15990):
        wave = torch.zeros(1, samples)
        wave[0, :valid] = 0.1 * torch.randn(valid, generator=torch.Generator().manual_seed(0))
        masks = encoder.padding_masks(torch.tensor([valid]), samples)
        for mask, tokens, silent in zip(masks, encoder.module.begin(wave), silence, strict=True):
            same = (tokens == silent).all(dim=-1)[0]
            same[0] = False  # the class token is no padding
            assert torch.equal(mask[0], same)
    assert not any(m.any() for m in encoder.padding_masks(torch.tensor([samples]), samples))


def test_the_token_grid_says_which_patch_a_token_is_of():
    encoder = small()
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


def test_what_trainers_save_next_to_the_weights_is_read_and_the_rest_is_named(
    tmp_path: Path, tensors
):
    rest = {
        "best": np.float64(0.3),
        "epoch": np.int64(3),
        "random": np.random.RandomState(0).get_state(),
    }
    path = save(tmp_path / FOLDER / "scalars.pth", {"model": tensors} | rest)
    assert m2d.load(path).identity == small(seed=3).identity
    with pytest.raises(ValueError, match="(?s)save its tensors only.*The cause: .*print"):
        m2d.load(save(tmp_path / FOLDER / "code.pth", {"model": tensors, "args": Payload()}))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="download it again"):
        m2d.load(path)


@pytest.mark.parametrize(
    ("module", "name"), [("pathlib._local", "PosixPath"), ("pathlib", "WindowsPath")]
)
def test_paths_of_another_python_or_system_are_read(
    tmp_path: Path, tensors, monkeypatch, module: str, name: str
):
    foreign = type(
        name, (), {"__module__": module, "__reduce__": lambda self: (foreign, ("weights", "last"))}
    )
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, module, types.SimpleNamespace(**{name: foreign}))
        path = save(tmp_path / FOLDER / "a.pth", {"model": tensors, "folder": foreign()})
    assert m2d.load(path).identity == small(seed=3).identity
