"""An aggregator in a file of a user's: what goes wrong in it, or in its total, ends the run in a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from weft.core.exchange import Aggregator
from weft.core.party import Gathering
from weft.core.types import Streams, Total, Update
from weft.errors import ConfigError, RunError, WeftError
from weft.plugins import described, is_own, said

REMEDY = "correct it, and go on with --resume"


class _Elsewhere(Exception):
    """An error that an update brought along: nothing of the aggregator's."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


@dataclass
class _Seen:
    """What an aggregator was given."""

    streams: Streams = field(default_factory=dict)
    """Of the first update."""
    clients: set[str] = field(default_factory=set)
    updates: int = 0

    def noted(self, updates: Iterable[Update]) -> Iterator[Update]:
        """Yield the updates; errors of theirs are told apart from the aggregator's."""
        try:
            for update in updates:
                self.streams = self.streams or update.streams
                self.clients.update(update.senders)
                self.updates += 1
                yield update
        except Exception as error:
            raise _Elsewhere(error) from error


class Checked(Aggregator):
    """Does what an aggregator of a user's does in a round, and looks at what comes of it."""

    def __init__(self, own: Aggregator, gathering: Gathering) -> None:
        """Wrap an aggregator, and make it that of a round.

        Raises:
            RunError: it cannot be that.
        """
        self.name, self.gathering = f"The aggregator {type(own).__name__}", gathering
        with said(own, self._failed):
            self.own = own.for_round(gathering)

    def needs(self, cohort: int) -> int:
        """Return what the aggregator needs."""
        return needed(self.own, cohort)

    def combine(self, updates: Iterable[Update]) -> Total:
        """Return the aggregator's total.

        Raises:
            RunError: it failed, or its total is none of these updates.
        """
        seen = _Seen()
        try:
            total = self.own.combine(seen.noted(updates))
        except _Elsewhere as wrapped:
            raise wrapped.error from None
        except WeftError:
            raise
        except Exception as error:
            raise self._failed(described(error)) from error
        enough = seen.updates >= max(1, self.needs(self.gathering.cohort))
        if fault := _fault(total, seen, enough=enough):
            raise RunError(f"{self.name} returned {fault} in round {self.gathering.party.round + 1}", REMEDY)
        return total

    def _failed(self, why: str) -> RunError:
        return RunError(f"{self.name} failed in round {self.gathering.party.round + 1} with {why}", REMEDY)


def checked(aggregator: Aggregator, gathering: Gathering) -> Aggregator:
    """Return the aggregator of a round; one that is not Weft's own is checked."""
    return Checked(aggregator, gathering) if is_own(aggregator) else aggregator.for_round(gathering)


def needed(aggregator: Aggregator, cohort: int) -> int:
    """Return the number of updates that an aggregator needs in a round of `cohort` clients.

    Raises:
        ConfigError: one of a user's cannot say.
    """
    if not is_own(aggregator):
        return aggregator.needs(cohort)
    name = f"The aggregator {type(aggregator).__name__}"
    with said(aggregator, lambda why: ConfigError(f"{name} failed in its needs with {why}: correct it.")):
        needs = aggregator.needs(cohort)
    if not isinstance(needs, int):
        raise ConfigError(f"{name} needs {needs!r} updates, and that is no number of them: correct its needs.")
    return needs


def _fault(total: object, seen: _Seen, *, enough: bool) -> str:
    """Return what is wrong with a total of updates like these; "": nothing."""
    if not isinstance(total, Total):
        return f"a {type(total).__name__} instead of a Total"
    for what, names in (("clients", total.clients), ("flagged clients", total.flagged)):
        if not isinstance(names, tuple):
            return f"{what} as a {type(names).__name__} instead of a tuple of names"
        if strange := [name for name in names if name not in seen.clients]:
            return f"{what} among whom '{strange[0]}' sent no update"
    if not (isinstance(total.weight, (int, float)) and 0 <= total.weight < math.inf):
        return f"a weight of {total.weight}"
    if not _are_streams(total.memory):
        return "a memory that is no streams of tensors"
    if not total.clients or (not total.streams and not enough):
        return ""  # the round is repeated, or changes nothing
    return fault_of(total.streams, seen.streams)


def fault_of(streams: Streams, like: Streams, *, finite: bool = True) -> str:
    """Return what is wrong with streams that are to have the names and shapes of others; "": nothing."""
    if not _are_streams(streams):
        return "streams that hold something else than tensors"
    for stream, values in like.items():
        given = streams.get(stream, {})
        if strange := sorted(given.keys() ^ values.keys()):
            return f"other tensors than the updates have ('{strange[0]}')"
        for name, value in values.items():
            if given[name].shape != value.shape:
                return f"'{name}' of shape {tuple(given[name].shape)} instead of {tuple(value.shape)}"
            if given[name].is_floating_point() != value.is_floating_point():
                return f"'{name}' in {given[name].dtype} instead of {value.dtype}"
            if finite and not bool(given[name].isfinite().all()):
                return f"numbers that are not finite in '{name}'"
    return ""


def _are_streams(given: object) -> bool:
    return isinstance(given, dict) and all(
        isinstance(values, dict) and all(isinstance(value, Tensor) for value in values.values())
        for values in given.values()
    )
