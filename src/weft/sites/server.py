"""A run whose clients are sites elsewhere: the server's half."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from weft import config as configuration
from weft.core.exchange import Runtime
from weft.core.texts import printable
from weft.core.types import Failure, Probe, ServerState, Tensors
from weft.errors import ConfigError, RunError
from weft.federation.client_host import ClientHost
from weft.federation.clients import Clients, InMemory
from weft.federation.plan import Plan
from weft.federation.state import expected_streams, to_use
from weft.launch import compose, provenance
from weft.launch.client import ClientBuilder
from weft.launch.disk_full import disk_in_words
from weft.launch.extend import CHANGEABLE, say_changed
from weft.launch.population import Population
from weft.launch.run import Run
from weft.launch.trainer import Trainer
from weft.models.fingerprint import fingerprint
from weft.models.resident import Resident
from weft.runs import fingerprints
from weft.runs.layout import RunDir
from weft.runs.progress import Progress
from weft.runs.trackers import Trackers
from weft.runtimes.remote import RemoteSites, Transport
from weft.sites import part_files
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


def serve(
    keys: dict[str, Any],
    transport: Transport,
    sites: list[str],
    version: str,
    *,
    resume: bool = False,
    parts: Path | None = None,
    hear: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Run:
    """Run a configuration with sites elsewhere, from the newest checkpoint on where `resume`.

    Args:
        keys: of the run, `output_dir` among them.
        line: carries bytes to the sites.
        sites: who can be asked.
        version: of Weft here.
        resume: go on with the run in `output_dir`, if there is one.
        parts: the folder of files whose parts runs may name; None: they may name none.
        hear: told what a status would say: the sites, and every round.

    Raises:
        ConfigError: a mistake in the configuration, or too many sites refuse.
        RunError: too few sites can be reached, or answered.
    """
    said: list[str] = []
    builder = _builder(part_files.at_server(keys, parts), said.append)
    config, plan, model = builder.config, builder.plan, builder.model
    order = config.sites or sorted(sites)
    with (
        disk_in_words(config, "weft submit"),
        RunDir.create(
            config.output_dir,
            config.model_dump(mode="json") | {"accept_changed": False},
            resume=resume and RunDir(config.output_dir).holds_run,
            overwrite=False,
            volatile=CHANGEABLE,
        ) as run,
        Progress(config.num_rounds, quiet=False, as_json=True) as progress,
        Trackers(config.report_to, run.path, config.model_dump(mode="json"), progress.note) as trackers,
    ):
        for sentence in said:
            progress.note(sentence)
        now = provenance.base_of(config) | provenance.tokenizer_of(config, builder.tokenizer)
        now |= provenance.parts_of(config)
        say_changed(config, run, now, progress.note)
        birth = fingerprints.keep(run, now, max(run.rounds, default=0))
        remote = RemoteSites(transport, run_id(keys), config.silence_timeout, lambda: (1, 1), note=progress.note)
        waits = plan.algorithm.buffer is None
        cohort = config.sample_clients if waits else 1
        who = Terms(keys, fingerprint(model), birth, version, cohort, config.min_clients)
        willing = _agree(remote, who, order, sites, progress.note)
        rows = {name: rows for name, rows in zip(willing.names, willing.rows, strict=True) if rows}
        hear({"sites": rows, "refused": willing.refused})
        remote.handshake, remote.is_same_site = willing.words.get, willing.same
        remote.largest = lambda: largest(plan, model)
        remote.in_order = not plan.over_selected
        if plan.algorithm.shares and waits:
            builder.plan = replace(plan, cohorts=willing.cohorts)
        population = willing.population()
        builder.take(population)
        host, values = builder.host(conditions=compose.conditions(config))

        @contextmanager
        def begin(_: ClientHost) -> Iterator[Runtime]:
            yield remote

        training = Trainer(config, run, host, population, progress, trackers, begin=begin, hear=hear)
        _hand_out(training.run_all(values), plan, remote, rows)
        return Run(run.path)


def _builder(keys: dict[str, Any], note: Callable[[str], None]) -> ClientBuilder:
    """Return what builds the server's parts; ConfigError for a mistake, or for a run that would bring code."""
    config = configuration.build(keys)
    if config.trust_remote_code:
        raise ConfigError("The run trusts remote code, and no code travels to sites or their server.")
    return ClientBuilder(config, note=note)


def _hand_out(state: ServerState, plan: Plan, remote: RemoteSites, sites: Iterable[str]) -> None:
    """Let the sites write down the model that the run leaves them."""
    params, extra = to_use(plan.algorithm, state)
    for reply in remote.exchange([Probe(site, state.round, params, extra, export=True) for site in sites]):
        if isinstance(reply, Failure):
            remote.note(f"the site '{reply.client}' did not get the result: {reply.reason}.")


def run_id(keys: dict[str, Any]) -> str:
    """Return what tells a run from others at a site: it names the folder of what a client remembers."""
    return str(keys["output_dir"]).rstrip("/").rsplit("/", 1)[-1]


def largest(plan: Plan, model: Resident) -> tuple[int, int]:
    """Return the bytes and tensors that any reply of a client may have."""
    values: Tensors = {name: value for name, value in model.masters.items() if plan.sharing.travels(name)}
    sizes, counts = [], []
    for round in range(2 * plan.period):
        size, count = plan.protection.largest(plan.codec.largest(expected_streams(plan, values, round)))
        sizes.append(size)
        counts.append(count)
    return max(sizes) + (1 << 20) + 512 * max(counts), max(counts)


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


def _agree(
    remote: RemoteSites, who: Terms, order: list[str], there: list[str], note: Callable[[str], None]
) -> Handshake:
    """Say hello to all sites, and go on with those that agree.

    Args:
        remote: asks them.
        who: what is asked of them.
        order: all sites.
        there: those that can be asked.
        note: told who takes no part, and why.

    Raises:
        ConfigError: too few take part.
        RunError: too few take part, and some could not be asked.
    """
    wanted = agreement(who.run, who.base, who.version)
    count = min(who.cohort, len(order))
    handshake = {"run": who.run, "id": remote.run, "clients": count, "base": who.base, "birth": who.birth}
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
    _hold_quorum(found, refused, who.cohort)
    if away:  # sites that ask for a larger cohort may have it when the others are there
        away += agreed - len(found)
    for name, why in refused.items():
        note(f"the site '{name}' takes no part: {why}.")
    least, part = max(1, who.min_clients), len(found)
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
