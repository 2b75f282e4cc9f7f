"""Bytes from one process of a machine to another over a pipe; many of them as memory that both see, not through it."""

from __future__ import annotations

import os
from mmap import ACCESS_COPY, mmap
from multiprocessing import reduction
from multiprocessing.connection import Connection

LARGE = 1 << 20
"""Bytes from which memory is handed over, where the system can (Linux)."""
HERE, BESIDE = b"H", b"B"


def send(line: Connection, raw: bytes) -> None:
    """Send bytes; OSError where nobody listens."""
    if len(raw) < LARGE or not hasattr(os, "memfd_create"):
        line.send_bytes(HERE + raw)
        return
    file = os.memfd_create("weft")  # it has no name that another could open, and is gone with its last reader
    try:
        with open(file, "wb", closefd=False) as whole:
            whole.write(raw)
        line.send_bytes(BESIDE)
        reduction.send_handle(line, file, None)
    finally:
        os.close(file)


def receive(line: Connection) -> bytes | mmap:
    """Return what was sent, many bytes as a file that may be written to (by nobody else seen); EOFError at the end."""
    said = line.recv_bytes()
    if said[:1] == HERE:
        return said[1:]
    file = reduction.recv_handle(line)
    try:
        return mmap(file, 0, access=ACCESS_COPY)
    finally:
        os.close(file)
