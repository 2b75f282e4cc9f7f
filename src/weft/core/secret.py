"""The secret of a party: 32 bytes from the operating system, and the random numbers that are derived from them.

Noise, masks and keys must never follow from the seed of a run, which every party knows. A party draws a secret once and
saves it beside its checkpoint; the random numbers of a round are a pseudo-random function of the secret, the round and
the purpose. So a resumed run draws the same numbers again, and no other party can.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from weft.core.files import sync_directory
from weft.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

BYTES = 32
FILE = "secret.key"
"""Name of the secret's file; its mode is 0600."""
COMMON_FILE = "clients.key"
"""Name of the file that all simulated clients have in common; its mode is 0600."""


class Common(NamedTuple):
    """What all clients of a run have in common, and the server must not have."""

    key: bytes
    run: str = ""
    """Names the run among those in which the key is used."""


class Secret:
    """The secret of one party; it is never printed, and never sent."""

    def __init__(self, key: bytes) -> None:
        """Take the 32 bytes."""
        if len(key) != BYTES:
            raise ValueError(f"a secret has {BYTES} bytes, not {len(key)}")
        self._key = key

    @classmethod
    def random(cls) -> Secret:
        """Return a new secret that is not saved."""
        return cls(os.urandom(BYTES))

    @classmethod
    def load_or_create(cls, file: Path) -> Secret:
        """Return the secret in a file of mode 0600; it is drawn and saved where there is no file.

        Raises:
            ConfigError: the file is damaged, so the numbers of earlier rounds cannot be drawn again.
        """
        key = read_or_create(file, lambda: os.urandom(BYTES))
        if len(key) != BYTES:
            raise ConfigError(
                f"The secret in '{file}' has {len(key)} bytes instead of {BYTES}, so the run cannot draw again what it "
                "drew before: restore the file, or begin a new run."
            )
        return cls(key)

    def __repr__(self) -> str:
        return "Secret(...)"

    def bytes(self, count: int, *purpose: str | int) -> bytes:
        """Return `count` pseudo-random bytes for a purpose: SHAKE-256 of the secret and the purpose (FIPS 202)."""
        sponge = hashlib.shake_256(self._key)
        for word in purpose:
            text = f"{type(word).__name__}:{word}".encode()
            # The length prefix makes the encoding of several words injective: ("ab", "c") differs from ("a", "bc").
            sponge.update(len(text).to_bytes(8, "little") + text)
        return sponge.digest(count)

    def uniform(self, count: int, *purpose: str | int) -> np.ndarray:
        """Return float64 numbers strictly between 0 and 1, of 52 random bits each, shape (count,)."""
        # 52 bits and the half step are what a float64 holds exactly: neither 0 nor 1, whose quantiles are infinite.
        bits = np.frombuffer(self.bytes(8 * count, *purpose), dtype="<u8") >> np.uint64(12)
        numbers: np.ndarray = (bits.astype(np.float64) + 0.5) * 2.0**-52
        return numbers

    def normal(self, shape: tuple[int, ...], *purpose: str | int) -> Tensor:
        """Return float64 numbers of the standard normal distribution, of the given shape."""
        import torch  # not at the top: finished runs are read without it

        numbers = torch.from_numpy(self.uniform(int(np.prod(shape, dtype=np.int64)), *purpose))
        values: Tensor = torch.special.ndtri(numbers)
        return values.reshape(shape)

    def laplace(self, count: int, scale: float, *purpose: str | int) -> np.ndarray:
        """Return integers z of the discrete Laplace distribution, P(z) ~ exp(-|z| / scale), shape (count,)."""
        tails = np.log(self.uniform(2 * count, *purpose)) * -scale
        first, second = np.floor(tails).astype(np.int64).reshape(2, count)  # geometric, from 0
        difference: np.ndarray = first - second
        return difference


def read_or_create(file: Path, make: Callable[[], bytes]) -> bytes:
    """Return the content of a file of mode 0600, which is made where there is no file: the same for all who ask."""
    if not file.exists():
        with suppress(FileExistsError):
            file.parent.mkdir(parents=True, exist_ok=True)
            # Written completely before it gets its name: a process that is killed here leaves no partial secret.
            draft = file.with_name(f".{file.name}.{os.getpid()}.tmp")
            try:
                descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "wb") as out:
                    out.write(make())
                    out.flush()
                    os.fsync(out.fileno())
                os.link(draft, file)  # fails where the name exists, unlike a rename
            finally:
                draft.unlink(missing_ok=True)
            sync_directory(file.parent)
    if file.stat().st_mode & 0o077:
        file.chmod(0o600)
    return file.read_bytes()
