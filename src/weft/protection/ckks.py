"""Secure aggregation by homomorphic encryption: the server adds ciphertexts (CKKS), and a client opens the sum.

All clients have one key, and the server has none (Cheon et al. 2017, doi 10.1007/978-3-319-70694-8_15; Zhang et al.
2020, BatchCrypt, for the setting). Three exchanges a round: encrypted updates, agreement to a sum, opening. The sum is
returned to the server in the clear. A client that gave its key to the server would show it everybody's updates, which
masks do not risk; ciphertexts also are eight times as large as numbers. See docs/wire.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

import numpy as np

from weft.core.party import Party
from weft.core.types import ProtectionReply, ProtectionRequest, Reply, Request, Streams, Update
from weft.errors import ClientFailed, ConfigError
from weft.protection.ciphertexts import BYTES_EACH, CLIENTS, SLOTS, Cipher, check_library, new_key
from weft.protection.ckks_client import TOKEN_BYTES, Client
from weft.protection.ckks_server import AGREE, OPEN, CkksOpening
from weft.protection.fixed_point import packed_size
from weft.protection.groups import groups_of
from weft.protection.hidden import WIDTH, blocks_of, chosen, matches
from weft.protection.members import METRICS, model_of, names_tensor
from weft.protection.sealed import SealedSums
from weft.protection.tags import COUNT

cipher_of = lru_cache(maxsize=4)(Cipher)
"""Returns a key opened: it takes a while, and all messages of a run have the same."""


SECONDS, OPENING = 0.55, 0.36
"""CPU seconds to encrypt a million numbers, and to open a sum of as many: AMD EPYC, AVX512 (benchmarks/masks.py)."""


@dataclass(frozen=True)
class Ckks(SealedSums):
    """Ciphertexts that are added; see above."""

    encrypt: list[str] | None = field(default=None, metadata={"key": "encrypt"})
    """Globs, or parts of names, of the tensors that are encrypted; the others are seen by the server. None: all are."""

    cohort: int = field(default=0, metadata={"key": "sample_clients"})
    """Clients of a round."""

    draws_secrets: ClassVar[bool] = False
    shares_key: ClassVar[bool] = True
    word: ClassVar[str] = "ciphertexts"
    fewer_bytes: ClassVar[str] = "write --codec none --protection masks --protection_args bits=9"

    def __post_init__(self) -> None:
        check_library()
        super().__post_init__()
        if min(2 * self.group_size or self.cohort, self.cohort) > CLIENTS:
            raise ConfigError(
                f"sample_clients is {self.cohort}, and at most {CLIENTS} ciphertexts are added: write a smaller "
                "--sample_clients, or a --group_size of 2048 or less."
            )

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
            f"update (masks do not risk this).{plain} The server sees sums of updates, of training metrics and of "
            "scores; who takes part, when, and the number of rows are not hidden (docs/wire.md)."
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

    def traffic(self, like: Streams, encoded: int, names: Sequence[str], round: int) -> tuple[float, float]:
        """Return the mean bytes of lists and the sum to a client, and of all that it sends; see the base class."""
        count = max(1, len(names) // groups_of(len(names), self.group_size))
        sealed = chosen(like, self.encrypt or ())
        blocks, some = blocks_of(like, sealed), len(names_tensor(names[:count]))
        up = blocks * BYTES_EACH + packed_size(int(np.count_nonzero(~sealed)), WIDTH) + METRICS + TOKEN_BYTES
        opened = packed_size(blocks * SLOTS - COUNT, WIDTH)  # by one of them
        asked = 2 * some + 8
        return some + 8 + asked + (asked + TOKEN_BYTES * count + blocks * BYTES_EACH) / count, up + opened / count

    def work(self, like: Streams) -> str:
        """Return the seconds of encryption, in words."""
        sealed = chosen(like, self.encrypt or ())
        count = int(np.count_nonzero(sealed))
        part = "" if sealed.all() else f"{100 * count / len(sealed):.3g} % of the numbers are encrypted. "
        return (
            f"{part}Encryption takes about {SECONDS * count / 1e6:.3g} s of one core per client and round, and opening "
            f"the sum {OPENING * count / 1e6:.3g} s at one client."
        )

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

    def seal(self, update: Update, task: Request, party: Party) -> Update:
        """Encrypt an update at the client."""
        stream, sealed = CkksOpening.stream, chosen(update.streams, self.encrypt or ())
        values = task.extra.get(stream, {}) | model_of(task, stream, party)
        client = self._client(party, task.attempt)
        return client.seal(update, values, self.bound, sealed, bare=self.unit == "client")

    def opening(self, tasks: Mapping[str, Request], like: Streams, server: Party) -> CkksOpening:
        """Return an encrypted sum, at the server."""
        return CkksOpening(tasks, like, server, self.bound, self.min_contributors, self.encrypt or ())

    def _client(self, party: Party, attempt: int) -> Client:
        if party.common is None:
            raise ClientFailed("has no key for encrypted sums")
        common = party.common(new_key)
        least = max(self.min_contributors, party.quorum)
        return Client(party, attempt, least, cipher_of(common.key), common.run)
