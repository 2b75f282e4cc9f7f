"""The handshake: before a run, the server asks every site whether it agrees to the run, and how many rows it has."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import NamedTuple, NoReturn

from weft.config import RunConfig
from weft.core.texts import quoted
from weft.errors import ConfigError, RunError
from weft.federation.clients import Clients, InMemory
from weft.json_types import JsonObject
from weft.launch.contamination import asked_counts
from weft.launch.data_statistics import asked_statistics
from weft.launch.federated import Evaluated
from weft.launch.left_out import left_out_of
from weft.launch.population import Population
from weft.runtimes.mailbox import Packed
from weft.runtimes.remote import RemoteSites
from weft.sites.agreement import agreement

HANDSHAKE_BYTES = 1 << 16
"""Most bytes that are read of a site's answer to the handshake."""
TEXT = 128
"""Most characters of a hash in it."""
TOLD = ("contamination", "statistics")
"""What a site may tell of its rows beside their number."""
MOST_ROWS = 1 << 31
"""Limit for the rows that a site may claim: more than any site has, and small enough to add up."""


class RemoteRows:
    """Stands for rows at sites: they can be counted, not read."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> NoReturn:
        raise IndexError("these rows are at their site")


def _row_ranges(counts: list[int]) -> list[range]:
    """Return every site's row numbers, as ranges: a false claim of many rows takes no memory."""
    ends = list(accumulate(counts))
    return [range(end - count, end) for end, count in zip(ends, counts, strict=True)]


@dataclass(frozen=True)
class Handshake:
    """The result of a handshake: all sites in their order; a site that takes no part has 0 rows."""

    names: list[str]
    rows: list[int]
    """Rows to train on, of each site; changed in place when a site comes back with others."""
    held_out: list[int]
    refused: dict[str, str]
    """Why sites take no part."""
    requests: dict[str, Packed]
    """The handshake request to each site."""
    agreement: str
    """The hash of what server and sites agree on."""
    cohorts: dict[str, int]
    """For each site that takes part, the smallest cohort that its policy accepts; 0: any."""
    contamination: JsonObject = field(default_factory=dict)
    """By task and site how many of the task's items are among the site's rows."""
    statistics: JsonObject = field(default_factory=dict)
    """By site what it tells of its rows."""
    units: list[int] = field(default_factory=list)
    """Units of privacy, of each site."""
    key: str = ""
    """What tells the key that the sites have in common."""

    def why_not(self, name: str, raw: Packed) -> str:
        """Return why a site that was restarted cannot answer the message at hand; "": it answers as before.

        A site whose policy says `accept_changed: true` may come back with other rows. It is believed as it was in the
        first handshake, from the next round on: the weights of the current one are settled.
        """
        answer, place = _read(raw), self.names.index(name)
        if "refused" in answer:
            return f"refuses the run now: {answer['refused']}"
        if answer.get("agreed") != self.agreement or _least(answer) != self.cohorts.get(name, 0):
            return "came back with another Weft, model or site policy"
        if answer["key"] != self.key:
            return "came back with another key of encrypted sums"
        counts = answer["rows"], answer["held"]
        if counts == (self.rows[place], self.held_out[place]):
            return ""
        self.rows[place], self.held_out[place] = counts
        return "came back with other rows, and takes part with them from the next round on"

    def rows_of_participants(self) -> dict[str, int]:
        """Return the number of training rows of every site that takes part."""
        return {name: rows for name, rows in zip(self.names, self.rows, strict=True) if rows}

    def left_out(self, config: RunConfig) -> tuple[str, ...]:
        """Return the sites that take no part in the training; ConfigError as `left_out_of` has it."""
        return left_out_of(
            config, self.names, [name for name, rows in zip(self.names, self.held_out, strict=True) if rows]
        )

    def population(self, apart: Collection[str] = ()) -> Population:
        """Return the sites as the population of a run; those in `apart` are evaluated alone."""
        train, held_out = _row_ranges(self.rows), _row_ranges(self.held_out)
        elsewhere = RemoteRows(sum(self.rows))
        sites = Clients(self.names, train, held_out, elsewhere, InMemory(), num_units=self.units or None)
        clients = [
            {"name": name, "rows": rows, "held": held_out}
            for name, rows, held_out in zip(self.names, self.rows, self.held_out, strict=True)
        ]
        split = {"strategy": "clients", "clients": clients, "skew": {}, "refused": self.refused}
        split |= {name: told for name in TOLD if (told := getattr(self, name))}
        absent = tuple(
            n for n, (name, rows) in enumerate(zip(self.names, self.rows, strict=True)) if not rows or name in apart
        )
        population = Population(self.names, sites, sites, {}, None, {}, split, absent=absent, live_rows=self.rows)
        return replace(population, left_out=tuple(apart))


class Terms(NamedTuple):
    """What sites are asked to agree to."""

    run: JsonObject
    """The run's keys."""
    base: str
    """The hash of the server's model."""
    birth: str
    """Identifies the run among runs of the same name."""
    version: str
    """Weft's version at the server."""
    cohort: int
    """Most clients of a round."""
    min_clients: int
    """Sites that must take part, at least."""
    evaluated: Evaluated | None = None
    """The run that is evaluated; None: none is."""


def shake_hands(
    remote: RemoteSites, terms: Terms, order: list[str], connected: list[str], note: Callable[[str], None]
) -> Handshake:
    """Ask all sites to agree to the run, and return which take part.

    Args:
        remote: sends the requests.
        terms: what the sites are asked to agree to.
        order: all sites, in the order of their numbers.
        connected: the sites that can be asked.
        note: called with a sentence for each site that takes no part.

    Raises:
        ConfigError: too few take part.
        RunError: too few take part, and some could not be asked.
    """
    expected = agreement(terms.run, terms.base, terms.version)
    request = {"run": terms.run, "id": remote.run, "base": terms.base, "birth": terms.birth}
    request |= {"evaluated": terms.evaluated.words} if terms.evaluated is not None else {}

    def requests_for(count: int) -> dict[str, Packed]:
        return {name: json.dumps(request | {"clients": count, "index": i}).encode() for i, name in enumerate(order)}

    # Nobody has agreed yet, so that sites refuse here only what even all of them together would be too few for.
    requests = requests_for(min(terms.cohort, len(order)))
    refused: dict[str, str] = {}
    accepted: dict[str, JsonObject] = {}
    answers = remote.ask_all({name: raw for name, raw in requests.items() if name in connected})
    away = sum(isinstance(answers.get(name, ""), str) for name in order)
    for name in order:
        raw = answers.get(name, "it is not connected")
        answer = {"refused": raw} if isinstance(raw, str) else _read(raw)
        if "refused" not in answer and answer.get("agreed") != expected:
            answer = {"refused": "it has another version of Weft, or read another run"}
        if "refused" in answer:
            refused[name] = str(answer["refused"])
        else:
            accepted[name] = answer
    key = _agree_on_key(accepted, refused)
    before = len(accepted)
    count = _agree_on_cohort(remote, accepted, refused, terms.cohort)
    if away:  # sites that ask for a larger cohort may get it once the missing sites connect
        away += before - len(accepted)
    for name, why in refused.items():
        note(f"the site '{name}' takes no part: {why}.")
    _check_enough(max(1, terms.min_clients), len(accepted), away, len(order), refused)
    rows, held_out, units = (
        [accepted[name][what] if name in accepted else 0 for name in order] for what in ("rows", "held", "units")
    )
    cohorts = {name: _least(answer) for name, answer in accepted.items()}
    tested = asked_counts(terms.run.get("contamination") or [], {n: a["contamination"] for n, a in accepted.items()})
    choices = terms.run.get("choices") or []
    described = asked_statistics(choices, {name: answer["statistics"] for name, answer in accepted.items()})
    # A site that is restarted is told how many take part, not how many might.
    return Handshake(
        order, rows, held_out, refused, requests_for(count), expected, cohorts, tested, described, units, key
    )


def _check_enough(least: int, part: int, away: int, count: int, refused: dict[str, str]) -> None:
    """Raise the errors of `shake_hands` where too few sites take part.

    Args:
        least: that must take part.
        part: that take part.
        away: that could not be asked, or may take part once others connect.
        count: of all sites.
        refused: why the others take no part.
    """
    if part < least:
        why = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        few = f"{part} of {count} sites take part, too few for a round ({why})."
        # Only a RunError is retried: the supervisor resubmits the run when a missing site connects.
        raise RunError(few) if part + away >= least else ConfigError(few)


def _agree_on_key(accepted: dict[str, JsonObject], refused: dict[str, str]) -> str:
    """Return what tells the key that most sites have; move those with another one from `accepted` to `refused`."""
    keys = [answer["key"] for answer in accepted.values()]
    most = max(sorted(set(keys)), key=keys.count, default="")
    for name in [name for name, answer in accepted.items() if answer["key"] != most]:
        del accepted[name]
        refused[name] = "its kit has another key of encrypted sums than most"
    return str(most)


def _agree_on_cohort(remote: RemoteSites, accepted: dict[str, JsonObject], refused: dict[str, str], sample: int) -> int:
    """Tell the sites that accepted how many clients a round has, without absent sites and those that refuse.

    Sites that refuse now, or ask for a larger cohort, are moved to `refused`, and the others are told again.

    Returns:
        The most clients of a round.
    """
    told: dict[str, int] = {}
    while True:
        _hold_quorum(accepted, refused, sample)
        count = min(sample, len(accepted))
        message = json.dumps({"id": remote.run, "cohort": count}).encode()
        messages = {name: message for name in accepted if told.get(name) != count}
        if not messages:
            return count
        for name, raw in remote.ask_all(messages, f"cohort/{count}").items():
            told[name] = count
            # A site that is silent now is one that is silent in a round; only a refusal is an answer.
            if not isinstance(raw, str) and "refused" in (answer := _read(raw)):
                del accepted[name]
                refused[name] = str(answer["refused"])


def _hold_quorum(accepted: dict[str, JsonObject], refused: dict[str, str], sample: int) -> None:
    """Move sites that ask for a larger cohort than there is from `accepted` to `refused`.

    Each site that leaves makes the cohort smaller, so this repeats until the cohort satisfies all that stay.
    """
    while few := {name: answer for name, answer in accepted.items() if _least(answer) > min(sample, len(accepted))}:
        count = min(sample, len(accepted))
        for name, answer in few.items():
            del accepted[name]
            refused[name] = f"{count} take part in a round, and this site asks for {_least(answer)} at least"


def _least(answer: JsonObject) -> int:
    """Return the smallest cohort that a site asks for; 0: any."""
    return int(answer["least"])


def _read(raw: Packed) -> JsonObject:
    """Return a site's answer to the handshake: its counts and its hash, or a refusal that can be printed.

    Any bytes that are no such answer count as a refusal; all that is returned has the types that it should have.
    """
    try:
        answer = json.loads(bytes(raw[:HANDSHAKE_BYTES]))
        if "refused" in answer:
            return {"refused": quoted(str(answer["refused"]))}
        counts = {name: int(answer.get(name, 0)) for name in ("rows", "held", "least")}
        units = counts["units"] = int(answer.get("units", counts["rows"]))  # each row is one, by default
        whole = 0 < units <= counts["rows"]
        if whole and all(0 <= count < MOST_ROWS for count in counts.values()):
            texts = {name: str(answer.get(name, ""))[:TEXT] for name in ("agreed", "key")}  # compared, never shown
            return {**counts, **texts, **{name: answer.get(name) for name in TOLD}}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        pass
    return {"refused": "its answer cannot be read"}
