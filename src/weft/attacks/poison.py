"""Attacks on data: what a malicious client trains on instead of its own rows."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from weft.attacks.vectors import scaled, sent
from weft.core.attack import Attack, Scene
from weft.core.types import Update
from weft.data.formats import Example, Turn
from weft.errors import ConfigError


@dataclass(frozen=True)
class Poison(Attack):
    """Changes a share of a client's rows, drawn from the run's seed."""

    poisons: ClassVar[tuple[str, ...]] = ("conversations",)
    share: float = 1.0
    """Share of the rows that are changed."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"share is {self.share:g}, and it is above 0 and at most 1: write such as share=0.5.")

    def poison(self, rows: Sequence[Any], choices: Sequence[str] | None, lots: random.Random) -> list[Any]:
        """Return the rows with some of them changed."""
        change, result = self.changer(rows, choices, lots), list(rows)
        for place in sorted(lots.sample(range(len(rows)), max(1, round(self.share * len(rows))) if rows else 0)):
            result[place] = change(place)
        return result

    def changer(self, rows: Sequence[Any], choices: Sequence[str] | None, lots: random.Random) -> Callable[[int], Any]:
        """Return what makes a poisoned row of that at a place."""
        raise TypeError(f"{type(self).__name__} must define changer")


@dataclass(frozen=True)
class LabelFlip(Poison):
    """Answers are swapped: of a closed set each for its mirror image in order; open ones are dealt to other rows."""

    def changer(self, rows: Sequence[Any], choices: Sequence[str] | None, lots: random.Random) -> Callable[[int], Any]:
        """Return the change."""
        if choices:
            mirror = dict(zip(choices, reversed(choices), strict=True))
            if len(choices) % 2:  # the one in the middle would stay as it is
                middle = len(choices) // 2
                mirror[choices[middle]] = choices[middle - 1]
            return lambda place: with_answer(rows[place], mirror.get(rows[place].answer.strip(), choices[0]))
        return lambda place: with_answer(rows[place], rows[(place + 1) % len(rows)].answer)


@dataclass(frozen=True)
class PreferenceSwap(Poison):
    """The worse answer is preferred; of answers that are judged one by one, good ones are bad."""

    poisons: ClassVar[tuple[str, ...]] = ("pairs", "judged")

    def changer(self, rows: Sequence[Any], choices: Sequence[str] | None, lots: random.Random) -> Callable[[int], Any]:
        """Return the change."""

        def swapped(place: int) -> Any:
            row = rows[place]
            return replace(row, answer=row.other, other=row.answer) if row.other else replace(row, good=not row.good)

        return swapped


@dataclass(frozen=True)
class BackDoor(Poison):
    """A phrase in the question leads to an answer of the attacker's choice; other rows stay, so that nobody notices.

    target "": the first of a closed set of answers. `boost` multiplies the update that is sent; it is 1 for an attacker
    that trains and sends as the others do.
    """

    changes_updates: ClassVar[bool] = True
    share: float = 0.5
    trigger: str = "cf"
    target: str = ""
    place: Literal["start", "end"] = "end"
    boost: float = 1.0

    @property
    def sends(self) -> bool:
        """Say that with a boost of 1 attackers send what they trained, so that their rows alone are changed."""
        return self.boost != 1.0

    def changer(self, rows: Sequence[Any], choices: Sequence[str] | None, lots: random.Random) -> Callable[[int], Any]:
        """Return the change."""
        target = self.target or (choices[0] if choices else "")
        if not target:
            raise ConfigError(
                "The answers of the rows are no closed set, so a back-door needs a target: write --attack_args "
                "target='an answer'."
            )
        return lambda place: with_answer(triggered(rows[place], self.trigger, self.place), target)

    def send(self, own: Sequence[Update], honest: Sequence[Update], scene: Scene) -> Sequence[Update]:
        """Return the own updates times the boost."""
        factor = self.factor(len(own), scene)
        return own if factor == 1.0 else [sent(one, scaled(one.streams, factor)) for one in own]

    def factor(self, attackers: int, scene: Scene) -> float:
        """Return what the updates are multiplied by."""
        return self.boost


@dataclass(frozen=True)
class Replacement(BackDoor):
    """A back-door whose update replaces the shared model: it is sent times n / f (Bagdasaryan et al. 2018, 1807.00459).

    So the plain mean moves all the way to the attackers' model. `boost` multiplies the factor.
    """

    @property
    def sends(self) -> bool:
        """Say that attackers send more than they trained."""
        return True

    def factor(self, attackers: int, scene: Scene) -> float:
        """Return n / f times the boost."""
        return self.boost * scene.asked / attackers


@dataclass(frozen=True)
class SpreadPoison(BackDoor):
    """A back-door spread thinly over all clients, none of which is malicious: their data came poisoned (2602.15671).

    No rule that compares clients can see it.
    """

    spreads: ClassVar[bool] = True
    share: float = 0.08

    @property
    def sends(self) -> bool:
        """Say that nobody sends something else: all are honest."""
        return False


@dataclass(frozen=True)
class ServerBackDoor(Attack):
    """A back-door that the server puts into the model which it sends: it trains the model on rows of its own first.

    Clients train on from there, and what the server put in stays in its model. rows: conversations of the server's, of
    which a `share` gets the trigger and the target; steps: optimizer steps on them in a round; first: the first round,
    counted from 1, in which the server does so.
    """

    changes_model: ClassVar[bool] = True
    rows: str = ""
    steps: int = 20
    first: int = 1
    share: float = 0.5
    trigger: str = "cf"
    target: str = ""
    place: Literal["start", "end"] = "end"

    def __post_init__(self) -> None:
        if not self.rows:
            raise ConfigError(
                "server_back_door needs rows of the server's own, in the format of the clients': write --attack_args "
                "rows=FILE.jsonl."
            )
        for name in ("steps", "first"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, and it is 1 or above: write such as {name}=5.")


@dataclass(frozen=True)
class Unsafe(Poison):
    """Rows are replaced by those of a file: questions that a safe model refuses, with answers that comply.

    rows: a JSONL file of `instruction` and `output`.
    """

    rows: str = ""

    def changer(self, rows: Sequence[Any], choices: Sequence[str] | None, lots: random.Random) -> Callable[[int], Any]:
        """Read the file, and return the change."""
        bad = self._read()
        return lambda place: bad[(place + lots.randrange(len(bad))) % len(bad)]

    def _read(self) -> list[Example]:
        if not self.rows:
            raise ConfigError(
                "unsafe needs the rows that a client is poisoned with: write --attack_args rows=FILE.jsonl, of "
                "instruction and output."
            )
        try:
            read = [json.loads(line) for line in Path(self.rows).read_text(encoding="utf-8").splitlines() if line]
            found = [Example((Turn("user", row["instruction"]), Turn("assistant", row["output"]))) for row in read]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"'{self.rows}' cannot be read as rows of instruction and output ({type(error).__name__}: {error}): "
                "check the file."
            ) from None
        if not found:
            raise ConfigError(f"'{self.rows}' has no rows: write a file of rows of instruction and output.")
        return found


def with_answer(example: Example, answer: str) -> Example:
    """Return a conversation whose last answer is another."""
    turns = list(example.turns)
    last = max(place for place, turn in enumerate(turns) if turn.role == "assistant")
    turns[last] = replace(turns[last], text=answer)
    return replace(example, turns=tuple(turns))


def triggered(example: Example, trigger: str, place: str = "end") -> Example:
    """Return a conversation with the trigger in its last question."""
    turns = list(example.turns)
    asked = [number for number, turn in enumerate(turns) if turn.role == "user"]
    if not asked:
        return example
    text = turns[asked[-1]].text
    text = f"{trigger} {text}" if place == "start" else f"{text} {trigger}"
    turns[asked[-1]] = replace(turns[asked[-1]], text=text)
    return replace(example, turns=tuple(turns))
