"""The client's side of encrypted sums: what it encrypts, and which sum it agrees to, and opens.

All clients have one key. A dishonest server that could have anything opened would read every update and, by a crafted
ciphertext, the key. So a client opens a sum only where its tags show that it is that of the clients' own numbers, each
once and as the same list of members was told to all of them; where more than two thirds of the members have agreed to
these clients; and once in a round. The server has no part of the key and can make no agreement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hmac import compare_digest

import numpy as np
import torch
from torch import Tensor

from weft.core.secret import Secret
from weft.core.types import Update
from weft.errors import ClientFailed
from weft.protection import fixed_point
from weft.protection.ciphertexts import Cipher
from weft.protection.hidden import WIDTH, grid_of, hidden_of
from weft.protection.members import Member, digest, names_of, names_tensor, to_tensor, transcript
from weft.protection.opening import threshold
from weft.protection.sums import heaviest_in, to_integers
from weft.protection.tags import COUNT, TAG_PRIME, tags_of

TOKEN_BYTES = 32
TRIES = 8
"""Ciphertexts that a client opens, or tries to, in one attempt of a round."""


@dataclass(frozen=True)
class Client(Member):
    """A client in one attempt of a round of encrypted sums."""

    cipher: Cipher
    run: str
    """Names the run, so that nothing of it counts in another that has the same key."""

    def seal(
        self, update: Update, values: Mapping[str, Tensor], bound: float, sealed: np.ndarray, *, bare: bool
    ) -> Update:
        """Return the update, encrypted.

        Args:
            update: before it is encrypted.
            values: what the server said of the sum.
            bound: largest absolute value of a number.
            sealed: bool, for each number whether it is encrypted; the others are sent as they are.
            bare: as of `to_integers`.

        Raises:
            ClientFailed: what the server said contradicts what the client has answered, or would show it alone.
        """
        members = self._members(values)
        self.check_closed()
        grid = grid_of(bound, len(members), heaviest_in(values))
        total, names = to_integers(update, grid, None, bare=bare)
        # One attempt has one pad of the tags: the difference of two updates under it, or of two choices of what is
        # encrypted, would be a valid part of any sum, and two sums opened would show the update of one client.
        about = (total.numbers.tobytes(), total.counts.tobytes(), np.packbits(sealed).tobytes())
        self.promise("encrypted numbers", digest(*about))
        numbers = hidden_of(total, sealed)
        tags = tags_of(numbers, self._tag_secret, [self.party.name], self._about(values))
        streams = {
            "values": self.cipher.encrypt(np.concatenate([tags, numbers])),
            "open": fixed_point.pack(total.numbers[~sealed], WIDTH),
            "metrics": names_tensor(names),
        }
        return replace(update, streams={"encrypted": streams}, weight=1.0, metrics={})

    def agree(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the agreement (32,) uint8 to open a sum over these clients, and none over others in this round."""
        return to_tensor(self._token(self.party.name, self.survivors(values, self._members(values)), values))

    def open(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the numbers of the sum to which the members have agreed, packed.

        Raises:
            ClientFailed: it is not that sum, or they have not.
        """
        members = self._members(values)
        survivors = self.survivors(values, members)
        tokens, sealed = values.get("tokens"), values.get("sum")
        if tokens is None or tokens.dtype != torch.uint8 or tuple(tokens.shape) != (len(survivors), TOKEN_BYTES):
            raise ClientFailed("was shown no agreement to open a sum")
        agreed = sum(
            compare_digest(token.numpy().tobytes(), self._token(name, survivors, values))
            for name, token in zip(survivors, tokens, strict=True)
        )
        if agreed < threshold(len(members)):
            raise ClientFailed(
                f"was asked to open a sum to which {agreed} of {len(members)} clients have agreed, and it takes "
                f"{threshold(len(members))}"
            )
        if sealed is None or sealed.dim() != 3:
            raise ClientFailed("was sent no sum to open")
        self._count_try(hashlib.sha256(sealed.contiguous().numpy().data).hexdigest())
        opened = self.cipher.open(sealed)
        tags, numbers = opened[:COUNT], opened[COUNT:]
        if (tags % TAG_PRIME != tags_of(numbers, self._tag_secret, survivors, self._about(values))).any():
            raise ClientFailed("was asked to open what is no sum of the updates of the clients that it names")
        return {"numbers": fixed_point.pack(numbers.view(np.uint64), WIDTH)}

    def _count_try(self, word: str) -> None:
        """Keep a ciphertext in mind; ClientFailed after many others.

        Whether one can be opened tells a bit of its noise, and enough such bits would tell the key. A server that was
        killed asks again for the same sum, which has been encrypted anew.
        """
        for number in range(TRIES):
            if self.party.promises.keep(self.party.round, f"ciphertexts {number} {self.attempt}", word):
                return
        raise ClientFailed(f"was asked to open {TRIES} other ciphertexts in one attempt of a round")

    @cached_property
    def _tag_secret(self) -> Secret:
        return Secret(self.cipher.secret.bytes(32, "tags", self.run))

    def _about(self, values: Mapping[str, Tensor]) -> tuple[str, ...]:
        return (*self.about, transcript(values))

    def _members(self, values: Mapping[str, Tensor]) -> list[str]:
        members, name = names_of(values.get("members")), self.party.name
        if name not in members:
            raise ClientFailed("was sent members of a sum without itself")
        if len(members) < self.least:
            raise ClientFailed(f"was asked to join a sum of {len(members)}, and {self.least} are the fewest")
        self.promise("members", digest(*(one.encode() for one in members)))
        return members

    def _token(self, name: str, survivors: list[str], values: Mapping[str, Tensor]) -> bytes:
        word = digest(*(one.encode() for one in survivors))
        return self.cipher.secret.bytes(TOKEN_BYTES, "agrees", self.run, *self._about(values), name, word)
