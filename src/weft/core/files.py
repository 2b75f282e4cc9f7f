"""Atomic writes of files and folders, lines of JSON, file modes, and full disks."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from weft.errors import ConfigError, RunError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk: no space, quota reached, largest size of a file reached."""


def cache_folder(kind: str) -> Path:
    """Return a cache folder for data of one kind: below $WEFT_CACHE, or ~/.cache/weft."""
    return Path(os.environ.get("WEFT_CACHE", "~/.cache/weft")).expanduser() / kind


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to disk: a rename is durable only after that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically: at any time, and after a power cut, it has the complete old or new content."""
    # In the same folder, since a rename is atomic only within a file system.
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


def whole_lines(path: Path) -> list[bytes]:
    """Return the lines, without their ends, of a file that grows by lines; none where there is no file.

    Whole lines end with a newline, so what follows the last one is empty, or was cut short by a kill and is left out.
    """
    try:
        *lines, _unfinished = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return lines


def drop_unfinished_line(path: Path) -> None:
    """Remove what follows a file's last newline, so that the next line does not continue it."""
    with suppress(FileNotFoundError), open(path, "r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Write a folder beside `path`, and put it there when it is whole; if the body fails, `path` stays as it was.

    Whoever looks meanwhile, or after a kill or a power cut, sees the former folder, or none, or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    new, old = (path.with_name(f".{path.name}.{os.getpid()}{kind}.tmp") for kind in ("", ".old"))
    try:
        new.mkdir()
        yield new
        _sync(new)
        if path.exists():
            os.replace(path, old)  # a folder with files cannot be replaced in one step
        os.replace(new, path)
        sync_directory(path.parent)
    finally:
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Flush all files below a folder to disk."""
    for entry in folder.rglob("*"):
        if entry.is_dir():
            sync_directory(entry)
            continue
        with open(entry, "rb") as file:
            os.fsync(file.fileno())
    sync_directory(folder)


def follow_umask(path: Path) -> None:
    """Set the mode of a file, or of every file below a folder, to that of a new file under the user's umask.

    safetensors writes a temporary file of mode 0600 and renames it, so its files ignore the umask.
    """
    mode = 0o666 & ~_umask()
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


def _umask() -> int:
    """Return the umask of this process, from /proc: os.umask returns it only by setting it, for all threads."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Create a folder, or use an empty one; if the body fails, its files and the created folders are deleted.

    Raises:
        ConfigError: the path is a file or a folder that is not empty, or cannot be created.
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
        for entry in path.iterdir() if path.is_dir() else ():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        remove_empty(above)
        if is_full(error):
            raise RunError(f"{full_disk([path])}: make room there, or name another folder with --out.") from error
        if isinstance(error, PermissionError | NotADirectoryError):
            raise ConfigError(
                f"'{path}' cannot be written ({error.strerror}): name another folder with --out."
            ) from error
        raise


def missing(path: Path) -> list[Path]:
    """Return those of a folder and its parents that do not exist, the innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove the empty ones of these folders, the innermost first."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def is_full(error: BaseException) -> bool:
    """Say whether an error means a full disk or quota; of safetensors and tokenizers only the message tells it."""
    if isinstance(error, OSError):
        return error.errno in FULL
    from_rust = type(error) is Exception or type(error).__name__ == "SafetensorError"
    return from_rust and any(f"(os error {code})" in str(error) for code in FULL)


def caused_by_full_disk(error: BaseException | None) -> bool:
    """Say whether an error, or one that it was raised from or while handling, means a full disk or quota."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if is_full(error):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def full_disk(folders: Iterable[Path]) -> str:
    """Return a clause that names the fullest disk of these folders, and its free space."""
    room = {folder: _room(folder) for folder in folders}
    folder = min(room, key=lambda path: room[path])
    return f"The disk that holds '{folder}' is full, or your share of it ({room[folder] / 1e6:.1f} MB are free)"


def _room(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    for place in (folder, *folder.absolute().parents):
        if place.exists():
            return shutil.disk_usage(place).free
    return 0


_UNSAFE = re.compile(r"[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, separators of lines, directions of writing, and halves of surrogate pairs."""


def json_line(data: object, **settings: Any) -> str:
    """Return data as JSON that people can read in any script, and that no text in it can break into lines or bytes that
    are no UTF-8; takes the settings of `json.dumps`."""
    text = json.dumps(data, ensure_ascii=False, **settings)
    # JSON has these in its strings alone, where an escape means the same.
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
