"""The processes that share one collecting pass: those that torchrun started, or only this one."""

from __future__ import annotations

import datetime
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
_PATIENCE = datetime.timedelta(
    days=30
)  # writing the artifacts may take longer than torch's default of 10 or 30 minutes


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a pass.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
    """

    rank: int
    count: int

    @property
    def first(self) -> bool:
        """Whether this process holds the folder's lock and writes the artifacts."""
        return self.rank == 0

    def share(self, batches: Mapping[str, Any]) -> dict[str, Any]:
        """The batches that this process computes."""
        return dict(list(batches.items())[self.rank :: self.count])

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            torch.distributed.barrier(_patient_group())


def current_ranks() -> Ranks:
    """The ranks of this process's group. Variables that an earlier launch left in the environment do not make a group."""
    launched = all(name in os.environ for name in _LAUNCHED) and int(os.environ["WORLD_SIZE"]) > 1
    if launched and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return Ranks(0, 1)
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())


@functools.cache
def _patient_group() -> Any:
    """A group whose processes wait for each other as long as it takes."""
    return torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
