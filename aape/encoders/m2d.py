"""M2D (Masked Modeling Duo) and any ViT of the same shape, on today's timm.

Reads the official checkpoints of https://github.com/nttcslab/m2d as they are distributed and computes what that
code and EVAR's AR_M2D compute: log-mel, patches, class token, chunks of `input_size[1]` frames, and the clip
embedding made of concatenated frequency bins averaged over time (Niizumi et al. 2023, arXiv 2210.14648).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from aape.encoders.checkpoint import fill, read_checkpoint
from aape.encoders.encoder import Encoder, Finish, Stages, sha256_of_state
from aape.files import sha256_of

NORM_STATS = (
    -7.1,
    4.2,
)  # of the log-mel of AudioSet, for checkpoints of 2022 that do not bring their own (M2D)
RATE, WINDOW, HOP = 16000, 400, 160  # Hz; samples (M2D)
HEAD_WIDTH = 64  # channels of each attention head (ViT)
# -80x608p16x16p16k: bands x frames, patches, kHz (M2D)
_NAMED = re.compile(r"-(?P<mels>\d+)x(?P<frames>\d+)p\d+x\d+(?:p(?P<kilohertz>\d+)k)?")
_PREFIXES = ("module.ar.runtime.backbone.", "backbone.")  # EVAR's fine-tuning, M2D's runtime


class LogMel(nn.Module):
    """Wave [batch, samples] of 16 kHz -> normalised natural-log mel spectrogram [batch, 1, mels, samples // HOP + 1]."""

    norm_stats: Tensor

    def __init__(self, n_mels: int = 80) -> None:
        super().__init__()
        import nnAudio.features  # here, because it takes a second and analyses never need it

        self.mel = nnAudio.features.MelSpectrogram(
            RATE,
            n_fft=WINDOW,
            win_length=WINDOW,
            n_mels=n_mels,
            hop_length=HOP,
            fmin=50,
            fmax=8000,
            center=True,
            power=2,
            verbose=False,
        )
        self.register_buffer("norm_stats", torch.tensor(NORM_STATS), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        epsilon = torch.finfo(torch.float32).eps
        log_mel = (self.mel(wave) + epsilon).log().unsqueeze(1)
        mean, deviation = self.norm_stats
        return (log_mel - mean) / deviation


class M2DViT(VisionTransformer):
    """The encoder half of M2D: class token and patches of a log-mel through pre-norm Transformer blocks.

    The state dict has the keys of M2D's encoder-only checkpoints. Tokens: the class token, then patches with
    frequency outermost, [batch, 1 + (mels / patch) * (frames / patch), width].
    """

    pos_embed: nn.Parameter
    cls_token: nn.Parameter

    def __init__(
        self,
        input_size: tuple[int, int] = (80, 608),
        patch_size: tuple[int, int] = (16, 16),
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__(
            img_size=input_size,
            patch_size=patch_size,
            in_chans=1,
            num_classes=0,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )
        self.input_size = tuple(input_size)  # mels and frames of a chunk
        self.patch = tuple(patch_size)  # mels and frames of a patch
        self.grid = (input_size[0] // patch_size[0], input_size[1] // patch_size[1])
        self.norm_stats = nn.Parameter(torch.tensor(NORM_STATS), requires_grad=False)

    def tokens(self, spectrogram: Tensor) -> Tensor:
        """Log-mel [batch, 1, mels, frames <= input_size[1], a multiple of the patch] -> [batch, 1 + patches, width].

        A short input uses the positions of the first time steps of every frequency row (M2D).
        """
        patches = self.patch_embed.proj(spectrogram)  # [batch, width, f, t]
        batch, width, _, columns = patches.shape
        positions = self.pos_embed[:, 1:].unflatten(1, self.grid)  # [1, f, t, width]
        positions = positions[:, :, :columns].reshape(1, -1, width)
        sequence = patches.flatten(2).transpose(1, 2) + positions
        class_token = self.cls_token + self.pos_embed[:, :1]
        return torch.cat((class_token.expand(batch, -1, -1), sequence), dim=1)


class M2DAudio(nn.Module):
    """LogMel and M2DViT: wave [batch, samples] -> clip embedding [batch, mel patches * width]."""

    def __init__(self, vit: M2DViT) -> None:
        super().__init__()
        self.front_end = LogMel(vit.input_size[0])
        self.vit = vit
        self.front_end.norm_stats.copy_(vit.norm_stats)

    def chunks(self, wave: Tensor) -> list[Tensor]:
        """Cut the log-mel into pieces [batch, 1, mels, frames], zero-padded to whole patches at the end (M2D)."""
        log_mel = self.front_end(wave)
        unit, step = self.vit.input_size[1], self.vit.patch[1]
        rest = log_mel.shape[-1] % unit
        padded = nn.functional.pad(log_mel, (0, -rest % step))
        return list(padded.split(unit, dim=-1))

    def begin(self, wave: Tensor) -> list[Tensor]:
        """Wave -> tokens before block 0, one [batch, tokens, width] per chunk."""
        return [self.vit.tokens(chunk) for chunk in self.chunks(wave)]

    def finish(self, sequences: list[Tensor]) -> Tensor:
        """Tokens after the last block, one tensor per chunk -> clip embedding."""
        frames = []
        for sequence in sequences:
            patches = self.vit.norm(sequence)[:, 1:]  # without the class token
            patches = patches.unflatten(1, (self.vit.grid[0], -1))  # [batch, f, t, width]
            frames.append(patches.transpose(1, 2).flatten(2))
        return torch.cat(frames, dim=1).mean(dim=1)

    def forward(self, wave: Tensor) -> Tensor:
        return self.finish([self.vit.blocks(tokens) for tokens in self.begin(wave)])

    def padding_masks(self, valid_samples: Tensor, samples: int) -> list[Tensor]:
        """Which tokens saw only zero padding, one mask [batch, 1 + patches] per chunk.

        Frame f sees samples from f * hop - window / 2 on, and a patch starts with its first frame: it is padding when
        even that frame begins at or after the last valid sample. The class token is never padding.
        """
        valid = valid_samples[:, None]
        masks = []
        for first_frames in self._columns(samples):
            first = first_frames.to(valid.device) * HOP - WINDOW // 2  # [columns], samples
            silent = (first >= valid) & (valid < samples)  # [batch, columns]
            patches = silent.repeat(1, self.vit.grid[0])
            masks.append(nn.functional.pad(patches, (1, 0)))
        return masks

    def token_grid(self, samples: int) -> list[Tensor]:
        """(Frequency, time) patch of each token [1 + patches, 2], one tensor per chunk; -1 for the class token.

        Behind a chunk that is not a whole number of patches a cell may stay empty, so that time does not drift.
        """
        rows = torch.arange(self.vit.grid[0])
        grid = []
        for first_frames in self._columns(samples):
            times = (first_frames / self.vit.patch[1] - 0.5).ceil().long()
            cells = torch.cartesian_prod(rows, times)
            grid.append(nn.functional.pad(cells, (0, 0, 1, 0), value=-1))
        return grid

    def _columns(self, samples: int) -> list[Tensor]:
        """First frame of each column of patches, one tensor [columns] per chunk.

        Frames behind the last whole patch of a chunk are not seen.
        """
        frames = samples // HOP + 1
        unit, step = self.vit.input_size[1], self.vit.patch[1]
        columns = []
        for start in range(0, frames, unit):
            end = min(start + unit, frames)
            columns.append(torch.arange(start, end, step)[: self.vit.grid[1]])
        return columns


def _shape_of(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Sizes of the ViT that these tensors belong to. The number of mel bands and the sample rate stand only in the name."""
    try:
        width, _, *patch = tensors["patch_embed.proj.weight"].shape
        patches = tensors["pos_embed"].shape[1] - 1
        hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
        patch_mels, patch_frames = patch
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"{path} is not an M2D encoder: expected patch_embed.proj.weight with 4 axes, pos_embed and "
            f"blocks.0.mlp.fc1.weight, found {', '.join(list(tensors)[:5])} ..."
        ) from error
    named = _NAMED.search(path.parent.name) or _NAMED.search(path.stem)
    mels = int(named["mels"]) if named else 80
    columns = patches // max(1, mels // patch_mels)
    frames = (
        int(named["frames"]) if named else columns * patch_frames
    )  # of 80x1001, patches cover 992 frames (M2D)
    expected = mels // patch_mels * (frames // patch_frames)
    kilohertz = named["kilohertz"] if named else None
    if patches != expected or kilohertz not in (None, "16"):
        raise ValueError(
            f"{path}: its name says {named and named[0]}, its tensors hold {patches} positions for patches of "
            f"{patch_mels} x {patch_frames}; expected {mels} x {frames} at 16 kHz to give as many. Rename the folder, or "
            "find the checkpoint that belongs to it."
        )
    blocks = {key.split(".")[1] for key in tensors if key.startswith("blocks.")}
    return {
        "input_size": (mels, frames),
        "patch_size": (patch_mels, patch_frames),
        "width": width,
        "depth": len(blocks),
        "heads": max(1, width // HEAD_WIDTH),
        "mlp_ratio": hidden / width,
    }


def load(
    weights_path: str | Path,
    *,
    seed: int = 0,
    input_size: tuple[int, int] = (80, 608),
    patch_size: tuple[int, int] = (16, 16),
    width: int = 768,
    depth: int = 12,
    name: str | None = None,
) -> Encoder:
    """An M2D encoder, or a ViT of its shape, from a checkpoint or with random weights.

    Args:
        weights_path: a checkpoint (`.pth` official, full or encoder-only; `.safetensors` with the same keys), or
            "random". The shape comes from the tensors, and the number of mel bands from the folder's or the file's name
            (M2D: `<model>-80x608p16x16...`; without such a name: 80).
        seed, input_size, patch_size, width, depth: for random weights only; heads have 64 channels each.
        name: what tables call the model; default: "M2D", or "M2D (untrained)" for random weights.

    Raises:
        FileNotFoundError, ValueError: no such file; damaged; another architecture; name and tensors disagree.
    """
    if str(weights_path) == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vit = M2DViT(input_size, patch_size, width, depth, max(1, width // HEAD_WIDTH))
        default_name = "M2D (untrained)"
        provenance = {"source": "random", "seed": seed, "sha256": sha256_of_state(vit)}
    else:
        path = Path(weights_path).expanduser()
        tensors = {"norm_stats": torch.tensor(NORM_STATS)} | read_checkpoint(path, _PREFIXES)
        vit = M2DViT(**_shape_of(tensors, path))
        fill(vit, tensors, path)
        default_name = "M2D"
        provenance = {"source": str(weights_path), "sha256": sha256_of(path)}
    return _as_encoder(vit, name or default_name, provenance)


def _as_encoder(vit: M2DViT, name: str, provenance: dict[str, Any]) -> Encoder:
    model = M2DAudio(vit).eval()
    model.requires_grad_(False)
    blocks: list[Any] = list(vit.blocks)

    def begin(wave: Tensor) -> tuple[list[Tensor], Finish]:
        return model.begin(wave), model.finish

    return Encoder(
        name=name,
        sample_rate=RATE,
        clip_seconds=vit.input_size[1] * HOP / RATE,
        module=model,
        activations={f"blocks.{i}.mlp.act": block.mlp.act for i, block in enumerate(blocks)},
        embed=model,
        weights=provenance,
        chunks=True,
        padding_masks=model.padding_masks,
        token_grid=model.token_grid,
        stages=Stages(begin, blocks, [block.mlp.fc2 for block in blocks]),
        cell_seconds=vit.patch[1] * HOP / RATE,
        log_mel=model.front_end,
    )
