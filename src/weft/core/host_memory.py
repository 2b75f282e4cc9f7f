"""The memory of this machine that is free."""

from __future__ import annotations

from pathlib import Path


def free_memory() -> int | None:
    """Return the bytes of memory that programs could still take, None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        return None
