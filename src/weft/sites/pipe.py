"""Passes bytes between two processes of a machine over a pipe; large messages as shared memory (memfd)."""

from __future__ import annotations

import os
from mmap import ACCESS_COPY, mmap
from multiprocessing import reduction
from multiprocessing.connection import Connection

LARGE = 1 << 20
"""Size in bytes from which a message is passed as shared memory, where the system can (Linux)."""
INLINE, SHARED = b"H", b"B"
"""First byte of a message: its content follows, or a file descriptor does."""


def send(transport: Connection, raw: bytes | memoryview) -> None:
    """Send bytes; OSError if the other end is closed."""
    if len(raw) < LARGE or not hasattr(os, "memfd_create"):
        transport.send_bytes(INLINE + raw)
        return
    file = os.memfd_create("weft")  # no other process can open it by name; freed with its last reader
    try:
        with open(file, "wb", closefd=False) as stream:
            stream.write(raw)
        transport.send_bytes(SHARED)
        reduction.send_handle(transport, file, None)
    finally:
        os.close(file)


def receive(transport: Connection) -> bytes | mmap:
    """Return the next message, a large one as a private (copy-on-write) memory map; EOFError at the end."""
    raw = transport.recv_bytes()
    if raw[:1] == INLINE:
        return raw[1:]
    file = reduction.recv_handle(transport)
    try:
        return mmap(file, 0, access=ACCESS_COPY)
    finally:
        os.close(file)
