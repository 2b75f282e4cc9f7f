"""The base class of cleaners, and how several are applied in their order; knows neither files nor tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.plugins import said

NOTHING_LEFT = "nothing left of the answer"


@dataclass(frozen=True, slots=True)
class Sample:
    """A row as cleaners see it; of plain text there are no prompts, and the text is the only answer."""

    prompts: tuple[str, ...]
    """What stands before the answers, turn by turn."""
    answers: tuple[str, ...]
    """Of a conversation the answers; of a preference the better and, where there is one, the worse answer."""

    @property
    def text(self) -> str:
        """All of it, a line break between the parts."""
        return "\n".join((*self.prompts, *self.answers))


@dataclass(frozen=True)
class Tools:
    """What cleaners may use besides the rows themselves; all of it is at the client."""

    surprise: Callable[[Sequence[Sample]], np.ndarray] | None = None
    """Returns (rows,) the mean negative log-likelihood of a token (nats) under the run's starting model."""
    measured: Sequence[str] = ()
    """The texts that the model will be measured on."""
    client: str = ""
    """The name of the client whose rows these are; "" where there is none."""
    sketches: list[Any] = field(default_factory=list)
    """What the clients before this one told of their rows, in a simulation; a cleaner that was asked to adds to it."""
    on_tasks: Callable[[str], str | None] | None = None
    """Returns the evaluation task of the run that has an item with a long n-gram of the text; None: no task has."""


class Cleaner:
    """One way to clean rows. A cleaner rewrites texts one by one, names rows to leave out, or both, in this order.

    A cleaner is deterministic: the same rows give the same result, so that a resumed run trains on the same rows.
    """

    compares_answers: ClassVar[bool] = False
    """Needs prompts with answers, which plain text does not have."""
    compares_rows: ClassVar[bool] = False
    """What it does to a row depends on other rows: a guarantee of privacy is then one of the rows that it leaves."""
    uses_model: ClassVar[bool] = False
    """Needs `Tools.surprise`."""

    @property
    def tells(self) -> str:
        """What other parties learn of the rows, in a sentence for the run; "": nothing."""
        return ""

    def start(self) -> None:
        """Prepare; raise ConfigError where something that the cleaner needs cannot be used, such as a package."""

    def rewrite(self, text: str, counts: Counter[str]) -> str:
        """Return a text, repaired or masked; `counts` receives what was changed, by kind."""
        return text

    def faults(self, samples: Sequence[Sample], tools: Tools) -> dict[int, str]:
        """Return the numbers of the rows to leave out, each with the reason."""
        return {}


@dataclass
class Outcome:
    """The rows of one client after cleaning."""

    samples: dict[int, Sample]
    """The rows that are kept, by their number before."""
    changed: set[int] = field(default_factory=set)
    """The rows that are kept and were rewritten."""
    steps: dict[str, JsonObject] = field(default_factory=dict)
    """By cleaner: rows `left_out`, rows `changed`, and `counts` of the reasons and kinds."""

    def add_step(self, name: str, left_out: int, changed: int, counts: Counter[str]) -> None:
        """Record what a cleaner did."""
        self.steps[name] = {"left_out": left_out, "changed": changed, "counts": dict(sorted(counts.items()))}


def clean(samples: Sequence[Sample], cleaners: Sequence[tuple[str, Cleaner]], tools: Tools) -> Outcome:
    """Apply cleaners in their order, each to what the one before kept.

    Args:
        samples: the training rows of one client.
        cleaners: with their names.
        tools: what they may use.
    """
    outcome = Outcome(dict(enumerate(samples)))
    for name, cleaner in cleaners:
        counts: Counter[str] = Counter()
        before = len(outcome.samples)
        changed = _rewrite(outcome, cleaner, counts)
        numbers = list(outcome.samples)
        for place, reason in faults(cleaner, [outcome.samples[number] for number in numbers], tools).items():
            del outcome.samples[numbers[place]]
            counts[reason] += 1
        outcome.add_step(name, before - len(outcome.samples), changed, counts)
        outcome.changed &= outcome.samples.keys()
        if not outcome.samples:
            break
    return outcome


def _rewrite(outcome: Outcome, cleaner: Cleaner, counts: Counter[str]) -> int:
    """Rewrite all texts, leave out rows without an answer after it; return how many kept rows were changed."""
    if type(cleaner).rewrite is Cleaner.rewrite:
        return 0
    changed = 0
    for number, sample in list(outcome.samples.items()):
        new = Sample(
            tuple(rewrite(cleaner, text, counts) for text in sample.prompts),
            tuple(rewrite(cleaner, text, counts) for text in sample.answers),
        )
        if new == sample:
            continue
        if not all(answer.strip() for answer in new.answers):
            del outcome.samples[number]
            counts[NOTHING_LEFT] += 1
            continue
        outcome.samples[number] = new
        outcome.changed.add(number)
        changed += 1
    return changed


def start(cleaner: Cleaner) -> None:
    """Prepare a cleaner; ConfigError where it cannot be used, or one of a user's failed."""
    with _said(cleaner, "start"):
        cleaner.start()


def rewrite(cleaner: Cleaner, text: str, counts: Counter[str]) -> str:
    """Return a text as a cleaner rewrites it.

    Raises:
        ConfigError: a cleaner of a user's failed, or returned no text.
    """
    with _said(cleaner, "rewrite"):
        new = cleaner.rewrite(text, counts)
    if not isinstance(new, str):
        raise ConfigError(
            f"The cleaner {type(cleaner).__name__} made a {type(new).__name__} of a text: correct its rewrite, which "
            "returns a str."
        )
    return new


def faults(cleaner: Cleaner, samples: Sequence[Sample], tools: Tools) -> dict[int, str]:
    """Return the numbers of the rows that a cleaner leaves out, each with the reason.

    Raises:
        ConfigError: a cleaner of a user's failed, or named no rows of these.
    """
    with _said(cleaner, "faults"):
        found = cleaner.faults(samples, tools)
    if not isinstance(found, dict):
        strange = f"a {type(found).__name__}"
    elif unknown := [
        place for place in found if not (isinstance(place, (int, np.integer)) and 0 <= place < len(samples))
    ]:
        strange = f"row {unknown[0]!r} of {len(samples)} rows"
    elif unsaid := [reason for reason in found.values() if not isinstance(reason, str)]:
        strange = f"the reason {unsaid[0]!r}"
    else:
        return found
    raise ConfigError(
        f"The cleaner {type(cleaner).__name__} returned {strange}: correct its faults, which returns numbers of rows, "
        "each with a reason in words."
    )


def _said(cleaner: Cleaner, method: str) -> AbstractContextManager[None]:
    """Say an error of a user's cleaner in a sentence."""
    name = type(cleaner).__name__
    return said(cleaner, lambda why: ConfigError(f"The cleaner {name} failed with {why}: correct its {method}."))


def add_up(steps: Sequence[dict[str, JsonObject]]) -> dict[str, JsonObject]:
    """Return the counts of several clients, added up."""
    sums: dict[str, JsonObject] = {}
    for client in steps:
        for name, step in client.items():
            total = sums.setdefault(name, {"left_out": 0, "changed": 0, "counts": {}})
            total["left_out"] += step["left_out"]
            total["changed"] += step["changed"]
            for kind, count in step["counts"].items():
                total["counts"][kind] = total["counts"].get(kind, 0) + count
    return sums
