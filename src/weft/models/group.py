"""A rank group: processes of torchrun that one model is spread over; to the server, its leader is the client."""

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
    """This process and the others of its rank group."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_leader(self) -> bool:
        """Whether this process talks to the server and writes files."""
        return self.rank == 0

    def broadcast_message(self, message: JsonObject | None = None) -> JsonObject:
        """Return the leader's message (JSON) on every process; the others pass None."""
        content = json.dumps(message).encode() if self.is_leader else b""
        # The length goes first: the other processes must allocate a buffer of it.
        size = torch.tensor([len(content)], device=self.device)
        dist.broadcast(size, 0)
        block = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.is_leader:
            block.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        dist.broadcast(block, 0)
        leader_message: JsonObject = json.loads(bytes(block.cpu().numpy()))
        return leader_message

    def broadcast(self, value: Tensor) -> Tensor:
        """Return the leader's tensor on every process's device; the others pass one of the same shape and dtype."""
        block = value.to(self.device, copy=True) if self.is_leader else torch.empty_like(value, device=self.device)
        dist.broadcast(block, 0)
        return block

    def total(self, numbers: list[float]) -> list[float]:
        """Return the element-wise sums over all processes."""
        # Gloo and NCCL add float64 alike; counts stay whole.
        sums = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return [float(value) for value in sums.cpu()]


@contextlib.contextmanager
def join_group(parallel: str, device: str) -> Iterator[RankGroup | None]:
    """Join the processes that torchrun started, inside the context; None where the model is in one process.

    Raises:
        ConfigError: --parallel without torchrun, or torchrun without --parallel.
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
    own_device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(own_device)
    # Processes wait while the leader tokenizes and while the server pauses. A dead process needs no timeout: torchrun
    # ends the others.
    wait = timedelta(days=7)
    dist.init_process_group("nccl" if cuda else "gloo", device_id=own_device if cuda else None, timeout=wait)
    try:
        yield RankGroup(dist.get_rank(), dist.get_world_size(), own_device)
        # A rank that ends early would make torchrun end the leader, perhaps before it has written its results.
        dist.barrier()
    finally:
        dist.destroy_process_group()
