"""The members of a masked sum, as the server names them to everybody: names, public keys, and who vouches for them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weft.errors import ClientFailed
from weft.protection.masking import KEY_BYTES, neighbours, words

MAX_MEMBERS = 1 << 14


class Keys(NamedTuple):
    """What a client publishes for one attempt of a round."""

    cipher: bytes
    """X25519, for shares on their way through the server."""
    mask: bytes
    """X25519, for the masks that it shares with others."""
    commitment: bytes
    """To the seed of its own mask."""
    proof: bytes = b""
    """Its signature of the three, where the parties have certificates."""

    def text(self, name: str, round: int, attempt: int) -> bytes:
        """Return what is signed."""
        return words("weft masks", name, str(round), str(attempt)) + self.cipher + self.mask + self.commitment


def to_tensor(raw: bytes) -> Tensor:
    """Return bytes as a tensor (n,) uint8."""
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy())


def to_bytes(value: Tensor | None) -> bytes:
    """Return the bytes of a tensor of uint8.

    Raises:
        ClientFailed: it is no such tensor.
    """
    if value is None or value.dtype != torch.uint8:
        raise ClientFailed("was sent a message of secure aggregation that lacks a part")
    raw: bytes = value.contiguous().numpy().tobytes()
    return raw


def digest(*parts: bytes) -> str:
    """Return a digest of parts, each of which counts with its length."""
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()


def names_of(value: Tensor | None) -> list[str]:
    """Return the sorted names in a tensor; ClientFailed if it holds none."""
    try:
        names = json.loads(to_bytes(value))
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or names != sorted(set(names)):
        raise ClientFailed("was sent a list of members that is none")
    return names


def names_tensor(names: Sequence[str]) -> Tensor:
    """Return names as a tensor that `names_of` reads."""
    return to_tensor(json.dumps(sorted(names)).encode())


@dataclass(frozen=True)
class Members:
    """All clients that published keys in an attempt of a round, sorted by name."""

    keys: dict[str, Keys]
    graph: int = 0
    """Neighbours of each; 0: all others."""

    @cached_property
    def names(self) -> list[str]:
        """Their names, sorted."""
        return sorted(self.keys)

    @cached_property
    def raw(self) -> bytes:
        """The list as it is sent."""
        entries = {name: [base64.b64encode(part).decode() for part in self.keys[name]] for name in self.names}
        return json.dumps({"graph": self.graph, "members": entries}, sort_keys=True).encode()

    @cached_property
    def peers(self) -> dict[str, list[str]]:
        """Those with whom each member shares masks."""
        return neighbours(self.names, self.graph, self.raw)

    @classmethod
    def read(cls, raw: bytes) -> Members:
        """Return the members of a list; ClientFailed if it is none."""
        try:
            record = json.loads(raw)
            entries = record["members"].items()
            keys = {name: Keys(*(base64.b64decode(part, validate=True) for part in parts)) for name, parts in entries}
            members = cls(keys, int(record["graph"]))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ClientFailed("was sent a list of public keys that is none") from None
        sizes = {len(part) for one in keys.values() for part in one[:3]}
        if not 0 < len(keys) <= MAX_MEMBERS or sizes != {KEY_BYTES} or members.graph % 2 or members.graph < 0:
            raise ClientFailed("was sent a list of public keys that is none")
        public = [part for one in keys.values() for part in (one.cipher, one.mask)]
        if len(set(public)) < len(public):
            raise ClientFailed("was sent a list in which two members have one public key")
        return members

    def holders(self, name: str) -> list[str]:
        """Return who holds a share of a member's secrets: itself and its peers, sorted."""
        return sorted([name, *self.peers[name]])

    def threshold(self, name: str) -> int:
        """Return the number of shares that give a member's secret: more than two thirds of them."""
        return 2 * len(self.holders(name)) // 3 + 1
