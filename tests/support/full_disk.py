"""A disk that has no room left."""

from __future__ import annotations

import contextlib
import resource


@contextlib.contextmanager
def no_file_over(size: int):
    """Let the system refuse to write more than that into one file, as it refuses what a disk has no room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
