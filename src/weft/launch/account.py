"""The account of a run: what its rounds spend, written to the ledger in its directory before they are released."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from weft.core.files import whole_lines
from weft.core.secret import Secret
from weft.core.tensors import digest
from weft.core.types import ServerState, Total
from weft.errors import BudgetSpent, ConfigError
from weft.json_types import JsonObject
from weft.keys import privacy as keys
from weft.privacy.accounting import Sampling, Steps, composed
from weft.privacy.guarantee import Guarantee
from weft.privacy.ledger import Ledger
from weft.runs.layout import RunDir


class Account:
    """What the rounds of a run spend, in a ledger in its directory."""

    def __init__(self, guarantee: Guarantee, file: Path, secret: Callable[[], Secret]) -> None:
        """Open the ledger.

        Args:
            guarantee: of the run.
            file: the ledger.
            secret: of the server.

        Raises:
            ConfigError: the ledger was changed by hand.
        """
        self.guarantee, self.secret = guarantee, secret
        self.ledger = Ledger(file)
        self._places = {_key(entry): place for place, entry in enumerate(self.ledger.entries, 1)}
        self._steps = [steps_of(entry) for entry in self.ledger.entries]
        self._now = 0

    def check(self, state: ServerState) -> None:
        """Raise BudgetSpent where the next round would exceed the target."""
        known = [place for (round, attempt, *_), place in self._places.items() if (round, attempt) == _place(state)]
        if not self._allows(known[0] if known else len(self._places) + 1):
            raise self._spent(state)

    def spend(self, state: ServerState, total: Total) -> None:
        """Write down that a round is released; the very same one, once more after a crash, costs nothing.

        Raises:
            BudgetSpent: it would exceed the target.
        """
        # A tag that nobody else can compute: the ledger says nothing of the updates.
        tag = self.secret().bytes(16, "release", digest(total.streams), str(total.weight)).hex()
        round, attempt = _place(state)
        entry: JsonObject = {"round": round + 1, "attempt": attempt, "release": tag} | entry_of(self.guarantee)
        if _key(entry) not in self._places:
            count = len(self._places) + 1
            if not self._allows(count):
                raise self._spent(state)
            spent = self._epsilon(count)
            self.ledger.append(entry | {"epsilon": spent if math.isfinite(spent) else None})
            self._places[_key(entry)] = count
            self._steps.append(self.guarantee.release)
        self._now = self._places[_key(entry)]

    def line(self) -> JsonObject:
        """Return what a round's line of metrics.jsonl says: the budget, and nothing of who was chosen by a secret."""
        spent = self._epsilon(self._now)
        hidden: JsonObject = {"clients": [], "failures": {}} if self.hides_cohort else {}
        return {"epsilon": spent if math.isfinite(spent) else None, **hidden}

    @property
    def hides_cohort(self) -> bool:
        """Whether the budget counts on nobody knowing who takes part."""
        return self.guarantee.unit == keys.CLIENT and self.guarantee.sampling.kind != "full"

    def statement(self) -> JsonObject:
        """Return the guarantee of all that was released."""
        return self.guarantee.statement(len(self._places), self._epsilon(len(self._places)))

    def _epsilon(self, count: int) -> float:
        """Return what the first so many releases spend, each with the noise that it had."""
        return composed([*self._steps, self.guarantee.release][:count], self.guarantee.delta)

    def _allows(self, count: int) -> bool:
        return self.guarantee.target is None or self._epsilon(count) <= self.guarantee.target

    def _spent(self, state: ServerState) -> BudgetSpent:
        now = self._epsilon(len(self._places))
        return BudgetSpent(
            f"The budget is spent: after {state.round} rounds epsilon is {now:.4g} at a delta of "
            f"{self.guarantee.delta:g}, and one more would exceed target_epsilon ({self.guarantee.target:g})."
        )


def _place(state: ServerState) -> tuple[int, int]:
    return state.round, state.attempts


def entry_of(guarantee: Guarantee) -> JsonObject:
    """Return what a release is, for the ledger."""
    sampling = asdict(guarantee.sampling)
    return {"noise": guarantee.noise, "sampling": sampling, "steps": guarantee.steps, "units": guarantee.units}


def steps_of(entry: JsonObject) -> Steps:
    """Return what an entry of a ledger says was released."""
    return Steps(Sampling(**entry["sampling"]), float(entry["noise"]), int(entry["steps"]))


def _key(entry: JsonObject) -> tuple[int, int, str, float]:
    return entry["round"] - 1, entry["attempt"], entry["release"], entry["noise"]


def require_rounds(ledger: Ledger, rounds: int) -> None:
    """Raise ConfigError where a ledger lacks one of the first so many rounds, which were released."""
    known = {entry["round"] for entry in ledger.entries}
    missing = next((round for round in range(1, rounds + 1) if round not in known), None)
    if missing is not None:
        raise ConfigError(
            f"The run has released {rounds} rounds, and its ledger '{ledger.file}' lacks round {missing}, so nobody "
            "can say what was spent: put back the file as it was, with its '.head', from a backup."
        )


def released_rounds(run: RunDir) -> int:
    """Return how many rounds of a run were released, by its checkpoints and its metrics; its ledger has them all."""
    rounds = [0, *run.rounds]
    for line in whole_lines(run.metrics_file):
        with suppress(ValueError, KeyError, TypeError):  # a damaged line is no reason to lose the others
            event = json.loads(line)
            rounds += [int(event["round"])] if event["event"] == "round" else []
    return max(rounds)
