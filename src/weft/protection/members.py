"""The members of a sum, as the server names them to everybody: names, public keys, and what each of them promises."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weft.core import tensors
from weft.core.party import Party
from weft.core.types import Probe, Request, Tensors
from weft.errors import ClientFailed, SumOpened
from weft.protection.masking import KEY_BYTES, neighbours, words

MAX_MEMBERS = 1 << 14
MODEL = "model"
"""What is said of the model, where all clients are sent the same one."""
METRICS = 60
"""Bytes of the names of a client's metrics of training, about."""


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


@dataclass(frozen=True)
class Member:
    """A client in one attempt of a round, and what it has promised there."""

    party: Party
    attempt: int
    least: int
    """Fewest members of a sum in which it takes part."""

    @property
    def about(self) -> tuple[str, str]:
        """The words for round and attempt, on which all that is secret depends."""
        return str(self.party.round), str(self.attempt)

    def promise(self, purpose: str, word: str) -> None:
        """Keep to one word for a purpose in this attempt; ClientFailed where another was given."""
        if not self.party.promises.keep(self.party.round, f"{purpose} {self.attempt}", word):
            raise ClientFailed(f"was asked twice for one attempt of a round, with other {purpose}")

    def check_closed(self) -> None:
        """Raise SumOpened where the client has opened a sum of the round in another attempt."""
        opened = self.party.promises.kept(self.party.round, "opened")
        if opened is not None and opened != str(self.attempt):
            raise SumOpened

    def survivors(self, values: Mapping[str, Tensor], cohort: Collection[str]) -> list[str]:
        """Return whose sum is to be opened, after promising to open no other; ClientFailed where it must not be.

        Args:
            values: what the server sent.
            cohort: who could take part.
        """
        survivors, name = names_of(values.get("survivors")), self.party.name
        if not set(survivors) <= set(cohort) or name not in survivors:
            raise ClientFailed("was asked to open a sum of clients that did not take part in it")
        if len(survivors) < self.least:
            raise ClientFailed(f"was asked to open a sum of {len(survivors)} clients, and {self.least} are the fewest")
        if not self.party.promises.keep(self.party.round, "opened", str(self.attempt)):
            raise ClientFailed("has opened another sum of this round")
        self.promise("survivors", digest(*(one.encode() for one in survivors)))
        return survivors


def model_of(request: Request, stream: str, party: Party) -> Tensors:
    """Return what is said of the model, MODEL with its digest (32,) uint8; nothing where clients are sent unlike ones.

    A server that sent all others a model whose scores it knows beforehand, or on which their updates are nothing, would
    see the score or the update of one (Pasquini et al. 2022, arXiv 2111.07380).

    Args:
        request: to one client: a task, or the probe of an evaluation, in which all models are alike.
        stream: with what is said of the sum, which is not of the model.
        party: who asks, which knows whether tasks are alike.
    """
    if not isinstance(request, Probe) and not party.alike:
        return {}
    extra = {name: values for name, values in request.extra.items() if name != stream}
    sponge = hashlib.sha256()
    tensors.soak(sponge.update, {"params": request.params, **extra})
    return {MODEL: to_tensor(sponge.digest())}


def transcript(values: Mapping[str, Tensor]) -> str:
    """Return a digest of what the server says to everybody in a sum.

    Masks and tags follow from it, so that they fit between those alone who have heard the same. A server that announced
    to all others a weight or bounds that turn their updates to zero would see the update of one.
    """
    names = ("members", "cohort", "heaviest", "bounds", "near", MODEL)
    return digest(
        *(
            value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            for name in names
            if (value := values.get(name)) is not None
        )
    )
