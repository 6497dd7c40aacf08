"""Artifacts of an encoder that never was: counts with planted neurons, and a study that names them."""

import hashlib
from pathlib import Path

import numpy as np
import torch
import yaml

from aape.artifacts.folder import save_tensors
from aape.artifacts.manifest import write_manifest
from aape.files import sha256_of, write_text

TOKENS = 60


def write_artifacts(
    path: Path,
    counts: np.ndarray,
    labels: np.ndarray,
    classes: list[str],
    *,
    task: str,
    groups: np.ndarray | None = None,
    splits: np.ndarray | None = None,
    padded: int = 0,
    weights: str = "a" * 64,
    source: str = "fake",
) -> None:
    """Write a whole folder as the collecting pass does; the last `padded` tokens of every third clip are padding."""
    path.mkdir(parents=True, exist_ok=True)
    for earlier in path.glob("*.npy"):
        earlier.unlink()
    clips = len(labels)
    splits = np.where(np.arange(clips) % 4 == 0, "test", "train") if splits is None else splits
    over_zero = np.stack(
        [counts[labels == c].mean(axis=0) / TOKENS for c in range(len(classes))], axis=-1
    )
    save_tensors(path / "over_zero.pt", torch.from_numpy(over_zero.astype(np.float32)))
    write_text(path / "classes.txt", "".join(f"{name}\n" for name in classes))
    names = sorted(set(splits.tolist()))
    save_tensors(path / "features.pt", {s: torch.zeros(int((splits == s).sum()), 4) for s in names})
    save_tensors(path / "gts.pt", {s: torch.from_numpy(labels[splits == s]) for s in names})
    np.save(path / "clip_counts.npy", counts.astype(np.uint8))
    padding_tokens = np.where(np.arange(clips) % 3 == 0, padded, 0)
    if padded:
        share = (padding_tokens / TOKENS)[:, None, None]
        np.save(path / "padding_counts.npy", (counts * share).astype(np.uint8))
    checked = [p.name for p in sorted(path.iterdir()) if p.suffix in (".pt", ".npy", ".txt")]
    manifest = {
        "format": 4, "code_version": "fake", "encoder": "fake", "weights": {"source": source, "sha256": weights},
        "identity": hashlib.sha256(weights.encode()).hexdigest(), "dtype": "float32",
        "layers": [f"blocks.{i}" for i in range(counts.shape[1])], "neurons": counts.shape[2], "task": task,
        "classes": classes, "clip_seconds": 1.0, "sample_rate": 16000, "splits": names, "data": "d" * 64,
        "group_column": None if groups is None else "group",
        "clips": {
            "file": [f"{i}.wav" for i in range(clips)],
            "label": labels.tolist(),
            "split": splits.tolist(),
            "group": [str(g) for g in (np.arange(clips) if groups is None else groups)],
            "tokens": [TOKENS] * clips,
            "padding_tokens": padding_tokens.tolist(),
            "sha256": [f"{i:064x}" for i in range(clips)],
        },
        "notes": [], "cut": 0, "padding": "counted" if padded else "none", "means": False,
        "batch_size": 32, "device": "cpu", "versions": {},
        "hardware": {"machine": "none", "threads": 1},
        "checksums": {name: sha256_of(path / name) for name in checked},
    }  # fmt: skip
    write_manifest(path / "manifest.json", manifest)


def planted_counts(
    labels: np.ndarray,
    n_classes: int,
    *,
    seed: int,
    layers: int = 3,
    neurons: int = 100,
    each: int = 3,
    share=None,
) -> np.ndarray:
    """uint8 [clips, layers, neurons]: noise, and `each` neurons that prefer each class (0: none).

    share: class -> index of the set of neurons that it uses; classes with one index share neurons.
    """
    rng = np.random.default_rng([seed, 1])
    rate = np.repeat(rng.beta(0.6, 5, layers * neurons)[None], len(labels), axis=0)
    rate *= rng.gamma(8, 1 / 8, rate.shape)
    share = np.arange(n_classes) if share is None else np.asarray(share)
    mine = np.random.default_rng(7).permutation(
        layers * neurons
    )  # the same neurons whatever the seed
    for c in range(n_classes):
        chosen = mine[each * share[c] : each * share[c] + each]
        prefers = share[labels] == share[c]
        rate[:, chosen] = np.where(prefers[:, None], 0.6, 0.05) * rng.gamma(
            8, 1 / 8, (len(labels), each)
        )
    counts = np.random.default_rng([seed, 2]).binomial(TOKENS, np.clip(rate, 0, 1))
    return counts.reshape(-1, layers, neurons).astype(np.uint8)


def write_study(
    path: Path, tasks: dict[str, str], sharing: list[tuple[str, str, str]], **settings
) -> Path:
    """A study file; tasks: name -> "pitch" or anything else. Its loaders are never called: the analysis needs no model."""
    never = {"loader": "nowhere:load"}
    content = {
        "name": "fake",
        "description": "made up",
        "substitute": True,
        "models": {
            "ssl": never | {"label": "SSL ViT", "role": "ssl"},
            "sl": never | {"label": "SL ViT", "role": "sl"},
            "untrained": never | {"role": "untrained"},
        },
        "tasks": {
            name: never | {"title": name.upper(), "kind": "pitch" if kind == "pitch" else None}
            for name, kind in tasks.items()
        },
        "selection": {"rate": 0.1},
        "chance": {"permutations": 40},
        "sharing": [{"name": n, "rows": r, "columns": c, "title": "things"} for n, r, c in sharing],
    } | settings
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
