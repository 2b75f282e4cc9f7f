"""What a part of the exchange sees of a party and of a round: `Party`, `Identity`, `Coding`, `Gathering`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from weft.core.promises import EvaluationPromises, Promises
from weft.core.secret import BYTES, Common, Secret
from weft.core.types import (
    Message,
    Reply,
    Streams,
    Tensors,
)

EVALUATION = "evaluation"
"""Before what a client draws, promises and signs for the sum of an evaluation."""
Exchange = Callable[[Sequence[Message]], Iterable[Reply]]
"""Carries messages to the clients and yields their replies, in any order, failures included."""


class Identity(Protocol):
    """The certificate of a client, by which others know what comes from it in this run."""

    def sign(self, text: bytes) -> bytes:
        """Return a proof that this client has said a text in this run."""
        ...

    def vouches(self, name: str, text: bytes, proof: bytes) -> bool:
        """Return whether a proof shows that the client of this name has said a text in this run."""
        ...


@dataclass(frozen=True)
class Party:
    """The server or a client in one round, as one part of the exchange sees it."""

    name: str
    """Name of the client; "" for the server."""
    round: int
    attempt: int = 0
    """Number of repeated rounds of the run so far: random numbers of one attempt are never used in another."""
    memory: Streams = field(default_factory=dict)
    """The part's memory at this party."""
    open_secret: Callable[[], Secret] = Secret.random
    told: Tensors = field(default_factory=dict)
    """What the server told this part at a client (`Privacy.told`)."""
    promises: Promises = field(default_factory=Promises)
    """What a client has bound itself to."""
    identity: Identity | None = None
    """Of a client that has a certificate."""
    common: Callable[[Callable[[], bytes]], Common] | None = None
    """At a client: returns what all clients have in common; in a simulation its argument makes the key at first use."""
    quorum: int = 0
    """At the server: updates without which the round is repeated; at a client: fewest clients whose updates its site
    policy lets be averaged, or whose shares make up the noise."""
    heaviest: float = 1.0
    """At the server: the largest weight that a client of the round may have."""
    alike: bool = False
    """All clients of a sum are sent the same model, from which their masks and tags follow."""
    kept: Streams = field(default_factory=dict)
    """At the server: what a protection puts here is added to its memory when the round is committed."""

    @property
    def secret(self) -> Secret:
        """The party's secret, drawn at its first use."""
        return self.open_secret()

    def evaluating(self) -> Party:
        """Return the client in the sum of an evaluation, which has nothing in common with that of a round.

        Its keys, its promises and what it signs are others: no answer in the one sum counts in the other.
        """
        common, identity = self.common, self.identity
        return replace(
            self,
            open_secret=lambda: Secret(self.secret.bytes(BYTES, EVALUATION)),
            promises=EvaluationPromises(self.promises),
            identity=None if identity is None else EvaluationIdentity(identity),
            common=None if common is None else lambda make: _evaluating(common(make)),
        )


@dataclass(frozen=True)
class EvaluationIdentity:
    """A client's certificate in evaluations: what it has said of a round's updates proves nothing there."""

    identity: Identity

    def sign(self, text: bytes) -> bytes:
        """Return a proof, as `Identity.sign`."""
        return self.identity.sign(EVALUATION.encode() + text)

    def vouches(self, name: str, text: bytes, proof: bytes) -> bool:
        """Return whether a proof is one, as `Identity.vouches`."""
        return self.identity.vouches(name, EVALUATION.encode() + text, proof)


def _evaluating(common: Common) -> Common:
    """Return what clients have in common, under another name of the run."""
    return common._replace(run=f"{common.run} {EVALUATION}")


class Coding(NamedTuple):
    """The context of an encoded message, which both ends know."""

    client: str
    round: int
    version: int
    """The server's version of the parameters that the client begins from."""
    seed: int
    """Public seed of this client, round and attempt, the same at both ends."""
    like: Streams
    """Tensors of the names, shapes and dtypes of the decoded message; their values mean nothing."""
    round_seed: int = 0
    """Public seed of this round, the same for all clients."""


@dataclass(frozen=True)
class Gathering:
    """One round as an aggregator sees it before the updates come."""

    party: Party
    """The server, with the aggregator's memory."""
    cohort: int
    """Updates that are used where all clients answer, that of `trusted` included."""
    params: Tensors = field(default_factory=dict)
    """The shared parameters before the round, and the frozen factors beside them."""
    scale: float | None = None
    """The s of s B A where LoRA factors are trained."""
    trusted: str = ""
    """The client that has the server's own rows; "": none has."""
    loss: Callable[[Tensors], float] | None = None
    """Returns the loss on the server's own rows with these of the shared parameters replaced; None: there are none."""
