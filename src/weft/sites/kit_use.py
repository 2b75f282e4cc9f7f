"""What a process does with the start-up kit that it runs from: it has it alone, and bounds its files."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weft.errors import ConfigError
from weft.sites.kit_settings import LOG_BYTES, LOG_FILES

LOCK = "in_use"
LOGS = ("console.log", "supervisor.log", "audit.log", "weft/site.log")
"""Logs that other processes write, without a bound of their own."""
JOB = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Names of the folders that FLARE makes for its jobs."""
JOB_DAYS = 30
"""Days after which the folder of a job that is over is deleted; the results of runs are elsewhere."""


@contextmanager
def kit_in_use(kit: Path) -> Iterator[int]:
    """Have a kit alone; yield the descriptor of the lock, which child processes inherit.

    The lock ends with the last process that has the descriptor: one that died leaves none behind.

    Raises:
        ConfigError: a process of this machine uses the kit.
    """
    descriptor = os.open(kit / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
            raise ConfigError(
                f"'{kit}' is in use by the process {holder} on this machine: end it first, or start with another kit."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def bound_logs(kit: Path, most: int = LOG_BYTES, kept: int = LOG_FILES) -> None:
    """Begin a new file for every log that has grown too large, and delete the oldest.

    Args:
        kit: folder of the kit.
        most: bytes that a log may have.
        kept: how many older files of a log are kept.
    """
    for name in LOGS:
        log = kit / name
        if not log.is_file() or log.stat().st_size <= most:
            continue
        for number in range(kept - 1, 0, -1):
            older = log.with_name(f"{log.name}.{number}")
            if older.exists():
                older.replace(log.with_name(f"{log.name}.{number + 1}"))
        # Processes have the file open for appending, so it stays and loses its content.
        copy = log.with_name(f"{log.name}.1")
        shutil.copyfile(log, copy)
        copy.chmod(0o600)
        os.truncate(log, 0)


def delete_old_jobs(kit: Path, days: float = JOB_DAYS) -> None:
    """Delete the folders of FLARE's jobs that nothing was written to for some days."""
    for folder in kit.iterdir():
        if JOB.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
            newest = max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
            if newest < time.time() - days * 86400:
                shutil.rmtree(folder, ignore_errors=True)
