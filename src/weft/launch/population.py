"""From data to clients: rows are read, rendered and tokenized once, then split among the clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from weft import kinds, plugins, registry
from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.data.encode import NO_ANSWER
from weft.data.pairs import PairTable
from weft.data.rows import Account
from weft.data.skew import describe_split
from weft.data.source_kinds import Texts
from weft.data.sources import Sources, complete
from weft.data.store import Report
from weft.errors import DataError
from weft.evaluation.heldout import ClosedQuestion
from weft.federation.clients import Clients, MemoryStore
from weft.json_types import JsonObject
from weft.launch.canaries import Canary, planted, rows_planted
from weft.launch.changes import changed, still_there
from weft.launch.cleaning import Surprise
from weft.launch.forgotten import forgotten_of
from weft.launch.left_out import left_out_of
from weft.launch.mixtures import mixed
from weft.launch.overlap import count_repeats, separate_test_rows
from weft.launch.questions import make_questions, questions_of
from weft.launch.reading import AnySources, TokenTable, read, sources_of, tokenized
from weft.launch.shares import shares_of
from weft.launch.template_date import today
from weft.launch.units import with_units

PUBLIC = "public"
"""The name of the client that has the public rows and takes part in every round."""


@dataclass(frozen=True)
class Population:
    """The clients of a run."""

    names: list[str]
    trained: Clients
    """Who trains: the clients, or one that has everybody's rows."""
    evaluated: Clients
    questions: dict[int, ClosedQuestion]
    """Held-out rows as questions with a closed set of answers, by number of the table's row."""
    choices: list[str] | None
    counts: dict[str, int] = field(default_factory=dict)
    """Rows, truncated, without a place for their answer; tokens."""
    split: JsonObject = field(default_factory=dict)
    """What each client has, and how unlike the clients are."""
    text_bytes: Callable[[int], int] | None = None
    """Of plain text: the bytes that a row's targets stand for."""
    absent: tuple[int, ...] = ()  # clients that take no part
    left_out: tuple[str, ...] = ()  # those of them that leave_out names
    forgotten: tuple[int, ...] = ()  # those of them whose rows are not used any more
    live_rows: Sequence[int] | None = None
    """Training rows of each client, where they can change during the run; None: those of `trained`."""
    account: Account = field(default_factory=Account)
    """What was read, left out and not used."""
    canaries: tuple[Canary, ...] = ()
    """Planted records, and those that coins kept out."""
    domains: tuple[str, ...] = ()  # of the mixture, by number

    def forgotten_names(self) -> list[str]:
        """Return the names of clients whose rows are not used any more."""
        return [self.names[number] for number in self.forgotten]

    def tested(self) -> list[str]:
        """Return the names of clients that have held-out rows."""
        return [name for name, test_rows in zip(self.names, self.evaluated.held_out, strict=True) if len(test_rows)]


def template_name(config: RunConfig, tokenizer: Tokenizer, rows: str) -> str:
    """Return the name of the run's template, with `auto` resolved."""
    if rows == "text":
        return "plain"
    if config.template != "auto":
        return config.template
    return "chat" if tokenizer.chat_template else "alpaca"


def load_template(name: str, day: str | None = None) -> Any:
    """Return a template by its name; the chat template writes `day`, or today's date, where it writes one."""
    if name == "plain":
        from weft.data.templates import PLAIN

        return PLAIN
    template = kinds.load_part("template", name)
    return replace(template, date=day or today(), notes={}) if name == "chat" else template


def populate(
    config: RunConfig,
    tokenizer: Tokenizer,
    memory: MemoryStore,
    *,
    rows: str,
    pool: bool,
    report: Report = lambda *_: None,
    first: int = 0,
    surprise: Surprise | None = None,
) -> Population:
    """Read, tokenize and share out the data.

    Args:
        config: names the sources.
        tokenizer: turns text into ids.
        memory: where clients keep what they remember.
        rows: the kind of rows that the objective learns from (`Objective.rows`).
        pool: one client trains on everybody's rows (held-out rows stay with their clients).
        report: called with the progress of tokenizing text.
        first: the number that the first of the clients has in the federation.
        surprise: computes losses under the starting model for cleaners that use it; without it they do nothing.

    Raises:
        DataError: unreadable data, a client without rows, also after cleaning, more clients than rows.
    """
    sources = sources_of(config, tokenizer, rows, report)
    owners, tests, public = read(config, sources)
    owners, public = separate_test_rows(config, sources, owners, tests, public)
    template = load_template(template_name(config, tokenizer, rows), config.template_date)
    table = tokenized(sources, tokenizer, template)
    complete(sources, table, template)
    names, train, held_out = shares_of(config, sources, table, owners, tests, first)
    gone, public_rows = forgotten_of(config, names), None if public is None else table.within(public)
    new = changed(config, sources, names, [*train, public_rows], held_out, surprise, memory.secret, tokenizer, template)
    if new.shares is not None:
        table = tokenized(sources, tokenizer, template)
        train, public_rows = still_there(table, names, new.shares)
    _note_repeats(sources, tests, train, held_out)
    public_sets = _public_sets(config, public_rows)
    _pair_up(table, rows, [*train, *held_out, *public_sets])
    train_rows, held_rows = ([table.rows_of(part) for part in parts] for parts in (train, held_out))
    shared = table.rows_of(public_rows) if public_rows is not None and config.public_share else None
    evaluated = trained = Clients(names, train_rows, held_rows, table, memory, shared, first=first)
    if public_rows is not None and not config.public_in_batches:
        trained = _with_public(evaluated, table.rows_of(public_rows))
    apart = left_out_of(config, names, [name for name, rows in zip(names, held_rows, strict=True) if len(rows)])
    kept = [part for name, part in zip(names, train, strict=True) if name not in apart]
    documents = [np.concatenate([*kept, *([] if config.mixture else public_sets)])] if pool else train
    trained = _pooled(evaluated, table.rows_of(documents[0])) if pool else trained
    canaries, dealt = planted(config, table, new.canaries, train, len(sources.origins))
    make = partial(make_questions, tokenizer=tokenizer, template=template, config=config)
    choices, questions = questions_of(config, new.honest, table, dealt, held_out, make)
    split = _describe(config, sources, table, names, dealt, held_out, len(sources.origins) - rows_planted(canaries))
    counts, sizes = _counts(table, sources), getattr(table, "text_bytes", None)
    trained, domains = mixed(config, sources, table, trained, documents, public_rows, apart)
    trained = with_units(config, sources, table, trained)
    people = (names, trained, evaluated, questions, choices, counts, split | new.cleaning, sizes)
    absent, hidden = () if pool else (*map(names.index, apart), *gone), tuple(canaries)
    return Population(*people, absent, apart, gone, account=sources.account, canaries=hidden, domains=domains)


def _counts(table: TokenTable, sources: AnySources) -> dict[str, int]:
    """Return the counts of rows, each once: the table has its own name for rows without an answer."""
    omitted = sources.account.omissions.counts
    return {**table.counts, **{reason: count for reason, count in omitted.items() if reason != NO_ANSWER}}


def _pair_up(table: TokenTable, rows: str, parts: Sequence[np.ndarray]) -> None:
    """Pair judged answers within each client, so that none of another client is read, and held-out ones likewise."""
    if isinstance(table, PairTable) and rows == "judged":
        for part in parts:
            table.pair_up(table.rows_of(part))


def _note_repeats(
    sources: Sources, tests: list[np.ndarray], train: list[np.ndarray], held_out: list[np.ndarray]
) -> None:
    """Note held-out rows that are trained on too, where they were held out of the same source."""
    if isinstance(sources, Texts) or any(len(test) for test in tests):
        return
    of = sum(len(rows) for rows in held_out)
    if of and (count := count_repeats(sources, train, held_out)):
        sources.log(
            f"{count} of the {of} held-out rows have the same content as a row that is trained on: the data "
            "contains duplicates, and scores on these rows are optimistic."
        )


def _pooled(clients: Clients, rows: Sequence[int] | np.ndarray) -> Clients:
    """Return one client that has everybody's rows; held-out rows stay with the clients."""
    return Clients(["central"], [rows], [clients.held_out[0][:0]], clients.table, clients.memory)


def _public_sets(config: RunConfig, rows: np.ndarray | None) -> list[np.ndarray]:
    """Return the public rows as a list of one set, or of none; DataError where the set is empty."""
    if rows is not None and not len(rows):
        raise DataError(
            f"public_data '{config.public_data}' has no row that can be used: all are longer than --seq_length "
            f"({config.seq_length}), left out, or held out, so write other rows, or a larger --seq_length."
        )
    return [] if rows is None else [rows]


def _with_public(clients: Clients, rows: Sequence[int] | np.ndarray) -> Clients:
    """Return the clients and, last, one that has the public rows."""
    if PUBLIC in clients.names:
        raise DataError(f"A client is called '{PUBLIC}', which is the name of the public_data: give it another name.")
    # The same rows are probed where an aggregator tries updates on them; no evaluation of the run asks for them.
    train, held_out = [*clients.train, rows], [*clients.held_out, rows]
    return replace(clients, names=[*clients.names, PUBLIC], train=train, held_out=held_out)


def _describe(
    config: RunConfig,
    sources: Sources,
    table: TokenTable,
    names: list[str],
    train: list[np.ndarray],
    held_out: list[np.ndarray],
    examples: int,
) -> JsonObject:
    """Say what each client has; labels are those that the split went by, or the answers where it went by clients."""
    natural = bool(config.clients) or config.split_strategy in registry.NATURAL_SPLITS
    labels = (sources.answers if natural else sources.labels)(np.arange(examples))
    header = {
        "strategy": "clients" if config.clients else plugins.public_name(config.split_strategy),
        "column": config.split_column,
    }
    parts = list(map(np.concatenate, zip(train, held_out, strict=True)))
    return header | describe_split(names, parts, table.lengths, labels)
