"""An aggregator in a file of a user's: what goes wrong in it, or in its total, ends the run in a sentence."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator

from weft.core.exchange import Aggregator
from weft.core.types import Streams, Total, Update
from weft.errors import RunError, WeftError

REMEDY = "correct it, and go on with --resume"


class _Elsewhere(Exception):
    """An error that an update brought along: nothing of the aggregator's."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class Checked(Aggregator):
    """Does what an aggregator of a user's does, and looks at what comes of it."""

    def __init__(self, own: Aggregator, round: int) -> None:
        """Wrap an aggregator for a round, counted from 0."""
        self.own, self.round = own, round

    def needs(self, cohort: int) -> int:
        """Return what the aggregator needs."""
        return self.own.needs(cohort)

    def combine(self, updates: Iterable[Update]) -> Total:
        """Return the aggregator's total.

        Raises:
            RunError: it failed, or its total is none of these updates.
        """
        seen: list[Streams] = []
        name = f"The aggregator {type(self.own).__name__}"
        try:
            total = self.own.combine(_noted(updates, seen))
        except _Elsewhere as wrapped:
            raise wrapped.error from None
        except WeftError:
            raise
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            said = " ".join(str(error).split())[:200]
            raise RunError(
                f"{name} failed in round {self.round + 1} with {type(error).__name__}{': ' if said else ''}"
                f"{said.rstrip('.')} (line {frame.lineno} of '{frame.filename}')",
                REMEDY,
            ) from error
        if fault := _fault(total, seen[0] if seen else {}):
            raise RunError(f"{name} returned {fault} in round {self.round + 1}", REMEDY)
        return total


def checked(aggregator: Aggregator, round: int) -> Aggregator:
    """Return an aggregator as it is, or one that is checked, where it is not Weft's own."""
    return aggregator if type(aggregator).__module__.startswith("weft.") else Checked(aggregator, round)


def _noted(updates: Iterable[Update], seen: list[Streams]) -> Iterator[Update]:
    """Yield the updates; the shapes of the first are kept, and errors of theirs are told apart."""
    try:
        for update in updates:
            if not seen:
                seen.append(update.streams)
            yield update
    except Exception as error:
        raise _Elsewhere(error) from error


def _fault(total: object, like: Streams) -> str:
    """Return what is wrong with a total of updates like these; "": nothing."""
    if not isinstance(total, Total):
        return f"a {type(total).__name__} instead of a Total"
    if not total.streams or not total.clients or not like:
        return ""
    for stream, values in like.items():
        given = total.streams.get(stream, {})
        if strange := sorted(given.keys() ^ values.keys()):
            return f"other tensors than the updates have ('{strange[0]}')"
        for name, value in values.items():
            if given[name].shape != value.shape:
                return f"'{name}' of shape {tuple(given[name].shape)} instead of {tuple(value.shape)}"
            if not bool(given[name].isfinite().all()):
                return f"numbers that are not finite in '{name}'"
    return ""
