"""Random splits that keep groups whole and do not change when other clips are removed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from aape.sounds.clips import SPLITS, Clip, is_split, split_name

SHARES = {"train": 0.7, "valid": 0.1, "test": 0.2}


def our_split(seed: int, whole_groups: bool = True) -> str:
    """What a reader of results must know about a split of ours; the column `split_note` of a table holds it."""
    return f"the split is ours{' by whole groups' * whole_groups}, seed {seed}: not comparable with published results"


def split_clips(
    clips: Sequence[Clip],
    shares: Mapping[str, float],
    seed: int,
    source: str | Path,
    strata: Sequence[str] | None = None,
) -> list[Clip]:
    """The clips with a random split of ours.

    Each group has a random position between 0 and 1, a hash of its name and the seed. In each stratum the groups at the
    lowest positions go to the last splits. Groups are divided by their number, so that a few of them still fill every split.
    Clips without a group are divided by their position, so that removing one leaves the splits of the others unchanged.

    Args:
        clips: no group gets into two splits; a clip without one is its own.
        shares: split -> share; the first split takes the remainder.
        seed: of the positions.
        source: what errors name.
        strata: of each clip; each stratum (a language, say) is divided separately, and a group belongs to the stratum of its
            first clip. None: the classes, unless some group has clips of two classes.

    Raises:
        ValueError: invalid shares, or fewer groups than splits.
    """
    named = all(is_split(name) and split_name(name) == name for name in shares)
    total = sum(shares.values())
    if not named or abs(total - 1) > 1e-6:
        names = ", ".join(SPLITS)
        raise ValueError(
            f"split={dict(shares)}: expected shares of {names} (or fold1, ...) that add up to 1"
        )
    groups = [clip.file_name if clip.group is None else clip.group for clip in clips]
    if strata is None:
        strata = _classes_as_strata(groups, clips)
    stratum_of: dict[str, str] = {}
    for group, stratum in zip(groups, strata, strict=True):
        stratum_of.setdefault(group, stratum)
    if len(stratum_of) < len(shares):
        some = ", ".join(sorted(stratum_of)[:3])
        raise ValueError(
            f"{source}: {len(stratum_of)} group(s) ({some}) cannot fill the splits {', '.join(shares)}, because a group "
            "stays in one split; give another {group}, or split={...} with fewer splits"
        )
    by_number = any(clip.group is not None for clip in clips)
    split_of: dict[str, str] = {}
    for stratum in sorted(set(stratum_of.values())):
        members = [group for group, known in stratum_of.items() if known == stratum]
        positions = {group: _position(group, seed) for group in members}
        split_of |= _divide(positions, shares, by_number)
    return [clip._replace(split=split_of[group]) for group, clip in zip(groups, clips, strict=True)]


def _classes_as_strata(groups: Sequence[str], clips: Sequence[Clip]) -> list[str]:
    pairs = {(group, clip.label) for group, clip in zip(groups, clips, strict=True)}
    if len(pairs) > len({*groups}):
        return [""] * len(clips)
    return [clip.label for clip in clips]


def _position(group: str, seed: int) -> float:
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _divide(
    positions: Mapping[str, float], shares: Mapping[str, float], by_number: bool
) -> dict[str, str]:
    """Split of each group of one stratum."""
    order = sorted(positions, key=lambda group: positions[group])
    first, *others = shares
    split_of = dict.fromkeys(order, first)
    start, edge = 0, 0.0
    for name in others:
        edge += shares[name]
        count = round(shares[name] * len(order))
        if not by_number:
            count = sum(positions[group] < edge for group in order) - start
        if len(order) >= len(shares):  # every split gets a group
            count = max(count, 1)
        end = start + count
        split_of |= dict.fromkeys(order[start:end], name)
        start = end
    return split_of
