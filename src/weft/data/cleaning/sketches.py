"""MinHash sketches in files, by which clients compare rows without showing them; hashes are keyed by a secret.

Whoever has the secret can compute the sketch of any text and see whether a client has it, or one like it. Whoever has
it not, such as the server, sees how many rows a client has and how alike these are, and no text of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from weft.core.files import write_atomic
from weft.errors import ConfigError

LEAST = 16
"""Bytes of a secret at least."""
MOST = 1 << 26
"""Numbers in a file at most."""
NAME = "sketches"


class Form(NamedTuple):
    """What two sketches must have in common to be compared."""

    hashes: int
    shingle: int
    secret: str
    """The mark of the secret: equal for equal secrets, and nothing follows from it."""


def read_secret(file: str) -> bytes:
    """Return the secret in a file; ConfigError where there is none, or a short one."""
    try:
        secret = Path(file).expanduser().read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"The secret of sketches '{file}' cannot be read ({error.strerror}): `openssl rand -hex 32 > FILE` makes "
            "one, which all clients need and the server must not have."
        ) from None
    if len(secret) < LEAST:
        raise ConfigError(
            f"The secret of sketches '{file}' has {len(secret)} bytes, and {LEAST} are the least: `openssl rand -hex "
            "32 > FILE` makes one."
        )
    return secret


def mark_of(secret: bytes) -> str:
    """Return the mark of a secret."""
    return hashlib.blake2b(b"weft: mark of a secret of sketches", key=_short(secret), digest_size=16).hexdigest()


def keyed_hash(secret: bytes) -> Callable[[bytes], int]:
    """Return the hash of shingles, 32 bits, that nobody can compute without the secret."""
    key = _short(secret)
    return lambda shingle: int.from_bytes(hashlib.blake2b(shingle, key=key, digest_size=4).digest(), "little")


def write(file: Path, owner: str, form: Form, values: np.ndarray) -> None:
    """Write the sketches of a client, (rows, hashes) uint32, in random order: rows are not to be told by their place.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    # From the operating system: the order of the rows is a secret of the client.
    shuffled = values[np.random.default_rng().permutation(len(values))]
    write_atomic(file, save({NAME: shuffled}, {"owner": owner, "form": json.dumps(form)}))


def read(file: str, form: Form) -> tuple[str, np.ndarray]:
    """Return whose sketches a file has, and the sketches, (rows, hashes) uint32.

    Raises:
        ConfigError: it cannot be read, or its sketches cannot be compared with those of this form.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(file).expanduser()
    try:
        with safe_open(path, framework="numpy") as opened:
            header, values = opened.metadata() or {}, opened.get_tensor(NAME)
        owner, found = str(header["owner"]), Form(*json.loads(header["form"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"'{file}' holds no sketches ({type(error).__name__}): `weft clean --sketches FILE` writes them."
        ) from None
    if values.dtype != np.uint32 or values.ndim != 2 or values.size > MOST or values.shape[1] != found.hashes:
        raise ConfigError(f"'{file}' holds no sketches of {found.hashes} numbers each: ask '{owner}' for a new file.")
    if found.secret != form.secret:
        raise ConfigError(f"The sketches in '{file}' are made with another secret: use one near_duplicates.key.")
    if found != form:
        raise ConfigError(
            f"The sketches in '{file}' have {found.hashes} hashes of {found.shingle} words, and here are {form.hashes} "
            f"of {form.shingle}: use the same near_duplicates.hashes and near_duplicates.shingle."
        )
    return owner, values


def _short(secret: bytes) -> bytes:
    """Return the key of BLAKE2, which takes 64 bytes at most."""
    return hashlib.blake2b(secret).digest()
