"""Digests of whole files: XXH3 (Collet), 128 bits, 32 hexadecimal digits.

The hash runs at the speed of memory, so a base of many gigabytes costs one read from disk; loading it then reads from
the page cache. The digest of a large file is cached beside the tokens, under its path, size and times. A program can
set the time of modification back, but not the time of change (ctime), so an edited file is always read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from weft.core.files import write_atomic

BLOCK = 1 << 24
LARGE = 1 << 26
"""Smallest size in bytes of a file whose digest is cached."""


def digest_of(parts: Iterable[bytes | str]) -> str:
    """Return the digest of the concatenation of texts (in UTF-8) and bytes."""
    import xxhash

    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits: for what people or other programs compare."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path, cache: Path | None = None) -> str:
    """Return the digest of a file's content.

    Args:
        path: of the file.
        cache: folder of the digests of large files; None: always read the file.
    """
    stat = os.stat(path)
    if cache is None or stat.st_size < LARGE:
        return _read(path)
    identity = [os.path.realpath(path), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    entry = cache / digest_of([json.dumps(identity)])
    # A damaged cache entry counts as none.
    with contextlib.suppress(OSError, UnicodeDecodeError):
        digest = entry.read_text(encoding="ascii")
        if len(digest) == 32:
            return digest
    digest = _read(path)
    with contextlib.suppress(OSError):  # without the cache it is only slower
        cache.mkdir(parents=True, exist_ok=True)
        write_atomic(entry, digest.encode())
    return digest


def _read(path: Path) -> str:
    with open(path, "rb", buffering=0) as file:
        return digest_of(iter(lambda: file.read(BLOCK), b""))
