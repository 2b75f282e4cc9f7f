"""Secure aggregation by homomorphic encryption: the server adds ciphertexts (CKKS), and a client opens the sum.

All clients have one key, and the server has none (Cheon et al. 2017, doi 10.1007/978-3-319-70694-8_15; Zhang et al.
2020, BatchCrypt, for the setting). Three exchanges a round: encrypted updates, agreement to a sum, opening. The sum is
returned to the server in the clear. A client that gave its key to the server would show it everybody's updates, which
masks do not risk; ciphertexts also are eight times as large as numbers. See docs/wire.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

from weft.core.party import Party
from weft.core.types import ProtectionReply, ProtectionRequest, Reply, Streams, Task, Update
from weft.errors import ClientFailed, ConfigError
from weft.protection.ciphertexts import BYTES_EACH, Cipher, check_library, new_key
from weft.protection.ckks_client import Client
from weft.protection.ckks_server import AGREE, OPEN, CkksOpening
from weft.protection.hidden import chosen, matches
from weft.protection.sealed import SealedSums

cipher_of = lru_cache(maxsize=4)(Cipher)
"""Returns a key opened: it takes a while, and all messages of a run have the same."""


@dataclass(frozen=True)
class Ckks(SealedSums):
    """Ciphertexts that are added; see above."""

    encrypt: list[str] | None = field(default=None, metadata={"key": "encrypt"})
    """Globs, or parts of names, of the tensors that are encrypted; the others are seen by the server. None: all are."""

    draws_secrets: ClassVar[bool] = False
    shares_key: ClassVar[bool] = True
    word: ClassVar[str] = "ciphertexts"
    fewer_bytes: ClassVar[str] = "write --codec none --protection masks --protection_args bits=9"

    def __post_init__(self) -> None:
        check_library()
        super().__post_init__()

    @property
    def remark(self) -> str:
        """What is hidden and what is not."""
        plain = (
            f" Only tensors that match {', '.join(self.encrypt)} are encrypted: the server sees all others of every "
            "client."
            if self.encrypt
            else ""
        )
        return (
            "all clients hold one key and the server has none: one client and the server together could read every "
            f"update (masks do not risk this).{plain} The server sees sums of updates and of training metrics; who "
            "takes part, when, the number of rows and the scores of held-out rows are not hidden (docs/wire.md)."
        )

    def check(self, names: Collection[str]) -> None:
        """Raise ConfigError where no tensor is encrypted."""
        if not any(matches(name, self.encrypt or ()) for name in names):
            raise ConfigError(
                f"encrypt ({', '.join(self.encrypt or ())}) fits no shared tensor, such as "
                f"{next(iter(names), 'none')}: write a part of a name, or a glob, or leave it out to encrypt all."
            )

    def new_key(self) -> bytes:
        """Return a new key for all clients."""
        return new_key()

    def fingerprint(self, key: bytes) -> str:
        """Return what tells whether two clients have one key; ConfigError for no key."""
        return cipher_of(key).fingerprint

    def largest(self, update_bounds: tuple[int, int]) -> tuple[int, int]:
        """Return upper bounds of an encrypted update, and of a reply with the sum."""
        size, tensors = update_bounds
        return 16 * size + 2 * BYTES_EACH + 32 * 8 * tensors + (1 << 20), tensors + 8

    def answer(self, request: ProtectionRequest, party: Party) -> Reply:
        """Agree to a sum, or open it, at the client."""
        client, values = self._client(party, request.attempt), request.streams.get(request.phase, {})
        if request.phase == AGREE:
            sent = {"token": client.agree(values)}
        elif request.phase == OPEN:
            sent = client.open(values)
        else:
            raise ClientFailed(f"knows no message '{request.phase}' of encrypted sums")
        return ProtectionReply(request.client, request.round, request.phase, {request.phase: sent})

    def seal(self, update: Update, task: Task, party: Party) -> Update:
        """Encrypt an update at the client."""
        values, sealed = task.extra.get(CkksOpening.stream, {}), chosen(update.streams, self.encrypt or ())
        client = self._client(party, task.attempt)
        return client.seal(update, values, self.bound, sealed, bare=self.unit == "client")

    def opening(self, tasks: Mapping[str, Task], like: Streams, server: Party) -> CkksOpening:
        """Return an encrypted sum, at the server."""
        return CkksOpening(tasks, like, server, self.bound, self.min_contributors, self.encrypt or ())

    def _client(self, party: Party, attempt: int) -> Client:
        if party.common is None:
            raise ClientFailed("has no key for encrypted sums")
        common = party.common(new_key)
        least = max(self.min_contributors, party.quorum)
        return Client(party, attempt, least, cipher_of(common.key), common.run)
