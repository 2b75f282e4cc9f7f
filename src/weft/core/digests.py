"""What a file holds, in a few letters: XXH3 (Collet), 128 bits, of all of it.

It is as fast as memory, so a base of many gigabytes costs the reading of it from disk, which loading it costs too and
which the second of the two gets from the cache of the system. What was found of a large file is kept beside the
tokens; it holds as long as the file has the same place, size and times, of which no program can set the time of change.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from weft.core.files import write_atomic

BLOCK = 1 << 24
LARGE = 1 << 26
"""Bytes from which on a file is not read again."""


def digest_of(parts: Iterable[bytes | str]) -> str:
    """Return the digest of texts and bytes, one behind the other."""
    import xxhash

    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def file_digest(path: Path, kept_in: Path | None = None) -> str:
    """Return the digest of a file's content.

    Args:
        path: of the file.
        kept_in: a folder in which the digests of large files are kept.
    """
    seen = os.stat(path)
    if kept_in is None or seen.st_size < LARGE:
        return _read(path)
    what = [os.path.realpath(path), seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns]
    kept = kept_in / digest_of([json.dumps(what)])
    with contextlib.suppress(OSError, UnicodeDecodeError):
        found = kept.read_text(encoding="ascii")
        if len(found) == 32:
            return found
    found = _read(path)
    with contextlib.suppress(OSError):  # it is only slower without
        kept_in.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, found.encode())
    return found


def _read(path: Path) -> str:
    with open(path, "rb", buffering=0) as file:
        return digest_of(iter(lambda: file.read(BLOCK), b""))
