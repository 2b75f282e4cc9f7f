"""Tokenized text at a site: private text in another form, so it is kept in the site's kit, and not for ever."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

FOLDER = ".tokens"
"""Name of the folder; no run's folder beside it begins with a dot."""
DAYS = 30
"""Days after which tokenized text that no run used is deleted."""


def token_folder(above: Path, days: float = DAYS) -> Path:
    """Return the folder for a site's tokenized text, of mode 0700; what is old in it is deleted.

    Args:
        above: folder in which it is.
        days: text that was last used longer ago than this is deleted.
    """
    folder = above / FOLDER
    folder.mkdir(parents=True, mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    for entry in folder.iterdir():
        newest = max(path.lstat().st_mtime for path in (entry, *entry.rglob("*")))
        if newest >= time.time() - days * 86400:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return folder
