"""A run whose clients are sites elsewhere: the server's half."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from weft import config as configuration
from weft.config import RunConfig
from weft.core.exchange import Runtime
from weft.core.tensors import num_bytes
from weft.core.types import Failure, Probe, ServerState, Tensors
from weft.errors import ConfigError, RunError
from weft.federation.plan import Plan
from weft.federation.site import InMemory, Sites
from weft.federation.state import beside, expected_streams
from weft.federation.station import Station
from weft.launch import compose, made_from
from weft.launch.extend import CHANGEABLE, say_changed
from weft.launch.finished import Run
from weft.launch.full import disk_in_words
from weft.launch.law import agreement
from weft.launch.population import Population
from weft.launch.prepare import make_ready, prepare_process, resident
from weft.launch.underway import Training
from weft.models.fingerprint import fingerprint
from weft.models.load import check_fits, load_model_config, load_tokenizer
from weft.models.resident import Resident
from weft.runs import fingerprints
from weft.runs.layout import RunDir
from weft.runs.progress import Progress
from weft.runs.trackers import Trackers
from weft.runtimes.remote import Line, Remote

HELLO = 1 << 16
"""Bytes of a site's answer to the hello."""


class Nowhere:
    """Rows that are elsewhere: they can be counted, not read."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> Any:
        raise IndexError("these rows are at their site")


@dataclass(frozen=True)
class Willing:
    """All sites in their order; those that take no part have no rows."""

    names: list[str]
    rows: list[int]
    held: list[int]
    refused: dict[str, str]
    words: dict[str, bytes]
    """The hello that each was said."""
    agreed: str

    def same(self, name: str, raw: bytes) -> bool:
        """Say whether a site answers as it did."""
        said, place = _read(raw), self.names.index(name)
        found = (said.get("rows"), said.get("held"), said.get("agreed"))
        return found == (self.rows[place], self.held[place], self.agreed)

    def population(self) -> Population:
        """Return them as the population of a run."""
        ends, test_ends = np.cumsum(self.rows), np.cumsum(self.held)
        train = [np.arange(end - count, end) for end, count in zip(ends, self.rows, strict=True)]
        held = [np.arange(end - count, end) for end, count in zip(test_ends, self.held, strict=True)]
        sites = Sites(self.names, train, held, Nowhere(sum(self.rows)), InMemory())
        clients = [
            {"name": name, "rows": rows, "held": held}
            for name, rows, held in zip(self.names, self.rows, self.held, strict=True)
        ]
        split = {"strategy": "clients", "clients": clients, "skew": {}, "refused": self.refused}
        absent = tuple(place for place, rows in enumerate(self.rows) if not rows)
        return Population(self.names, sites, sites, {}, None, {}, split, absent=absent)


def serve(
    keys: dict[str, Any],
    line: Line,
    sites: list[str],
    version: str,
    *,
    resume: bool = False,
    hear: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Run:
    """Run a configuration with sites elsewhere, from the newest checkpoint on where `resume`.

    Args:
        keys: of the run, `output_dir` among them.
        line: carries bytes to the sites.
        sites: who can be asked.
        version: of Weft here.
        resume: go on with the run in `output_dir`, if there is one.
        hear: told what a status would say: the sites, and every round.

    Raises:
        ConfigError: a mistake in the configuration, or too many sites refuse.
        RunError: too few sites can be reached, or answered.
    """
    config = configuration.build(keys)
    prepare_process(config)
    order = config.sites or sorted(sites)
    plan, tokenizer = compose.plan(config), load_tokenizer(config)
    check_fits(config, tokenizer, load_model_config(config))
    model = resident(config, tokenizer, plan)
    base = fingerprint(model)
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
        now = made_from.base_of(config) | made_from.tokenizer_of(config, tokenizer)
        say_changed(config, run, now, progress.note)
        birth = fingerprints.keep(run, now, max(run.rounds, default=0))
        remote = Remote(line, run_id(keys), config.silence_timeout, lambda: (1, 1), note=progress.note)
        willing = _agree(remote, config, keys, order, sites, (base, birth), version, progress.note)
        rows = {name: rows for name, rows in zip(willing.names, willing.rows, strict=True) if rows}
        hear({"sites": rows, "refused": willing.refused})
        make_ready(plan, model)
        remote.greet, remote.known = willing.words.get, willing.same
        remote.largest = lambda: largest(plan, model)
        remote.in_order = not plan.spare

        @contextmanager
        def begin(station: Station) -> Iterator[Runtime]:
            yield remote

        training = Training(config, run, plan, willing.population(), model, progress, trackers, begin=begin, hear=hear)
        _hand_out(training.run_all(), plan, remote, rows)
        return Run(run.path)


def _hand_out(state: ServerState, plan: Plan, remote: Remote, sites: Iterable[str]) -> None:
    """Let the sites write down the model that the run leaves them."""
    params, extra = plan.algorithm.sent(state), beside(plan.algorithm, state)
    for reply in remote.exchange([Probe(site, state.round, params, extra, keep=True) for site in sites]):
        if isinstance(reply, Failure):
            remote.note(f"the site '{reply.client}' did not get the result: {reply.reason}.")


def run_id(keys: dict[str, Any]) -> str:
    """Return what tells a run from others at a site: it names the folder of what a client remembers."""
    return str(keys["output_dir"]).rstrip("/").rsplit("/", 1)[-1]


def largest(plan: Plan, model: Resident) -> tuple[int, int]:
    """Return the bytes and tensors that any reply of a client may have."""
    values: Tensors = {name: value for name, value in model.masters.items() if plan.sharing.travels(name)}
    sizes, counts = [], []
    for round in range(2 * plan.algorithm.period):
        streams = expected_streams(plan, values, round)
        sizes.append(num_bytes(streams))
        counts.append(sum(len(values) for values in streams.values()))
    return max(sizes) + (1 << 20) + 512 * max(counts), max(counts)


def _agree(
    remote: Remote,
    config: RunConfig,
    keys: dict[str, Any],
    order: list[str],
    there: list[str],
    marks: tuple[str, str],
    version: str,
    note: Callable[[str], None],
) -> Willing:
    """Say hello to all sites, and go on with those that agree; the marks are those of the base and of the run."""
    base, birth = marks
    wanted = agreement(keys, base, version)
    count = min(config.sample_clients, len(order))
    hello = {"run": keys, "id": remote.run, "clients": count, "base": base, "birth": birth}
    words = {name: json.dumps(hello | {"index": i}).encode() for i, name in enumerate(order)}
    refused: dict[str, str] = {}
    rows, held, away = [], [], 0
    answers = remote.ask_all({name: raw for name, raw in words.items() if name in there})
    for name in order:
        raw = answers.get(name, "it is not connected")
        said = _read(raw) if isinstance(raw, bytes) else {"refused": raw}
        away += isinstance(raw, str)
        if "refused" not in said and said.get("agreed") != wanted:
            said = {"refused": "it has another version of Weft, or read another run"}
        if "refused" in said:
            refused[name] = str(said["refused"])[:500]
            note(f"the site '{name}' takes no part: {refused[name]}.")
        rows.append(int(said.get("rows", 0)) if name not in refused else 0)
        held.append(int(said.get("held", 0)) if name not in refused else 0)
    least, part = max(1, config.min_clients), len(order) - len(refused)
    if part < least:
        why = "; ".join(f"{name}: {said}" for name, said in refused.items())
        few = f"{part} of {len(order)} sites take part, too few for a round ({why})."
        raise RunError(few) if part + away >= least else ConfigError(few)
    return Willing(order, rows, held, refused, words, wanted)


def _read(raw: bytes) -> dict[str, Any]:
    """Return what a site says to a hello; what is no such thing is a refusal."""
    try:
        said = json.loads(raw[:HELLO])
        if "refused" in said or (0 < int(said["rows"]) < 1 << 40 and 0 <= int(said["held"]) < 1 << 40):
            return dict(said)
    except (ValueError, KeyError, TypeError):
        pass
    return {"refused": "its answer cannot be read"}
