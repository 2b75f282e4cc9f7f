"""CKKS ciphertexts of whole numbers: TenSEAL makes and opens them, and arrays of integers add them.

A ciphertext is two polynomials of N coefficients modulo one prime, in the form in which addition is by coefficient. So
whoever adds needs no library and no key, and checks what arrives as numbers: the bytes of others never reach TenSEAL's
reader but behind a header that is written here. Numbers are whole, and the noise of a sum stays far below half of one
(tested), so what is opened is exact: it depends on the numbers alone and tells nothing of the noise, which a decrypted
sum of approximate numbers would tell together with the key (Li and Micciancio 2020, eprint 2020/1533).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from weft.core.secret import BYTES, Secret
from weft.errors import ClientFailed, ConfigError, MissingExtra
from weft.protection.members import digest

if TYPE_CHECKING:
    import tenseal

N, SLOTS = 8192, 4096
"""Degree of the polynomials, and numbers in a ciphertext."""
PRIMES = (60, 60)
"""Bits of the two primes of a key: 120 of the 218 that 128 bits of security allow at this degree. A ciphertext has the
first."""
PRIME = 0xFFFFFFFFFFE8001
SCALE = 2.0**20
"""Of the encoding: the noise of one fresh ciphertext has a standard deviation of 210 of them, the unit is so many."""
LARGEST = 2.0**38
"""Largest absolute value of a sum: times the scale it stays below half of the prime."""
CLIENTS = 1 << 12
"""Most ciphertexts in a sum: their noise then is below a twentieth of half a unit."""
NEAR = 0.25
"""How far from a whole number an opened one may be."""
MOST_KEY = 1 << 18
"""Longest key that is read, in bytes."""
BYTES_EACH = 2 * N * 8
"""Bytes of a ciphertext."""
_PARAMETERS = bytes.fromhex("7614ee5cda3ff32ab3769decd18ea7e14d7cba11e9de2aed1a5b05f9f449f994")
"""SEAL's hash of the parameters."""
_SEAL = b"\x5e\xa1\x10\x04\x03\x00\x00\x00"
"""How SEAL's objects begin that are not compressed."""
_LENGTHS = struct.Struct("<BQQQdQ")
_BODY = _SEAL + struct.pack("<QQ", 24 + BYTES_EACH, 2 * N)
_HEADER = _PARAMETERS + _LENGTHS.pack(1, 2, N, 1, SCALE, 1) + _BODY
_ZSTD = 2


def check_library() -> None:
    """Raise MissingExtra where the package tenseal is not installed."""
    try:
        import tenseal  # noqa: F401
    except ImportError:
        raise MissingExtra("tenseal", "he", "protection ckks") from None


def new_key() -> bytes:
    """Return a new key, as bytes: whoever has them reads everything. TenSEAL draws it from the operating system."""
    import tenseal

    kind = {"scheme": tenseal.SCHEME_TYPE.CKKS, "encryption_type": tenseal.ENCRYPTION_TYPE.SYMMETRIC}
    context = tenseal.context(poly_modulus_degree=N, coeff_mod_bit_sizes=list(PRIMES), **kind)
    context.global_scale = SCALE
    raw: bytes = context.serialize(
        save_public_key=False, save_secret_key=True, save_galois_keys=False, save_relin_keys=False
    )
    return raw


class Cipher:
    """Encrypts and opens with a key."""

    def __init__(self, raw: bytes) -> None:
        """Open a key.

        Args:
            raw: bytes of `new_key`.

        Raises:
            ConfigError: they are no such key.
        """
        import tenseal

        self.secret = Secret(bytes.fromhex(digest(b"weft ckks", raw))[:BYTES])
        """For what else the owners of the key have in common; it does not tell the key."""
        try:
            if len(raw) > MOST_KEY:
                raise ValueError("too long")
            self._context: Any = tenseal.context_from(raw)
            if not self._context.is_private() or _of_vector(self._vector(np.zeros(1)))[0] != _HEADER:
                raise ValueError("another kind")
        except Exception:  # whatever the library says of bytes that are no key
            raise ConfigError("The key of encrypted sums is damaged, or of another kind: make another.") from None

    @property
    def fingerprint(self) -> str:
        """What tells whether two parties have one key, and nothing else of it."""
        return self.secret.bytes(16, "fingerprint").hex()

    def encrypt(self, numbers: np.ndarray) -> Tensor:
        """Return whole numbers (n,) as ciphertexts, int64 of shape (ceil(n / SLOTS), 2, N)."""
        out = np.empty((-(-len(numbers) // SLOTS), 2, N), dtype=np.int64)
        for place in range(len(out)):
            piece = numbers[place * SLOTS : (place + 1) * SLOTS].astype(np.float64)
            _, body = _of_vector(self._vector(piece))
            out[place] = np.frombuffer(body, dtype="<i8").reshape(2, N)
        return torch.from_numpy(out)

    def open(self, sealed: Tensor) -> np.ndarray:
        """Return the whole numbers in ciphertexts, int64 of shape (SLOTS times as many,).

        Raises:
            ClientFailed: these are no ciphertexts of such numbers under this key.
        """
        import tenseal

        if not fits(sealed, len(sealed)):
            raise ClientFailed("was sent what is no sum of ciphertexts")
        out = np.empty(len(sealed) * SLOTS, dtype=np.int64)
        for place, one in enumerate(sealed.numpy()):
            try:
                vector = tenseal.ckks_vector_from(self._context, _to_vector(one.astype("<i8").tobytes()))
                values = np.array(vector.decrypt(), dtype=np.float64)
            except Exception:  # whatever the library says
                raise ClientFailed("was sent ciphertexts that cannot be opened") from None
            whole = np.rint(values)
            if len(values) != SLOTS or not np.isfinite(values).all() or np.abs(whole).max() > LARGEST:
                raise ClientFailed("was sent ciphertexts under another key")
            if np.abs(values - whole).max() > NEAR:
                raise ClientFailed("was sent ciphertexts that hold no whole numbers, so they are no sum of clients'")
            out[place * SLOTS : (place + 1) * SLOTS] = whole.astype(np.int64)
        return out

    def _vector(self, values: np.ndarray) -> tenseal.CKKSVector:
        import tenseal

        full = np.zeros(SLOTS)
        full[: len(values)] = values
        return tenseal.ckks_vector(self._context, full)


def fits(sealed: Tensor | None, count: int) -> bool:
    """Say whether a tensor has the form of so many ciphertexts."""
    if sealed is None or sealed.dtype != torch.int64 or tuple(sealed.shape) != (count, 2, N):
        return False
    return count == 0 or (int(sealed.min()) >= 0 and int(sealed.max()) < PRIME)


def empty(count: int) -> Tensor:
    """Return the sum of no ciphertexts."""
    return torch.zeros(count, 2, N, dtype=torch.int64)


def add(total: Tensor, sealed: Tensor) -> None:
    """Add ciphertexts to a sum, in place."""
    for one, other in zip(total, sealed, strict=True):  # one at a time: they stay in the cache
        one += other
        one -= PRIME * (one >= PRIME)


def _of_vector(vector: tenseal.CKKSVector) -> tuple[bytes, bytes]:
    """Return header and body of the one ciphertext in a vector of TenSEAL's (protocol buffers, then SEAL's format)."""
    from zstandard import ZstdDecompressor

    raw: bytes = vector.serialize()
    sizes, at = _field(raw, 0, 1)
    content, _ = _field(raw, at, 2)
    text = content[16:]
    if content[5] == _ZSTD:
        text = ZstdDecompressor().decompress(text, max_output_size=len(_HEADER) + BYTES_EACH)
    assert sizes
    return text[: len(_HEADER)], text[len(_HEADER) :]


def _to_vector(body: bytes) -> bytes:
    """Return the bytes that TenSEAL reads as a vector of one ciphertext."""
    content = _SEAL + struct.pack("<Q", 16 + len(_HEADER) + len(body)) + _HEADER + body
    sizes = _varint(SLOTS)
    scale = b"\x19" + struct.pack("<d", SCALE)
    return b"\x0a" + _varint(len(sizes)) + sizes + b"\x12" + _varint(len(content)) + content + scale


def _field(raw: bytes, at: int, number: int) -> tuple[bytes, int]:
    """Return the bytes of a field of protocol buffers, and where the next one begins."""
    assert raw[at] == number << 3 | 2
    length, shift, at = 0, 0, at + 1
    while True:
        length |= (raw[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if raw[at - 1] < 0x80:
            return raw[at : at + length], at + length


def _varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])
