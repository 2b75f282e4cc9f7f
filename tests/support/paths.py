"""Where the repository and the shared data lie."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("WEFT_DATA", ROOT.parent / "shared" / "data"))


def quick_folder(needs: int = 6 * 2**30) -> Path | None:
    """Return a folder in memory, where it has the room and runs programs; None: there is none."""
    folder = Path("/dev/shm")
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return None
    system, memory = os.statvfs(folder), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    runs = not system.f_flag & os.ST_NOEXEC
    return folder if runs and system.f_bavail * system.f_frsize >= needs and memory >= 2 * needs else None
