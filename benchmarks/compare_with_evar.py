"""Our M2D beside the official one, number by number. Needs an EVAR clone with M2D in external/m2d.

    EVAR=~/evar python -m benchmarks.compare_with_evar                 # drawn weights, noise and ESC-50 clips
    EVAR=~/evar python -m benchmarks.compare_with_evar --weights /data/m2d_vit_base-80x608p16x16-221006-mr7/checkpoint-300.pth
    EVAR=~/evar python -m benchmarks.compare_with_evar --write tests/data/m2d_official.npz   # what the test replays

Compares log-mel, the output of each block, the activations of each layer and the clip embedding, all values of
them, and exits with 1 where the clip embedding differs by more than 1e-5 or a sign differs where |activation| > 1e-5.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aape.encoders import m2d
from add_to_evar import bridge as evar
from benchmarks import numpy_weights

ROOT = Path(__file__).resolve().parents[1]

TOLERANCE = 1e-5


def record(model: nn.Module, blocks: list[nn.Module], wave: Tensor) -> dict[str, Tensor]:
    """One pass: `block.i` and `act.i` [1, tokens of all chunks, channels], `embedding` [1, dim]."""
    seen: dict[str, list[Tensor]] = {}
    hooks = []
    for i, block in enumerate(blocks):
        for name, module in ((f"block.{i:02d}", block), (f"act.{i:02d}", block.mlp.act)):
            hooks.append(
                module.register_forward_hook(
                    lambda m, a, out, name=name: seen.setdefault(name, []).append(out.detach())
                )
            )
    try:
        with torch.no_grad():
            embedding = model(wave)
    finally:
        for hook in hooks:
            hook.remove()
    return {"embedding": embedding} | {
        name: torch.cat(parts, dim=1) for name, parts in sorted(seen.items())
    }


def inputs(esc50: Path | None) -> dict[str, Tensor]:
    """Name -> wave [1, samples]."""
    waves = {f"noise-{s}": numpy_weights.noise(s) for s in numpy_weights.SECONDS}
    if esc50 is not None:
        waves |= {f"real-{s}": numpy_weights.real(esc50, s) for s in numpy_weights.SECONDS}
        # digital silence behind a short sound, not replayed elsewhere: log(0 + eps) is the same everywhere, but
        # what lies between is not
        waves["silent-5.0"] = numpy_weights.real(esc50, 5.0, ("1-100032-A-0", "1-43764-A-34"))
    return waves


def sample(tensors: dict[str, Tensor], name: str) -> dict[str, np.ndarray]:
    """Some values of each tensor with their flat indices, by fixed draws."""
    out = {}
    for key, tensor in tensors.items():
        draws = np.random.RandomState(len(name) + sum(name.encode()) + sum(key.encode()))
        index = np.sort(draws.choice(tensor.numel(), 200, replace=False)).astype(np.int32)
        out[f"{name}/{key}/index"] = index
        out[f"{name}/{key}/value"] = tensor.flatten()[torch.from_numpy(index).long()].numpy()
        out[f"{name}/{key}/shape"] = np.array(tensor.shape, dtype=np.int32)
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--weights", type=Path, help="an official checkpoint; default: weights drawn by name"
    )
    parser.add_argument(
        "--write", type=Path, help="also write sampled official values here (drawn weights only)"
    )
    parser.add_argument(
        "--esc50", type=Path, default=None, help="ESC-50 folder; default AAPE_ESC50 or ../shared"
    )
    options = parser.parse_args()
    esc50 = options.esc50 or Path(os.environ.get("AAPE_ESC50", ROOT.parent / "shared/data/esc50"))
    if not (esc50 / "meta/esc50.csv").is_file():
        print(f"no ESC-50 at {esc50}: noise only")
        esc50 = None

    worst = {"embedding": 0.0, "log-mel": 0.0, "block": 0.0, "act": 0.0}
    flipped = checked = flipped_below = 0
    samples: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.weights or numpy_weights.save_checkpoint(Path(folder))
        theirs = evar.load("config/m2d.yaml", options={"weight_file": str(checkpoint)})
        ours = m2d.load(checkpoint)
    runtime = theirs.module.ar.runtime
    for name, wave in inputs(esc50).items():
        official = record(theirs.embed, list(runtime.backbone.blocks), wave)
        own = record(ours.embed, list(ours.module.vit.blocks), wave)
        with torch.no_grad():
            official["log-mel"] = runtime.to_normalized_spec(wave)
            own["log-mel"] = ours.module.front_end(wave)
        if official.keys() != own.keys():
            raise ValueError(
                f"{name}: the two passes recorded different things: {official.keys() ^ own.keys()}"
            )
        here = dict.fromkeys(worst, 0.0)
        for key, value in official.items():
            if value.shape != own[key].shape:
                raise ValueError(
                    f"{name} {key}: {tuple(value.shape)} against {tuple(own[key].shape)}"
                )
            kind = key.split(".")[0]
            here[kind] = max(here[kind], float((value - own[key]).abs().max()))
            if kind == "act":
                clear = torch.maximum(value.abs(), own[key].abs()) > TOLERANCE
                differ = (value > 0) != (own[key] > 0)
                flipped += int((differ & clear).sum())
                flipped_below += int((differ & ~clear).sum())
                checked += int(clear.sum())
        worst = {k: max(v, here[k]) for k, v in worst.items()}
        print(f"{name:12s} " + "  ".join(f"{k} {v:.2e}" for k, v in here.items()))
        if not name.startswith("silent"):
            samples |= sample(official, name)
    print("largest absolute differences: " + ", ".join(f"{k} {v:.2e}" for k, v in worst.items()))
    print(
        f"signs: {flipped} of {checked:,} differ where |activation| > {TOLERANCE}, {flipped_below} below that"
    )
    if options.write:
        if options.weights:
            raise SystemExit("--write takes the drawn weights, which the test can draw again")
        options.write.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(options.write, **samples)
        print(f"{options.write}: {options.write.stat().st_size:,} bytes")
    return int(worst["embedding"] > TOLERANCE or flipped > 0)


if __name__ == "__main__":
    raise SystemExit(main())
