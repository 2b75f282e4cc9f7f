"""Files that are there in full, or not at all; with the modes that the user wants; on disks that may be full."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from weft.errors import ConfigError, RunError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space on the device, or as much as a user, or a file, may have."""


def cache_folder(kind: str) -> Path:
    """Return where what is kept between runs lies: a folder of $WEFT_CACHE, or of ~/.cache/weft."""
    return Path(os.environ.get("WEFT_CACHE", "~/.cache/weft")).expanduser() / kind


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that at any instant, and after a power cut, the old or the new content is there in full."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def follow_umask(path: Path) -> None:
    """Give a file, or every file below a folder, the mode that the user's umask leaves a new file.

    safetensors writes to a temporary file that nobody else may read, and renames it.
    """
    mode = 0o666 & ~_umask()
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


def _umask() -> int:
    """Return the umask of this process; to ask the system for it is to set it, in all threads."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    found = os.umask(0o077)
    os.umask(found)
    return found


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder, or take one that is empty; where what is done with it fails, all that came of it is deleted.

    Raises:
        ConfigError: it is a file, it holds something, or it cannot be made.
        RunError: the disk is full.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"'{path}' is there already and not empty: name another folder with --out.")
    above = missing(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield path
        follow_umask(path)
    except BaseException as error:
        for found in path.iterdir() if path.is_dir() else ():
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink(missing_ok=True)
        remove_empty(above)
        if is_full(error):
            raise RunError(f"{full_disk([path])}: make room there, or name another folder with --out.") from error
        if isinstance(error, PermissionError | NotADirectoryError):
            raise ConfigError(
                f"'{path}' cannot be written ({error.strerror}): name another folder with --out."
            ) from error
        raise


def missing(path: Path) -> list[Path]:
    """Return a folder and the folders above it that are not there, the innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders, the innermost first, that are there and hold nothing."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def is_full(error: BaseException) -> bool:
    """Say whether an error is of a disk, or a share of it, that is full; safetensors tells it in words only."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return type(error).__name__ == "SafetensorError" and any(f"(os error {code})" in str(error) for code in FULL)


def full_disk(folders: Iterable[Path]) -> str:
    """Say which disk is full, that of the folder with the least room, and how much is left there."""
    room = {folder: _room(folder) for folder in folders}
    folder = min(room, key=lambda one: room[one])
    return f"The disk that holds '{folder}' is full, or your share of it ({room[folder] / 1e6:.1f} MB are free)"


def _room(folder: Path) -> int:
    """Return the bytes that are free on the disk of a folder that may not be there yet."""
    for place in (folder, *folder.absolute().parents):
        if place.exists():
            return shutil.disk_usage(place).free
    return 0
