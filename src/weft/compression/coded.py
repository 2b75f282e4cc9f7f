"""What all codecs have in common that send the parameters' changes in fewer bits.

Up, the stream `delta` becomes one array of bytes; other streams of an algorithm travel as they are. What the bytes do
not hold stays in the client's memory and is added to the next delta (error feedback; Seide et al. 2014, Karimireddy et
al. 2019, arXiv 1901.09847): what was sent and what is kept add up to the sum of all deltas. An update that was not used
is undone together with the client's memory, so that nothing is lost with it.

Down, the parameters' difference from those that clients hold travels: `weft.compression.held`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from weft.compression.held import decode_chain, encode_chain, settled
from weft.core import tensors
from weft.core.exchange import Codec
from weft.core.packing import Reader, squeeze, unsqueeze
from weft.core.party import Coding, Party
from weft.core.types import DELTA, Streams, Task, Tensors, Update
from weft.errors import BadUpdate

ERROR = "error"
"""The stream of a client's memory that holds what was not sent yet."""
WHOLE = ""
"""Name of the one array of an encoded stream."""


@dataclass(frozen=True)
class Coded(Codec):
    """Base class of codecs that turn tensors into one array of bytes of a known size."""

    addable: ClassVar[bool] = False
    lossy: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    error_feedback: bool = True
    """Keep in memory what was not sent, and add it to what is sent next; down, errors are always kept."""
    zstd: bool = False
    """Pack the bytes losslessly; how many they are then depends on the values."""

    @abstractmethod
    def compress(self, values: Tensors, coding: Coding) -> list[Tensor]:
        """Return float32 tensors as pieces of bytes, which together are `raw_size` of them."""

    @abstractmethod
    def expand(self, reader: Reader, like: Tensors) -> Tensors:
        """Return the tensors of `like` that bytes stand for; BadUpdate for bytes that `compress` never returns."""

    @abstractmethod
    def raw_size(self, like: Tensors) -> int:
        """Return the bytes of tensors of such shapes before zstd."""

    def decay(self) -> float:
        """Return the factor of what was kept, when the next delta is added to it."""
        return 1.0

    def shrink(self, values: Tensors, coding: Coding) -> tuple[Tensor, Tensors]:
        """Return tensors as one array of bytes, and the tensors that these stand for."""
        raw = torch.cat(self.compress(values, coding))
        sent = self.expand(Reader(raw, raw.numel()), values)
        return (squeeze(raw) if self.zstd else raw), sent

    def to_send(self, values: Tensors, coding: Coding) -> tuple[Tensors, Tensors]:
        """Return tensors as those of an encoded update, and the tensors that these stand for."""
        packed, sent = self.shrink(values, coding)
        return {WHOLE: packed}, sent

    def grow(self, packed: Tensor, like: Tensors) -> Tensors:
        """Return the tensors that an array of bytes stands for; BadUpdate where it stands for none."""
        size = self.raw_size(like)
        return self.expand(Reader(unsqueeze(packed, size) if self.zstd else packed, size), like)

    def size(self, like: Tensors) -> int:
        """Return the bytes of tensors of such shapes; with zstd, the most that there can be."""
        return self.raw_size(like) + self.zstd

    def encode(self, update: Update, coding: Coding, party: Party) -> tuple[Update, Streams]:
        """Return the update with its delta and what was kept of earlier ones as bytes, and what is kept now."""
        delta, kept = update.streams[DELTA], party.memory.get(ERROR, {})
        whole = dict(delta)
        if self.error_feedback and (known := {name: delta[name] for name in delta if name in kept}):
            whole |= tensors.add(known, {name: kept[name].to(known[name].device) for name in known}, self.decay())
        packed, sent = self.to_send(whole, coding)
        # Of parameters that are not sent in this round, what was kept stays.
        memory = {ERROR: kept | tensors.subtract(whole, sent)} if self.error_feedback else {}
        return replace(update, streams=update.streams | {DELTA: packed}), memory

    def decode(self, update: Update, coding: Coding, party: Party) -> Update:
        """Return the update with the delta that its bytes stand for."""
        encoded = update.streams.get(DELTA, {})
        if encoded.keys() != {WHOLE}:
            raise BadUpdate("sent a delta that is not encoded")
        packed = encoded[WHOLE]
        return replace(update, streams=update.streams | {DELTA: self.grow(packed, coding.like[DELTA])})

    def largest(self, like: Streams) -> tuple[int, int]:
        """Return the bytes and the tensors of an encoded update."""
        others = {stream: values for stream, values in like.items() if stream != DELTA}
        size, count = super().largest(others)
        return size + self.size(like[DELTA]), count + 1

    def encode_task(self, task: Task, coding: Coding, party: Party) -> tuple[Task, Streams]:
        """Return the task with the difference from what its client holds, and the server's new memory."""
        return encode_chain(self.shrink, task, coding, party)

    def decode_task(self, task: Task, coding: Coding, party: Party) -> tuple[Task, Streams]:
        """Return the task with its parameters, and the client's new memory, which holds them."""
        return decode_chain(self.grow, self.size, task, coding, party)

    def settle(self, memory: Streams, round: int, used: Sequence[str], lost: Sequence[str]) -> Streams:
        """Return the server's memory of which parameters each client holds."""
        return settled(memory, round, used, lost)


@dataclass(frozen=True)
class Flat(Coded):
    """Base class of codecs that see all tensors as one line of numbers, in the order of their names."""

    @abstractmethod
    def pack(self, flat: Tensor, coding: Coding) -> list[Tensor]:
        """Return numbers, float32 of shape (n,) on the CPU, as pieces of bytes."""

    @abstractmethod
    def unpack(self, reader: Reader, count: int) -> Tensor:
        """Return the numbers that bytes stand for, float32 of shape (count,)."""

    @abstractmethod
    def line_size(self, count: int) -> int:
        """Return the bytes of `count` numbers."""

    def compress(self, values: Tensors, coding: Coding) -> list[Tensor]:
        """Put all numbers on one line and pack it."""
        if not _count(values):
            return [torch.empty(0, dtype=torch.uint8)]
        return self.pack(
            torch.cat([values[name].detach().cpu().float().reshape(-1) for name in sorted(values)]), coding
        )

    def expand(self, reader: Reader, like: Tensors) -> Tensors:
        """Unpack the line and cut it into tensors."""
        if not _count(like):
            return tensors.zeros(like)
        names = sorted(like)
        pieces = torch.split(self.unpack(reader, _count(like)), [like[name].numel() for name in names])
        parts = dict(zip(names, pieces, strict=True))
        return {name: parts[name].reshape(value.shape).to(value.device, value.dtype) for name, value in like.items()}

    def raw_size(self, like: Tensors) -> int:
        """Return the bytes of the line."""
        count = _count(like)
        return self.line_size(count) if count else 0


def _count(like: Tensors) -> int:
    return sum(value.numel() for value in like.values())
