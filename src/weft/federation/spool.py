"""A spool: updates set aside in a temporary file and read back one at a time, so that memory holds one."""

from __future__ import annotations

from dataclasses import replace
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import IO, NamedTuple

import torch
from torch import Tensor

from weft.core.types import Streams, Update

IN_MEMORY = 64 << 20
"""Bytes that stay in memory before the file is one on disk, in the system's folder for temporary files (TMPDIR)."""


class _Place(NamedTuple):
    """Where a tensor lies in the file, and what it was."""

    offset: int
    like: Tensor
    """Without content: a tensor on the meta device."""
    device: torch.device


class Spool:
    """Updates in a temporary file, which is deleted when the spool is closed or its process ends."""

    def __init__(self) -> None:
        """Begin with an empty file."""
        self._file: IO[bytes] = SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 (closed by __exit__)
        self._size = 0
        self._updates: list[tuple[Update, dict[str, dict[str, _Place]]]] = []

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, update: Update) -> None:
        """Write an update; OSError where the disk is full."""
        places = {
            stream: {name: self._write(value) for name, value in values.items()}
            for stream, values in update.streams.items()
        }
        self._updates.append((replace(update, streams={}), places))

    def head(self, number: int) -> Update:
        """Return the update that was added as the `number`-th, from 0, without its streams."""
        return self._updates[number][0]

    def read(self, number: int) -> Update:
        """Return an update with its streams, equal to the last bit."""
        update, places = self._updates[number]
        streams: Streams = {
            stream: {name: self._read(place) for name, place in values.items()} for stream, values in places.items()
        }
        return replace(update, streams=streams)

    def _write(self, value: Tensor) -> _Place:
        place = _Place(self._size, value.detach().to("meta"), value.device)
        if not value.is_meta and value.numel():
            self._file.seek(self._size)
            self._size += self._file.write(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return place

    def _read(self, place: _Place) -> Tensor:
        like = place.like
        if place.device.type == "meta" or not like.numel():
            return torch.empty_like(like, device=place.device)
        self._file.seek(place.offset)
        raw = bytearray(self._file.read(like.numel() * like.element_size()))
        return torch.frombuffer(raw, dtype=like.dtype).reshape(like.shape).to(place.device)
