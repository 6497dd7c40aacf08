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
from aape.encoders.encoder import Encoder, Stages, sha256_of_state
from aape.files import sha256_of

NORM_STATS = (-7.1, 4.2)  # of the log-mel of AudioSet, for checkpoints of 2022 that do not bring their own (M2D)
RATE, WINDOW, HOP = 16000, 400, 160  # Hz; samples (M2D)
_NAMED = re.compile(r"-(\d+)x(\d+)p(\d+)x(\d+)(?:p(\d+)k)?")  # -80x608p16x16p16k: bands x frames, patches, kHz (M2D)
_PREFIXES = ("module.ar.runtime.backbone.", "backbone.")  # EVAR's fine-tuning, M2D's runtime


class LogMel(nn.Module):
    """Wave [batch, samples] of 16 kHz -> normalised natural-log mel spectrogram [batch, 1, mels, samples // HOP + 1]."""

    norm_stats: Tensor

    def __init__(self, n_mels: int = 80) -> None:
        super().__init__()
        import nnAudio.features  # here: it takes a second, and analyses never need it

        self.mel = nnAudio.features.MelSpectrogram(
            RATE, n_fft=WINDOW, win_length=WINDOW, n_mels=n_mels, hop_length=HOP, fmin=50, fmax=8000, center=True,
            power=2, verbose=False,
        )  # fmt: skip
        self.register_buffer("norm_stats", torch.tensor(NORM_STATS), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        log_mel = (self.mel(wave) + torch.finfo(torch.float32).eps).log().unsqueeze(1)
        return (log_mel - self.norm_stats[0]) / self.norm_stats[1]


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
            img_size=input_size, patch_size=patch_size, in_chans=1, num_classes=0, embed_dim=width, depth=depth,
            num_heads=heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )  # fmt: skip
        self.input_size, self.patch = tuple(input_size), tuple(patch_size)  # mels and frames, of a chunk and of a patch
        self.grid = (input_size[0] // patch_size[0], input_size[1] // patch_size[1])
        self.norm_stats = nn.Parameter(torch.tensor(NORM_STATS), requires_grad=False)

    def tokens(self, spectrogram: Tensor) -> Tensor:
        """Log-mel [batch, 1, mels, frames <= input_size[1], a multiple of the patch] -> [batch, 1 + patches, width].

        A short input uses the positions of the first time steps of every frequency row (M2D).
        """
        patches = self.patch_embed.proj(spectrogram)  # [batch, width, f, t]
        _, width, f, t = patches.shape
        positions = self.pos_embed[:, 1:].reshape(1, *self.grid, width)[:, :, :t].reshape(1, f * t, width)
        sequence = patches.flatten(2).transpose(1, 2) + positions
        class_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(sequence), -1, -1)
        return torch.cat((class_token, sequence), dim=1)


class M2DAudio(nn.Module):
    """LogMel and M2DViT: wave [batch, samples] -> clip embedding [batch, mel patches * width]."""

    def __init__(self, vit: M2DViT) -> None:
        super().__init__()
        self.front_end = LogMel(vit.input_size[0])
        self.vit = vit
        self.front_end.norm_stats.copy_(vit.norm_stats)

    def chunks(self, wave: Tensor) -> list[Tensor]:
        """Cut the log-mel into pieces [batch, 1, mels, frames], zero-padded to whole patches at the end (M2D)."""
        x = self.front_end(wave)
        unit, step = self.vit.input_size[1], self.vit.patch[1]
        pad = -(x.shape[-1] % unit) % step
        return list(nn.functional.pad(x, (0, pad)).split(unit, dim=-1))

    def begin(self, wave: Tensor) -> list[Tensor]:
        return [self.vit.tokens(chunk) for chunk in self.chunks(wave)]

    def finish(self, sequences: list[Tensor]) -> Tensor:
        frames = []
        for x in sequences:
            x = self.vit.norm(x)[:, 1:].unflatten(1, (self.vit.grid[0], -1))  # without class token [batch, f, t, width]
            frames.append(x.transpose(1, 2).flatten(2))
        return torch.cat(frames, dim=1).mean(dim=1)

    def forward(self, wave: Tensor) -> Tensor:
        return self.finish([self.vit.blocks(x) for x in self.begin(wave)])

    def _columns(self, samples: int) -> list[Tensor]:
        """First frame of each column of patches, one tensor [columns] a chunk.

        Frames behind the last whole patch of a chunk are not seen.
        """
        frames = samples // HOP + 1
        unit, step = self.vit.input_size[1], self.vit.patch[1]
        starts = range(0, frames, unit)
        return [torch.arange(start, min(start + unit, frames), step)[: self.vit.grid[1]] for start in starts]

    def padding_masks(self, valid_samples: Tensor, samples: int) -> list[Tensor]:
        """Which tokens saw only zero padding, one mask [batch, 1 + patches] a chunk.

        Frame f sees samples from f * hop - window / 2 on, and a patch starts with its first frame: it is padding when
        even that one begins at or after the last valid sample. The class token never is.
        """
        masks = []
        for first in self._columns(samples):
            begin = first.to(valid_samples.device) * HOP - WINDOW // 2  # [columns]
            silent = (begin[None, :] >= valid_samples[:, None]) & (valid_samples < samples)[:, None]
            masks.append(nn.functional.pad(silent.repeat(1, self.vit.grid[0]), (1, 0)))
        return masks

    def token_grid(self, samples: int) -> list[Tensor]:
        """(Frequency, time) patch of each token [1 + patches, 2], one tensor a chunk; -1 for the class token.

        A chunk of no whole number of patches leaves a cell empty behind it here and there, so that time does not drift.
        """
        rows = torch.arange(self.vit.grid[0])
        times = [(first / self.vit.patch[1] - 0.5).ceil().long() for first in self._columns(samples)]
        return [nn.functional.pad(torch.cartesian_prod(rows, t), (0, 0, 1, 0), value=-1) for t in times]


def _shape_of(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Sizes of the ViT that these tensors are of, checked against the folder's (or else the file's) name."""
    keys = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    shapes = {key: tuple(tensors[key].shape) if key in tensors else () for key in keys}
    kernel, positions, mlp = shapes.values()
    if [len(kernel), len(positions), len(mlp)] != [4, 3, 2]:
        raise ValueError(f"{path} is no M2D encoder: expected tensors of 4, 3 and 2 axes, found {shapes}")
    width, patch, patches = kernel[0], kernel[2:], positions[1] - 1
    named = _NAMED.search(path.parent.name) or _NAMED.search(path.stem)
    mels, frames, *named_patch = map(int, named.groups()[:4]) if named else (80, 0, *patch)
    rows = mels // patch[0]
    covered = patches // max(1, rows) * patch[1]  # frames
    fits = rows * covered == patches * patch[1] and width % max(1, width // 64) == 0
    if named:
        fits &= (frames - frames % patch[1], *named_patch) == (covered, *patch) and named[5] in (None, "16")
    if not fits:
        raise ValueError(
            f"{path}: its name says {named and named[0]}, its tensors hold {patches} positions for patches of {patch}, "
            f"width {width}: no ViT of M2D's kind at 16 kHz. Rename the folder, or find its checkpoint."
        )
    return {
        "input_size": (mels, frames or covered),  # 80x1001: of 1,001 frames patches cover the first 992 (M2D)
        "patch_size": patch,
        "width": width,
        "depth": len({key.split(".")[1] for key in tensors if key.startswith("blocks.")}),
        "heads": max(1, width // 64),
        "mlp_ratio": mlp[0] / width,
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
            "random". The shape comes from the tensors, and must agree with the folder's name where that speaks
            (M2D: `<model>-80x608p16x16...`).
        seed, input_size, patch_size, width, depth: of random weights only; heads have 64 channels each.
        name: what tables call the model; M2D, and of random weights M2D (untrained).

    Raises:
        FileNotFoundError, ValueError: no such file; damaged; another architecture; name and tensors disagree.
    """
    if str(weights_path) == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vit = M2DViT(input_size, patch_size, width, depth, max(1, width // 64))
        usual, provenance = "M2D (untrained)", {"source": "random", "seed": seed, "sha256": sha256_of_state(vit)}
    else:
        path = Path(weights_path).expanduser()
        tensors = {"norm_stats": torch.tensor(NORM_STATS)} | read_checkpoint(path, _PREFIXES)
        vit = M2DViT(**_shape_of(tensors, path))
        fill(vit, tensors, path)
        usual, provenance = "M2D", {"source": str(weights_path), "sha256": sha256_of(path)}
    model = M2DAudio(vit).eval()
    model.requires_grad_(False)
    blocks: list[Any] = list(vit.blocks)
    return Encoder(
        name=name or usual,
        sample_rate=RATE,
        clip_seconds=vit.input_size[1] * HOP / RATE,
        module=model,
        activations={f"blocks.{i}.mlp.act": block.mlp.act for i, block in enumerate(blocks)},
        embed=model,
        weights=provenance,
        chunks=True,
        padding_masks=model.padding_masks,
        token_grid=model.token_grid,
        stages=Stages(lambda wave: (model.begin(wave), model.finish), blocks, [block.mlp.fc2 for block in blocks]),
        cell_seconds=vit.patch[1] * HOP / RATE,
        log_mel=model.front_end,
    )
