"""The client's side of masked sums: what it publishes, shares, masks and reveals, and what it refuses.

All secrets of an attempt are derived from the client's secret, so a process that was killed goes on where it was. What
a client has answered is in its promises: one list of members, one set of survivors, one opened sum for a round. With
shares of which more than two thirds are needed, no server gets both the own mask and the shared masks of a client from
fewer than a third of dishonest holders, whatever it tells whom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from weft.core.types import Streams, Update
from weft.errors import ClientFailed
from weft.protection import masking, shamir
from weft.protection.fixed_point import WHOLE
from weft.protection.members import (
    Keys,
    Member,
    Members,
    digest,
    names_of,
    names_tensor,
    to_bytes,
    to_tensor,
    transcript,
)
from weft.protection.sums import Grid, as_tensors, heaviest_in, to_integers, vector_names

SEALED_BYTES = 2 * shamir.SHARE_BYTES + 16
"""Two shares, encrypted and authenticated."""


@dataclass(frozen=True)
class Client(Member):
    """A client in one attempt of a round of masked sums."""

    graphs: tuple[int, ...]
    """Neighbours that the server may announce: with fewer than the run has, fewer dishonest sites read an update."""

    def _secret(self, purpose: str) -> bytes:
        return self.party.secret.bytes(32, "masks", purpose, self.party.round, self.attempt)

    def keys(self) -> Keys:
        """Return what it publishes."""
        keys = Keys(
            masking.public_key(self._secret("cipher key")),
            masking.public_key(self._secret("mask key")),
            masking.commitment(self._secret("own mask")),
        )
        identity = self.party.identity
        text = keys.text(self.party.name, self.party.round, self.attempt)
        return keys if identity is None else keys._replace(proof=identity.sign(text))

    def shares(self, raw: bytes) -> Tensor:
        """Return (peers, SEALED_BYTES) uint8: shares of its two secrets for each peer, sorted by name."""
        members = self._members(raw)
        name = self.party.name
        holders = members.holders(name)
        shares = [self._split(purpose, members) for purpose in ("own mask", "mask key")]
        rows = []
        for peer in members.peers[name]:
            place = holders.index(peer) + 1
            text = shares[0][place] + shares[1][place]
            key = masking.agree(self._secret("cipher key"), members.keys[peer].cipher, "shares", name, peer)
            rows.append(masking.seal(key, text, masking.words(name, peer, *self.about)))
        return to_tensor(b"".join(rows)).reshape(len(rows), SEALED_BYTES)

    def mask(
        self, update: Update, values: Mapping[str, Tensor], bound: float, bits: int, *, bare: bool = False
    ) -> Update:
        """Return the update under masks that only a sum over all members takes off.

        Args:
            update: before it is masked.
            values: what the server sent beside the task: the members, and those of them that take part.
            bound: largest absolute value of a number.
            bits: of a number, where the server has announced the bound of each tensor; 0: 32 bits of the modulus.
            bare: as of `to_integers`.

        Raises:
            ClientFailed: what the server sent contradicts what the client has answered, or would show it alone.
        """
        members, cohort = self._cohort(values)
        name = self.party.name
        self.check_closed()
        grid = read_grid(values, bound, bits, len(members.names), len(vector_names(update.streams)))
        # Rounding protects nobody: it is the same in every run of the same seed.
        draws = int(digest(masking.words("rounding", name, *self.about)), 16)
        total, names = to_integers(update, grid, np.random.default_rng(draws), bare=bare)
        self.promise("masked", digest(total.numbers.tobytes(), total.counts.tobytes()))
        about = (*self.about, transcript(values))
        total.add_masks(self._secret("own mask"), 1)
        for peer in members.peers[name]:
            if peer in cohort:
                key = pair_key(self._secret("mask key"), members.keys[peer].mask, (name, peer), about)
                total.add_masks(key, 1 if name < peer else -1)
        streams: Streams = {"masked": as_tensors(total, grid.width) | {"metrics": names_tensor(names)}}
        return replace(update, streams=streams, weight=1.0, metrics={})

    def reveal(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return (holders, 33) uint8: for each peer that took part, and itself at the end, one share.

        Of a survivor it is a share of its own mask, of the others a share of the key of their shared masks.
        """
        members, cohort = self._cohort(values)
        survivors, name = self.survivors(values, cohort), self.party.name
        sealed = values.get("shares")
        peers = [peer for peer in members.peers[name] if peer in cohort]
        if sealed is None or sealed.dtype != torch.uint8 or tuple(sealed.shape) != (len(peers), SEALED_BYTES):
            raise ClientFailed("was not sent back the shares that it holds")
        rows = [
            self._unseal(members, peer, sealed[number].numpy().tobytes(), peer in survivors)
            for number, peer in enumerate(peers)
        ]
        own = self._split("own mask", members)[members.holders(name).index(name) + 1]
        return to_tensor(b"".join([*rows, own])).reshape(-1, shamir.SHARE_BYTES)

    def _unseal(self, members: Members, peer: str, sealed: bytes, survives: bool) -> bytes:
        """Return the share of a peer that is asked for; zeros where its sender sealed nothing that can be read."""
        name = self.party.name
        key = masking.agree(self._secret("cipher key"), members.keys[peer].cipher, "shares", peer, name)
        text = masking.unseal(key, sealed, masking.words(peer, name, *self.about))
        if text is None:
            return bytes(shamir.SHARE_BYTES)
        return text[: shamir.SHARE_BYTES] if survives else text[shamir.SHARE_BYTES :]

    def _split(self, purpose: str, members: Members) -> dict[int, bytes]:
        holders = members.holders(self.party.name)
        random = partial(self._random, f"{purpose} shares")
        return shamir.split(
            self._secret(purpose), range(1, len(holders) + 1), members.threshold(self.party.name), random
        )

    def _random(self, purpose: str, count: int) -> bytes:
        return self.party.secret.bytes(count, "masks", purpose, self.party.round, self.attempt)

    def _members(self, raw: bytes) -> Members:
        """Return the members of an attempt after checking them; ClientFailed if the list cannot be trusted."""
        members = Members.read(raw)
        name, own = self.party.name, self.keys()
        if name not in members.keys or members.keys[name][:3] != own[:3]:
            raise ClientFailed("was sent a list in which its own public key was replaced")
        if members.graph not in self.graphs:
            raise ClientFailed(f"was asked to share masks with {members.graph} others, which the run does not say")
        if len(members.names) < self.least:
            raise ClientFailed(f"was asked to join a sum of {len(members.names)}, and {self.least} are the fewest")
        identity = self.party.identity
        for peer, keys in members.keys.items():
            text = keys.text(peer, self.party.round, self.attempt)
            if identity is not None and peer != name and not identity.vouches(peer, text, keys.proof):
                raise ClientFailed(f"was sent a public key of '{peer}' that its certificate does not vouch for")
        self.promise("members", digest(raw))
        return members

    def _cohort(self, values: Mapping[str, Tensor]) -> tuple[Members, list[str]]:
        """Return the members, and those of them that shared their secrets, after checking them."""
        members = self._members(to_bytes(values.get("members")))
        cohort = names_of(values.get("cohort"))
        name = self.party.name
        if name not in cohort or not set(cohort) <= set(members.names):
            raise ClientFailed("was sent a cohort that is not of the members")
        holders = [holder for holder in members.holders(name) if holder in cohort]
        if len(cohort) < self.least or len(holders) < members.threshold(name):
            raise ClientFailed(
                f"was asked to mask with {len(cohort)} of {len(members.names)} clients, too few to open the sum later"
            )
        self.promise("cohort", digest(*(one.encode() for one in cohort)))
        return members, cohort


def read_grid(values: Mapping[str, Tensor], bound: float, bits: int, terms: int, tensors: int) -> Grid:
    """Return what the integers of a sum stand for, as the server announced it.

    Args:
        values: what the server sent to everybody in the sum.
        bound, bits: of the run.
        terms: members of the sum.
        tensors: of an update.

    Raises:
        ClientFailed: no update can be brought to such integers.
    """
    heaviest, near = heaviest_in(values), values.get("near") if bits else None
    announced = values.get("bounds") if near is None else near
    if announced is None:
        return Grid(bound, terms, heaviest)
    bounds = tuple(announced.double().reshape(-1).tolist())
    if len(bounds) != tensors or not all(0 < one <= bound for one in bounds):
        raise ClientFailed("was sent bounds of tensors that cannot be")
    return Grid(bound, terms, heaviest, WHOLE if near is None else bits, bounds=bounds)


def pair_key(secret: bytes, peer: bytes, names: tuple[str, str], about: Sequence[str]) -> bytes:
    """Return the secret of the masks that two clients share."""
    return masking.agree(secret, peer, *sorted(names), *about)
