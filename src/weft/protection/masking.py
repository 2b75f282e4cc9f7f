"""Keys, masks and sealed shares of secure aggregation, from the package cryptography.

X25519 agrees on secrets (RFC 7748), HKDF-SHA256 derives a key for each purpose (RFC 5869), AES-256 in counter mode
stretches a key to a mask (NIST SP 800-38A), ChaCha20-Poly1305 seals shares on their way through the server (RFC 8439).
The protocol around them is written here and has had no review from outside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from weft.errors import ClientFailed, MissingExtra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

KEY_BYTES = 32
NONCE = b"\0" * 12
"""A key seals one message only."""
CHUNK = 1 << 16
"""Numbers of a mask that are made at a time, so that they stay in the processor's cache."""
SPARE = 15
"""Bytes that the library wants beyond those that it writes."""


def check_library() -> None:
    """Raise MissingExtra where the package cryptography is not installed."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise MissingExtra("cryptography", "masks", "protection masks") from None


def private_key(key: bytes) -> X25519PrivateKey:
    """Return the X25519 key of 32 secret bytes."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(key)


def public_key(key: bytes) -> bytes:
    """Return the 32 public bytes of 32 secret bytes."""
    return private_key(key).public_key().public_bytes_raw()


def agree(key: bytes, peer: bytes, *purpose: str) -> bytes:
    """Return 32 bytes that only the owners of a secret key and of the peer's public key can compute.

    Args:
        key: own secret bytes.
        peer: the other's public bytes.
        purpose: words that both use; another purpose gives other bytes.

    Raises:
        ClientFailed: the peer's bytes are no key.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    try:
        shared = private_key(key).exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:  # a point of low order gives everybody the same secret
        raise ClientFailed("was sent a public key that is none") from None
    return derive(shared, *purpose)


def derive(key: bytes, *purpose: str) -> bytes:
    """Return the 32 bytes that HKDF-SHA256 derives from a key for a purpose."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), KEY_BYTES, None, words(*purpose)).derive(key)


def words(*purpose: str) -> bytes:
    """Return words as bytes, each after its length: no two lists of words are the same bytes."""
    return b"".join(len(text).to_bytes(4, "big") + text for text in (word.encode() for word in purpose))


def add_mask(numbers: np.ndarray, key: bytes, sign: int) -> None:
    """Add a mask to unsigned integers (n,) in place, or take it off: modulo 2^32, or 2^64.

    Args:
        numbers: uint32 or uint64; changed in place.
        key: 32 bytes that are used for this mask alone.
        sign: 1 or -1.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    stream = Cipher(algorithms.AES(key), modes.CTR(b"\0" * 16)).encryptor()
    size, most = numbers.itemsize, min(CHUNK, len(numbers))
    zeros, room = memoryview(bytes(size * most)), bytearray(size * most + SPARE)
    mask = np.frombuffer(room, dtype=f"<u{size}", count=most)
    for at in range(0, len(numbers), CHUNK):
        piece = numbers[at : at + CHUNK]
        stream.update_into(zeros[: size * len(piece)], room)
        (np.add if sign > 0 else np.subtract)(piece, mask[: len(piece)], out=piece)


def seal(key: bytes, text: bytes, about: bytes) -> bytes:
    """Encrypt and authenticate a text; `about` is authenticated with it. A key is used once."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return ChaCha20Poly1305(key).encrypt(NONCE, text, about)


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes | None:
    """Return the text that was sealed with this key and about this, or None."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        return ChaCha20Poly1305(key).decrypt(NONCE, sealed, about)
    except InvalidTag:
        return None


def commitment(secret: bytes) -> bytes:
    """Return what is published of 32 random bytes, so that they are known when they are put together again."""
    return hashlib.sha256(b"weft mask commitment" + secret).digest()


def neighbours(names: Sequence[str], size: int, public: bytes) -> dict[str, list[str]]:
    """Return for each client those with whom it shares masks, sorted: all, or `size` of them.

    The clients stand in a circle, in an order that a hash of everybody's public keys decides, and each has the nearest
    size / 2 on both sides (Bell et al. 2020, eprint 2020/704): nobody can choose its neighbours.

    Args:
        names: of the clients, sorted.
        size: even number of neighbours; 0: all others.
        public: everybody's public keys.
    """
    if not size or size >= len(names) - 1:
        return {name: [other for other in names if other != name] for name in names}
    circle = sorted(names, key=lambda name: hashlib.sha256(public + words(name)).digest())
    steps = [step for step in range(-(size // 2), size // 2 + 1) if step]
    return {name: sorted(circle[(place + step) % len(circle)] for step in steps) for place, name in enumerate(circle)}
