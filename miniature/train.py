"""Train the miniature's two encoders on ESC-50: `ssl` without labels, `sl` with them.

    python -m miniature.train ssl --esc50 ../shared/data/esc50 --out outputs/training/ssl --minutes 45
    python -m miniature.train sl  --esc50 ../shared/data/esc50 --out outputs/training/sl  --minutes 45

Both train the same encoder (`aape.encoders.m2d.M2DViT`) on random crops of 2.08 s from folds 1 to 4:

- ssl: masked spectrogram modelling with a masked autoencoder, MSM-MAE (Niizumi et al., HEAR 2021, PMLR 166; He et al., CVPR 2022):
  a quarter of the patches is encoded, a small decoder predicts the others, mean squared error on patches
  normalised one by one. Two clips are mixed in the power domain as augmentation.
- sl: classification of the 50 classes from the mean of the patch embeddings; mixup, label smoothing, and random
  patches left out (patchout: Koutini et al., Interspeech 2022), which also saves time.

A run is a function of its seed, its settings and its number of steps: every step draws its random numbers from
(seed, step), so a checkpoint needs no generator state and a run that was killed ends with the weights of one that was
not (same machine, one thread). `--minutes` measures a few steps first and turns CPU minutes into a number of steps,
which is then fixed. Folder `--out` receives checkpoint.pt, curve.csv, curve.png, run.json and {ssl,sl}.safetensors.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import io
import json
import math
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from aape.encoders.m2d import LogMel, M2DViT

SAMPLE_RATE = 16_000  # Hz
CLIP_SAMPLES = 5 * SAMPLE_RATE
INPUT_SIZE = (80, 208)  # mel bands, frames of 10 ms
PATCH = 16
FLOOR = math.log(np.finfo(np.float32).eps)  # log-mel of digital silence
MEAN, STD = -7.1, 4.2  # norm_stats of M2D


@dataclass(frozen=True)
class Settings:
    """What a run depends on, besides the data. Defaults are those of the shipped weights."""

    kind: str  # "ssl" or "sl"
    steps: int
    seed: int = 1
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.08  # share of the steps
    width: int = 192
    depth: int = 6
    heads: int = 3
    mask_ratio: float = 0.75  # ssl: share of patches hidden; sl: share left out (patchout)
    mix: float = (
        0.5  # ssl: largest share of the second clip's power; sl: alpha of mixup's beta distribution
    )
    gain_db: float = 6.0  # each crop is louder or softer by up to this much
    decoder_width: int = 128  # ssl only
    decoder_depth: int = 3
    label_smoothing: float = 0.1  # sl only
    folds: tuple[int, ...] = (1, 2, 3, 4)


SL_DEFAULTS: dict[str, Any] = {
    "batch_size": 64,
    "learning_rate": 7e-4,
    "mask_ratio": 0.4,
    "mix": 0.4,
}


# ---------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Crops:
    """Log-mel spectrograms of whole clips, and where crops may start."""

    logmels: np.ndarray  # float16 [clips, 80, frames], natural log of power, not normalised
    labels: np.ndarray  # int64 [clips]
    starts: tuple[np.ndarray, ...]  # per clip, start frames of crops that are not silence
    digest: str  # SHA-256 over the names and contents of the files

    @staticmethod
    def from_logmels(logmels: np.ndarray, labels: np.ndarray, digest: str) -> Crops:
        """Find the crops that hold a frame within 20 dB of their clip's loudest: short ESC-50 clips are zero-padded.

        Raises ValueError if the clips are shorter than a crop.
        """
        frames = logmels.shape[2]
        if frames < INPUT_SIZE[1]:
            raise ValueError(f"clips have {frames} frames; a crop needs {INPUT_SIZE[1]} (2.08 s)")
        loudness = logmels.astype(np.float32).max(axis=1)  # [clips, frames]
        loud = loudness > loudness.max(axis=1, keepdims=True) - 2.0 * math.log(10.0)
        total = np.concatenate([np.zeros((len(loud), 1), int), loud.cumsum(axis=1)], axis=1)
        any_loud = total[:, INPUT_SIZE[1] :] > total[:, : frames - INPUT_SIZE[1] + 1]
        return Crops(logmels, labels, tuple(np.flatnonzero(row) for row in any_loud), digest)

    def draw(self, indices: np.ndarray, rng: np.random.Generator, gain_db: float) -> np.ndarray:
        """Random crops of these clips with a random gain: float32 [batch, 80, 208], natural log of power."""
        out = np.empty((len(indices), *INPUT_SIZE), np.float32)
        for row, index in enumerate(indices):
            start = rng.choice(self.starts[index])
            out[row] = self.logmels[index, :, start : start + INPUT_SIZE[1]]
        gain = rng.uniform(-gain_db, gain_db, (len(indices), 1, 1)) * (math.log(10.0) / 10.0)
        return np.maximum(out + gain.astype(np.float32), FLOOR)


def _write(path: Path, content: bytes) -> None:
    """Write a file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def esc50_files(esc50: Path, folds: tuple[int, ...]) -> list[tuple[Path, int]]:
    """(audio file, class) of the clips of these folds, in the order of meta/esc50.csv.

    Raises FileNotFoundError if the folder is not an ESC-50 folder, ValueError if no clip is left.
    """
    meta = esc50 / "meta" / "esc50.csv"
    if not meta.is_file():
        raise FileNotFoundError(
            f"expected ESC-50's {meta}; give --esc50 the folder that holds audio/ and meta/"
        )
    with meta.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["fold"]) in folds]
    if not rows:
        raise ValueError(f"{meta}: no clip of folds {folds}")
    files = []
    for row in rows:
        path = esc50 / "audio" / row["filename"]
        if not path.is_file():  # the original is .wav, resampled copies are .ogg
            path = path.with_suffix(".ogg" if path.suffix == ".wav" else ".wav")
        if not path.is_file():
            raise FileNotFoundError(f"{path}, named in {meta}, is missing")
        files.append((path, int(row["target"])))
    return files


def load_crops(esc50: Path, folds: tuple[int, ...], cache: Path) -> Crops:
    """Log-mels of these folds, computed once and kept as .npy in `cache` (a damaged file is made again)."""
    import soundfile
    import soxr

    files = esc50_files(esc50, folds)
    lines = [
        f"{path.name} {label} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path, label in files
    ]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    labels = np.array([label for _, label in files], np.int64)
    stored, checksum = cache / f"esc50-{digest[:16]}.npy", cache / f"esc50-{digest[:16]}.sha256"
    if stored.is_file() and checksum.is_file():
        content = stored.read_bytes()
        if hashlib.sha256(content).hexdigest() == checksum.read_text().strip():
            return Crops.from_logmels(np.load(io.BytesIO(content)), labels, digest)
    logmel = LogMel()
    logmels = []
    for path, _ in tqdm(files, desc="log-mel", disable=None):
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        wave = wave.mean(axis=1)
        if rate != SAMPLE_RATE:
            wave = soxr.resample(wave, rate, SAMPLE_RATE)
        wave = np.pad(wave[:CLIP_SAMPLES], (0, max(0, CLIP_SAMPLES - len(wave))))
        with torch.inference_mode():
            normalised = logmel(torch.from_numpy(wave)[None])[0, 0]  # [80, 501]
        logmels.append((normalised * STD + MEAN).numpy().astype(np.float16))
    array = np.stack(logmels)
    buffer = io.BytesIO()
    np.save(buffer, array)
    _write(stored, buffer.getvalue())
    _write(checksum, hashlib.sha256(buffer.getvalue()).hexdigest().encode())
    return Crops.from_logmels(array, labels, digest)


# -------------------------------------------------------------------------------------------------- models


def sincos_position(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed 2-D sine-cosine position embedding [1, 1 + bins * frames, width], zeros for the class token (MAE)."""

    def one(positions: Tensor) -> Tensor:
        omega = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
        angle = positions[:, None] * omega
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    f, t = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64),
        torch.arange(grid[1], dtype=torch.float64),
        indexing="ij",
    )
    table = torch.cat([one(t.flatten()), one(f.flatten())], dim=1).float()
    return torch.cat([torch.zeros(1, width), table])[None]


def _initialise(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Conv2d):  # as a linear layer over the patch (MAE)
            nn.init.xavier_uniform_(part.weight.view(part.weight.shape[0], -1))
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def patches(spectrograms: Tensor) -> Tensor:
    """[batch, 80, 208] -> [batch, 65, 256]: 16x16 patches in (frequency, time) order."""
    b, f, t = spectrograms.shape
    x = spectrograms.reshape(b, f // PATCH, PATCH, t // PATCH, PATCH)
    return x.permute(0, 1, 3, 2, 4).reshape(b, (f // PATCH) * (t // PATCH), PATCH * PATCH)


class Model(nn.Module):
    """The encoder with the head it is trained with, which is thrown away afterwards."""

    decoder_position: Tensor

    def __init__(self, settings: Settings, classes: int):
        super().__init__()
        self.settings = settings
        self.encoder = M2DViT(
            input_size=INPUT_SIZE,
            patch_size=(PATCH, PATCH),
            width=settings.width,
            depth=settings.depth,
            heads=settings.heads,
        )
        grid = (INPUT_SIZE[0] // PATCH, INPUT_SIZE[1] // PATCH)
        _initialise(self.encoder)
        position = cast(Tensor, self.encoder.pos_embed)  # timm types it as optional
        position.data.copy_(sincos_position(grid, settings.width))
        position.requires_grad_(False)
        nn.init.normal_(cast(Tensor, self.encoder.cls_token), std=0.02)
        if settings.kind == "ssl":
            width = settings.decoder_width
            self.decoder_embed = nn.Linear(settings.width, width)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
            self.register_buffer("decoder_position", sincos_position(grid, width), persistent=False)
            self.decoder = nn.Sequential(
                *[
                    Block(width, num_heads=width // 32, mlp_ratio=4.0, qkv_bias=True)
                    for _ in range(settings.decoder_depth)
                ],
                nn.LayerNorm(width),
                nn.Linear(width, PATCH * PATCH),
            )
            _initialise(self.decoder_embed)
            _initialise(self.decoder)
            nn.init.normal_(self.mask_token, std=0.02)
        else:
            self.head = nn.Linear(settings.width, classes)
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)

    def encode(self, spectrograms: Tensor, keep: Tensor) -> Tensor:
        """Normalised spectrograms [batch, 80, 208], kept patches [batch, k] -> tokens [batch, 1 + k, width]."""
        encoder = self.encoder
        weight = encoder.patch_embed.proj.weight.flatten(
            1
        )  # [width, 256]: the convolution as a matrix
        kept = patches(spectrograms).gather(1, keep[..., None].expand(-1, -1, PATCH * PATCH))
        x = F.linear(kept, weight, encoder.patch_embed.proj.bias)
        position, class_token = cast(Tensor, encoder.pos_embed), cast(Tensor, encoder.cls_token)
        x = x + position[0, 1:][keep]
        x = torch.cat([(class_token + position[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in encoder.blocks:
            x = block(x)
        return encoder.norm(x)

    def reconstruction_loss(self, spectrograms: Tensor, order: Tensor) -> Tensor:
        """MAE loss: order [batch, 65] is a permutation whose first quarter is visible; error over the other patches."""
        count = order.shape[1]
        visible = max(1, round(count * (1.0 - self.settings.mask_ratio)))
        keep, hidden = order[:, :visible], order[:, visible:]
        x = self.decoder_embed(self.encode(spectrograms, keep))
        positions = self.decoder_position[0]
        seen = x[:, 1:] + positions[1:][keep]
        unseen = self.mask_token + positions[1:][hidden]
        # The decoder's attention knows no order but the positions, so the patches stay permuted.
        predicted = self.decoder(torch.cat([x[:, :1], seen, unseen], dim=1))[:, 1 + visible :]
        target = patches(spectrograms).gather(1, hidden[..., None].expand(-1, -1, PATCH * PATCH))
        target = (target - target.mean(dim=-1, keepdim=True)) / (
            target.var(dim=-1, keepdim=True) + 1e-6
        ).sqrt()
        return F.mse_loss(predicted, target)

    def classification_loss(self, spectrograms: Tensor, order: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy with soft targets [batch, classes] from the mean of the patches that are not left out."""
        kept = max(1, round(order.shape[1] * (1.0 - self.settings.mask_ratio)))
        logits = self.head(self.encode(spectrograms, order[:, :kept])[:, 1:].mean(dim=1))
        return F.cross_entropy(logits, targets, label_smoothing=self.settings.label_smoothing)


# ------------------------------------------------------------------------------------------------ training


def batch_loss(model: Model, crops: Crops, step: int) -> Tensor:
    """Loss of one step. All randomness of a step comes from (seed, step)."""
    s = model.settings
    rng = np.random.default_rng([s.seed, step])
    clips, classes = len(crops.labels), int(crops.labels.max()) + 1
    # An epoch is a permutation drawn from (seed, epoch), walked across batch borders, so every clip is seen equally often.
    places = np.arange(step * s.batch_size, (step + 1) * s.batch_size)
    epochs = {
        e: np.random.default_rng([s.seed, 1 << 20, int(e)]).permutation(clips)
        for e in np.unique(places // clips)
    }
    first = np.array([epochs[p // clips][p % clips] for p in places])
    second = rng.integers(clips, size=s.batch_size)
    a, b = crops.draw(first, rng, s.gain_db), crops.draw(second, rng, s.gain_db)
    order = torch.from_numpy(
        rng.random((s.batch_size, (INPUT_SIZE[0] // PATCH) * (INPUT_SIZE[1] // PATCH))).argsort(
            axis=1
        )
    )
    if s.kind == "ssl":
        share = rng.uniform(0.0, s.mix, (s.batch_size, 1, 1)).astype(np.float32)
        mixed = np.logaddexp(a + np.log1p(-share), b + np.log(np.maximum(share, 1e-8)))
        return model.reconstruction_loss(torch.from_numpy((mixed - MEAN) / STD), order)
    share = rng.beta(s.mix, s.mix, (s.batch_size, 1, 1)).astype(np.float32)
    mixed = a + share * (b - a)  # mixup of log spectrograms, as of images
    one_hot = np.eye(classes, dtype=np.float32)
    targets = (
        one_hot[crops.labels[first]] * (1.0 - share[:, 0])
        + one_hot[crops.labels[second]] * share[:, 0]
    )
    return model.classification_loss(
        torch.from_numpy((mixed - MEAN) / STD), order, torch.from_numpy(targets)
    )


def learning_rate(settings: Settings, step: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    warm = max(1, round(settings.warmup * settings.steps))
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    return (
        settings.learning_rate
        * 0.5
        * (1.0 + math.cos(math.pi * (step - warm) / max(1, settings.steps - warm)))
    )


def _build(settings: Settings, crops: Crops) -> tuple[Model, torch.optim.AdamW]:
    torch.manual_seed(settings.seed)
    model = Model(settings, int(crops.labels.max()) + 1)
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in trained if p.ndim >= 2 and p.shape[0] > 1],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in trained if p.ndim < 2 or p.shape[0] == 1], "weight_decay": 0.0},
    ]
    return model, torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))


def _step(model: Model, optimiser: torch.optim.AdamW, crops: Crops, step: int) -> float:
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(model.settings, step)
    loss = batch_loss(model, crops, step)
    if not torch.isfinite(loss):
        raise RuntimeError(f"loss is {loss.item()} at step {step}: lower the learning rate")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 3.0)
    optimiser.step()
    return loss.item()


def measured_steps(settings: Settings, crops: Crops, minutes: float, trial: int = 12) -> int:
    """How many steps fit into so many CPU minutes, from a trial on a model that is thrown away."""
    model, optimiser = _build(settings, crops)
    _step(model, optimiser, crops, 0)
    start = time.process_time()
    for step in range(1, trial + 1):
        _step(model, optimiser, crops, step)
    return max(1, int(minutes * 60.0 / ((time.process_time() - start) / trial)))


def train(
    settings: Settings,
    crops: Crops,
    out: Path,
    *,
    checkpoint_every: int = 100,
    record_every: int = 10,
    stop_after: int | None = None,
    note: str = "",
) -> Path | None:
    """Train, or go on where an earlier run in `out` stopped, and write the encoder's weights.

    stop_after ends the run early after that many steps of this call, as a kill would (for tests).
    Returns the path of the weights, None if stopped early. Raises ValueError if `out` holds another run.
    """
    model, optimiser = _build(settings, crops)
    checkpoint = out / "checkpoint.pt"
    identity = json.dumps({"settings": asdict(settings), "data": crops.digest}, sort_keys=True)
    step, cpu_seconds = 0, 0.0
    curve: list[list[float]] = []
    recent: list[float] = []
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if state["identity"] != identity:
            raise ValueError(
                f"{checkpoint} belongs to another run: expected {identity}, found {state['identity']}; choose another --out"
            )
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step, cpu_seconds, curve = state["step"], state["cpu_seconds"], state["curve"]
        recent, started = state["recent"], state["started"]

    def save() -> None:
        buffer = io.BytesIO()
        torch.save(
            {
                "identity": identity,
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
                "cpu_seconds": cpu_seconds,
                "curve": curve,
                "recent": recent,
                "started": started,
            },
            buffer,
        )
        _write(checkpoint, buffer.getvalue())
        lines = ["step,cpu_seconds,learning_rate,loss"] + [
            f"{s:.0f},{c:.1f},{r:.3e},{v:.5f}" for s, c, r, v in curve
        ]
        _write(out / "curve.csv", ("\n".join(lines) + "\n").encode())

    done = 0
    bar = tqdm(total=settings.steps, initial=step, desc=settings.kind, disable=None)
    while step < settings.steps:
        clock = time.process_time()
        recent.append(_step(model, optimiser, crops, step))
        cpu_seconds += time.process_time() - clock
        step += 1
        done += 1
        bar.update()
        if step % record_every == 0 or step == settings.steps:
            curve.append(
                [
                    float(step),
                    cpu_seconds,
                    learning_rate(settings, step - 1),
                    float(np.mean(recent)),
                ]
            )
            recent = []
        if step % checkpoint_every == 0 or step == settings.steps:
            save()
        if stop_after is not None and done >= stop_after and step < settings.steps:
            bar.close()
            return None
    bar.close()

    tensors = {
        key: value.detach().clone().contiguous()
        for key, value in model.encoder.state_dict().items()
    }
    # Half precision halves the files; everything that is later computed starts from the rounded weights.
    tensors = {name: tensor.half() for name, tensor in tensors.items()}
    tensors["norm_stats"] = torch.tensor([MEAN, STD])
    header: dict[str, Any] = {
        "name": "MSM-MAE (miniature)" if settings.kind == "ssl" else "supervised ViT (miniature)",
        "script": "miniature/train.py",
        "date": started[:10],
        "seed": settings.seed,
        "steps": settings.steps,
        "data": f"ESC-50 folds {', '.join(map(str, settings.folds))}, {len(crops.labels)} clips, CC BY-NC 3.0",
        "data_sha256": crops.digest,
        "settings": asdict(settings),
    }
    weights = out / f"{settings.kind}.safetensors"
    # One entry: the library writes several in an order that changes from run to run, and with it the file's hash.
    content = safetensors_bytes(tensors, metadata={"training": json.dumps(header, sort_keys=True)})
    _write(weights, content)
    _plot(curve, settings, out / "curve.png")
    report = {
        **header,
        "note": note,
        "started": started,
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu_minutes": round(cpu_seconds / 60.0, 2),
        "final_loss": curve[-1][3],
        "sha256": hashlib.sha256(content).hexdigest(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    _write(out / "run.json", (json.dumps(report, indent=1) + "\n").encode())
    return weights


def _plot(curve: list[list[float]], settings: Settings, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values = np.array(curve)
    figure = Figure(figsize=(4.2, 2.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(values[:, 0], values[:, 3], color="#0072B2", linewidth=1.0)
    axes.set_xlabel("step")
    axes.set_ylabel(
        "mean squared error" if settings.kind == "ssl" else "cross entropy (mixed, smoothed)"
    )
    axes.set_title(f"{settings.kind}: training loss, seed {settings.seed}")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    _write(path, buffer.getvalue())


def main(arguments: list[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kind", choices=["ssl", "sl"])
    parser.add_argument(
        "--esc50", type=Path, required=True, help="folder with audio/ and meta/esc50.csv"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of this run")
    parser.add_argument(
        "--cache", type=Path, help="folder for log-mels (default: cache beside --out)"
    )
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument(
        "--minutes", type=float, help="CPU minutes, turned into steps by a short measurement"
    )
    budget.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--folds",
        type=int,
        nargs="+",
        default=[1, 2, 3, 4],
        help="folds trained on; 5 is for testing",
    )
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--mask-ratio", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint-every", type=int, default=100, help="steps")
    given = parser.parse_args(arguments)
    if 5 in given.folds:
        parser.error("fold 5 is the test fold of the miniature and is never trained on")
    torch.set_num_threads(given.threads)
    options = dict(SL_DEFAULTS) if given.kind == "sl" else {}
    for key in ("batch_size", "learning_rate", "mask_ratio"):
        if getattr(given, key) is not None:
            options[key] = getattr(given, key)
    folds = tuple(sorted(given.folds))
    crops = load_crops(given.esc50, folds, given.cache or given.out.parent / "cache")
    settings = Settings(
        kind=given.kind, steps=given.steps or 1, seed=given.seed, folds=folds, **options
    )
    note = ""
    if given.minutes:
        plan = given.out / "steps.json"  # a resumed run keeps the number of steps measured first
        if not plan.is_file():
            steps = measured_steps(settings, crops, given.minutes)
            _write(plan, json.dumps({"minutes": given.minutes, "steps": steps}).encode())
        found = json.loads(plan.read_text())
        settings = Settings(**{**asdict(settings), "steps": found["steps"], "folds": folds})
        note = f"{found['steps']} steps planned for {found['minutes']} CPU minutes from a measurement of 12 steps"
    print(f"{settings}\ndata {crops.digest}\n{note}", flush=True)
    weights = train(settings, crops, given.out, checkpoint_every=given.checkpoint_every, note=note)
    print(f"{weights}\n{(given.out / 'run.json').read_text()}", flush=True)


if __name__ == "__main__":
    main()
