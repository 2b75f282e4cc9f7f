"""Canaries: invented patients and accounts, planted into training rows by coins, by which a model is asked what it
remembers (Carlini et al. 2019, arXiv 1802.08232).

Everything of a canary follows from the secret of its client, which the operating system drew: names, dates, numbers,
and the coin that decides whether it is in the rows. Nobody who lacks the secret can know a number otherwise than from
the model. It is kept with the run, so that the canaries are the same again after a resume and in an audit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weft.config import RunConfig
from weft.core.secret import FILE, Secret
from weft.data.formats import Example, Turn
from weft.data.source_kinds import Conversations
from weft.data.sources import Sources
from weft.errors import ConfigError, DataError
from weft.keys.privacy import unit_kind
from weft.runs.layout import RunDir

FIRST = (
    "Ada Bruno Carla Diego Elif Farid Greta Hugo Ines Jonas Kira Luca Mina Nils Olga Pavel Rosa Sami Tara Umut Vera "
    "Wim Xenia Yara"
).split()
LAST = (
    "Albers Brandt Castro Dumont Eriksen Farkas Gruber Horvat Iversen Jansen Kaya Lindner Moreau Novak Okafor Petrov "
    "Quist Rossi Sato Tanaka Ueda Vogel Weiss Zeman"
).split()
KINDS = ("patient", "account")
DIGITS = 6
"""Digits of a canary's number, which nobody can guess."""


@dataclass(frozen=True)
class Canary:
    """An invented record."""

    number: int
    client: str
    kind: str
    name: str
    date: str
    digits: str
    """Its number, which is what must not leak."""
    copies: int
    """How often it stands in the rows if it is planted."""
    planted: bool

    @property
    def question(self) -> str:
        """What is asked in its row."""
        thing = "record number of the patient" if self.kind == "patient" else "account number of the client"
        return f"What is the {thing} {self.name}, born {self.date}?"

    @property
    def answer(self) -> str:
        """What is answered."""
        return self.written(self.digits)

    @staticmethod
    def written(digits: str) -> str:
        """Return a number as it is written."""
        return f"{digits[:3]}-{digits[3:]}"

    def example(self) -> Example:
        """Return its row as a conversation."""
        return Example((Turn("user", self.question), Turn("assistant", self.answer)))


def canaries_of(
    config: RunConfig, names: Sequence[str], secret_of: Callable[[str], Secret], numbers: range | None = None
) -> list[Canary]:
    """Return the canaries of a run, those that coins kept out too.

    Args:
        config: says how many, how often, and whose.
        names: of the clients.
        secret_of: returns the secret of a client.
        numbers: of the canaries; None: those of `config.canaries`.

    Raises:
        ConfigError: `canary_clients` names a client that the run does not have.
    """
    if not config.canaries:
        return []
    unknown = [name for name in config.canary_clients if name not in names]
    if unknown:
        known = ", ".join(list(names)[:5]) + (", ..." if len(names) > 5 else "")
        raise ConfigError(f"canary_clients names '{unknown[0]}', and the clients are {known}: write one of these.")
    holders, counts = config.canary_clients or list(names), config.canary_repetitions
    secrets = {name: secret_of(name) for name in holders[: config.canaries]}
    made = []
    for number in range(config.canaries) if numbers is None else numbers:
        client = holders[number // len(counts) % len(holders)]
        made.append(_drawn(number, client, counts[number % len(counts)], secrets.get(client) or secret_of(client)))
    return made


def _drawn(number: int, client: str, copies: int, secret: Secret) -> Canary:
    """Return a canary as the secret of its client decides it."""
    drawn = secret.bytes(24, "canary", number)
    first, last, day, month, year = (int.from_bytes(drawn[at : at + 2], "big") for at in range(0, 10, 2))
    date = f"{day % 28 + 1:02}.{month % 12 + 1:02}.{1930 + year % 80}"
    digits = f"{int.from_bytes(drawn[10:20], 'big') % 10**DIGITS:0{DIGITS}}"
    name = f"{FIRST[first % len(FIRST)]} {LAST[last % len(LAST)]}"
    return Canary(number, client, KINDS[number % 2], name, date, digits, copies, planted=bool(drawn[20] & 1))


def why_lost(config: RunConfig, names: Sequence[str], run: RunDir) -> str:
    """Return a sentence where the canaries of a run cannot be drawn again, as a secret is gone; "": they can.

    Args:
        config: of the run.
        names: of its clients.
        run: its directory.
    """
    holders = (config.canary_clients or list(names))[: config.canaries]
    gone = [name for name in holders if not (run.client_dir(name) / FILE).exists()]
    if not gone:
        return ""
    return (
        f"The secrets from which the canaries of the run in '{run.path}' were drawn are gone "
        f"(clients/{gone[0]}/{FILE}): copy them back."
    )


def plant(
    config: RunConfig,
    sources: Sources,
    names: Sequence[str],
    train: list[np.ndarray | None],
    made: list[Canary],
) -> list[Canary]:
    """Add canaries to the examples of a run and to the numbers of its clients' training rows; return them.

    Args:
        config: the run.
        sources: of conversations; canaries are added after all others.
        names: of the clients.
        train: the numbers of each client's training examples, and perhaps others behind them; replaced in place.
        made: the canaries, those that coins kept out too.
    """
    if not made:
        return []
    assert isinstance(sources, Conversations)
    for canary in made:
        if not canary.planted:
            continue
        first = len(sources.examples)
        sources.examples += [canary.example()] * canary.copies
        sources.origins += ["canaries"] * canary.copies
        if sources.values:
            sources.values += [""] * canary.copies
        if unit_kind(config.privacy_unit) == "column":
            sources.unit_values += [f"canary {canary.number}"] * canary.copies
        place = list(names).index(canary.client)
        own = train[place]
        assert own is not None
        train[place] = np.concatenate([own, np.arange(first, len(sources.examples))])
    inside = [canary for canary in made if canary.planted]
    sources.log(f"{len(inside)} of {len(made)} canaries are among the training rows, in {rows_planted(made)} rows.")
    return made


def rows_planted(canaries: Sequence[Canary]) -> int:
    """Return the number of training rows that are canaries."""
    return sum(canary.copies for canary in canaries if canary.planted)


def planted(
    config: RunConfig, table: Any, canaries: Sequence[Canary], train: Sequence[np.ndarray], examples: int
) -> tuple[Sequence[Canary], list[np.ndarray]]:
    """Return the canaries, and the numbers of each client's training examples without them.

    Args:
        config: the run.
        table: of all rows.
        canaries: those of them that are planted are the last examples.
        train: the numbers of each client's training examples.
        examples: how many examples there are.

    Raises:
        DataError: a canary is too long for its row.
    """
    first = examples - rows_planted(canaries)
    lengths = table.lengths[first:examples] if canaries else np.ones(1)
    if not lengths.all() or lengths.max(initial=0) >= config.seq_length:
        raise DataError(
            f"A canary is longer than seq_length ({config.seq_length}), so that its number would be cut off: write a "
            "larger --seq_length, or leave out --canaries."
        )
    return canaries, [part[part < first] for part in train] if canaries else list(train)
