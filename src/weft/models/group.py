"""Processes that hold one model together, started by torchrun; the first of them is the client to everybody else."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from weft.errors import ConfigError
from weft.json_types import JsonObject


@dataclass(frozen=True)
class RankGroup:
    """This process among those of its client."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process is the one that talks to the server and keeps what is kept."""
        return self.rank == 0

    def tell(self, words: JsonObject | None = None) -> JsonObject:
        """Send the leader's words to everybody, as JSON; return them."""
        content = json.dumps(words).encode() if self.leads else b""
        size = torch.tensor([len(content)], device=self.device)
        dist.broadcast(size, 0)
        block = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.leads:
            block.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        dist.broadcast(block, 0)
        told: JsonObject = json.loads(bytes(block.cpu().numpy()))
        return told

    def spread(self, value: Tensor) -> Tensor:
        """Return the leader's tensor on every process, on the device; others give one of its shape."""
        block = value.to(self.device, copy=True) if self.leads else torch.empty_like(value, device=self.device)
        dist.broadcast(block, 0)
        return block

    def total(self, numbers: list[float]) -> list[float]:
        """Return the sums of every process's numbers."""
        # Gloo and NCCL add float64 alike; counts stay whole.
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return [float(value) for value in sums.cpu()]


@contextlib.contextmanager
def joined(parallel: str, device: str) -> Iterator[RankGroup | None]:
    """Join the processes that torchrun started, for the length of a run; None where a model is in one process.

    Raises:
        ConfigError: parallel training was asked for without torchrun, or the other way round.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if parallel == "none":
        if size > 1:
            raise ConfigError(
                f"torchrun started {size} processes, but each would train alone: write --parallel fsdp, tensor or "
                "pipeline, or start weft without torchrun."
            )
        yield None
        return
    if "RANK" not in os.environ:
        raise ConfigError(
            f"--parallel {parallel} needs several processes: start it by `torchrun --standalone --nproc_per_node N "
            "-m weft ...`."
        )
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    mine = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(mine)
    # The others wait while the leader tokenizes, and through a server's pauses: a peer that is gone ends torchrun.
    wait = timedelta(days=7)
    dist.init_process_group("nccl" if cuda else "gloo", device_id=mine if cuda else None, timeout=wait)
    try:
        yield RankGroup(dist.get_rank(), dist.get_world_size(), mine)
        dist.barrier()  # torchrun ends them all where one of them is gone before the leader has written its results
    finally:
        dist.destroy_process_group()
