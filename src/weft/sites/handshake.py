"""The handshake: the server asks every site whether it agrees to a run, and what it has."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from weft.core.texts import printable
from weft.errors import ConfigError, RunError
from weft.federation.clients import Clients, InMemory
from weft.launch.population import Population
from weft.runtimes.remote import RemoteSites
from weft.sites.policy import agreement

HANDSHAKE_BYTES = 1 << 16
"""Bytes of a site's answer to the hello."""
MOST_ROWS = 1 << 31
"""Rows that a site may claim: more than anybody has, and few enough to count with."""


class RemoteRows:
    """Rows that are elsewhere: they can be counted, not read."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Any:
        raise IndexError("these rows are at their site")


def _places(counts: list[int]) -> list[range]:
    """Return the numbers of every site's rows; nothing is allocated for what a site claims to have."""
    ends = list(accumulate(counts))
    return [range(end - count, end) for end, count in zip(ends, counts, strict=True)]


@dataclass(frozen=True)
class Handshake:
    """All sites in their order; those that take no part have no rows."""

    names: list[str]
    rows: list[int]
    held: list[int]
    refused: dict[str, str]
    words: dict[str, bytes]
    """The hello that each was said."""
    agreed: str
    cohorts: dict[str, int]
    """Good updates that a round must have for a site that takes part to be one of them, where it asks for that."""

    def same(self, name: str, raw: bytes) -> bool:
        """Say whether a site answers as it did."""
        said, place = _read(raw), self.names.index(name)
        found = (said.get("rows"), said.get("held"), said.get("agreed"), _least(said))
        return found == (self.rows[place], self.held[place], self.agreed, self.cohorts.get(name, 0))

    def population(self) -> Population:
        """Return them as the population of a run."""
        train, held = _places(self.rows), _places(self.held)
        sites = Clients(self.names, train, held, RemoteRows(sum(self.rows)), InMemory())
        clients = [
            {"name": name, "rows": rows, "held": held}
            for name, rows, held in zip(self.names, self.rows, self.held, strict=True)
        ]
        split = {"strategy": "clients", "clients": clients, "skew": {}, "refused": self.refused}
        absent = tuple(place for place, rows in enumerate(self.rows) if not rows)
        return Population(self.names, sites, sites, {}, None, {}, split, absent=absent)


class Terms(NamedTuple):
    """What sites are asked to agree to."""

    run: dict[str, Any]
    """The run's keys."""
    base: str
    """The hash of the server's model."""
    birth: str
    """What tells the run from an earlier one of its name."""
    version: str
    """Of Weft here."""
    cohort: int
    """Clients of a round, at most."""
    min_clients: int
    """Sites without which the run does not begin."""


def shake_hands(
    remote: RemoteSites, terms: Terms, order: list[str], there: list[str], note: Callable[[str], None]
) -> Handshake:
    """Ask all sites to agree to the run, and go on with those that do.

    Args:
        remote: asks them.
        terms: what they are asked to agree to.
        order: all sites.
        there: those that can be asked.
        note: told who takes no part, and why.

    Raises:
        ConfigError: too few take part.
        RunError: too few take part, and some could not be asked.
    """
    wanted = agreement(terms.run, terms.base, terms.version)
    count = min(terms.cohort, len(order))
    handshake = {"run": terms.run, "id": remote.run, "clients": count, "base": terms.base, "birth": terms.birth}
    words = {name: json.dumps(handshake | {"index": i}).encode() for i, name in enumerate(order)}
    refused: dict[str, str] = {}
    found: dict[str, dict[str, Any]] = {}
    answers = remote.ask_all({name: raw for name, raw in words.items() if name in there})
    away = sum(isinstance(answers.get(name, ""), str) for name in order)
    for name in order:
        raw = answers.get(name, "it is not connected")
        said = _read(raw) if isinstance(raw, bytes) else {"refused": raw}
        if "refused" not in said and said.get("agreed") != wanted:
            said = {"refused": "it has another version of Weft, or read another run"}
        if "refused" in said:
            refused[name] = printable(str(said["refused"]))
        else:
            found[name] = said
    agreed = len(found)
    _hold_quorum(found, refused, terms.cohort)
    if away:  # sites that ask for a larger cohort may have it when the others are there
        away += agreed - len(found)
    for name, why in refused.items():
        note(f"the site '{name}' takes no part: {why}.")
    least, part = max(1, terms.min_clients), len(found)
    if part < least:
        why = "; ".join(f"{name}: {said}" for name, said in refused.items())
        few = f"{part} of {len(order)} sites take part, too few for a round ({why})."
        raise RunError(few) if part + away >= least else ConfigError(few)
    rows = [int(found[name]["rows"]) if name in found else 0 for name in order]
    held = [int(found[name]["held"]) if name in found else 0 for name in order]
    return Handshake(order, rows, held, refused, words, wanted, {name: _least(said) for name, said in found.items()})


def _hold_quorum(found: dict[str, dict[str, Any]], refused: dict[str, str], sample: int) -> None:
    """Move sites whose smallest cohort is more than those that take part from `found` to `refused`.

    Each that leaves makes the cohort smaller, so they are looked at again until all that stay have enough.
    """
    while few := {name: said for name, said in found.items() if _least(said) > min(sample, len(found))}:
        count = min(sample, len(found))
        for name, said in few.items():
            del found[name]
            refused[name] = f"{count} take part in a round, and this site asks for {_least(said)} at least"


def _least(said: dict[str, Any]) -> int:
    """Return the smallest cohort that a site asks for."""
    return int(said.get("least", 0))


def _read(raw: bytes) -> dict[str, Any]:
    """Return what a site says to a hello; what is no such thing is a refusal."""
    try:
        said = json.loads(raw[:HANDSHAKE_BYTES])
        rows, held = int(said.get("rows", 0)), int(said.get("held", 0))
        if "refused" in said or (0 < rows < MOST_ROWS and 0 <= held < MOST_ROWS and int(said.get("least", 0)) >= 0):
            return dict(said)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        pass
    return {"refused": "its answer cannot be read"}
