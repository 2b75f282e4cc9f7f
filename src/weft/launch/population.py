"""From data to clients: rows are read, rendered and tokenized once, and every client gets its part of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from weft import kinds, plugins, registry
from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.data import splits
from weft.data.documents import Documents
from weft.data.encode import ConversationTable, closed_set, encode_choices
from weft.data.formats import Example
from weft.data.pairs import PairTable
from weft.data.partition import hold_out
from weft.data.prompts import PromptTable
from weft.data.rows import Account
from weft.data.skew import describe_split
from weft.data.source_kinds import Conversations, Judgements, Prompts, Texts, needs_answer
from weft.data.sources import Sources, complete, split_seed
from weft.data.store import Report
from weft.data.tokens import TextTokenizer
from weft.data.words import lead_of
from weft.errors import DataError
from weft.evaluation.heldout import Questions
from weft.federation.clients import Clients, MemoryStore
from weft.json_types import JsonObject
from weft.launch.overlap import count_repeats, keep_apart
from weft.launch.parts import split
from weft.launch.template_date import today
from weft.models.layout import Question

TokenTable = ConversationTable | Documents | PairTable | PromptTable
PUBLIC = "public"
"""The client that has the public rows and takes part in every round."""


@dataclass(frozen=True)
class Population:
    """The clients of a run."""

    names: list[str]
    trained: Clients
    """Who trains: the clients, or one that has everybody's rows."""
    evaluated: Clients
    asked: dict[int, Questions]
    choices: list[str] | None
    counts: dict[str, int] = field(default_factory=dict)
    """Rows, truncated, without a place for their answer; tokens."""
    split: JsonObject = field(default_factory=dict)
    """What each client has, and how unlike the clients are."""
    text_bytes: Callable[[int], int] | None = None
    """Of plain text: the bytes that a row's targets stand for."""
    absent: tuple[int, ...] = ()
    """Clients that take no part."""
    account: Account = field(default_factory=Account)
    """What was read, left out and not used."""

    def tested(self) -> list[str]:
        """Return the names of clients that have held-out rows."""
        return [name for name, held in zip(self.names, self.evaluated.held_out, strict=True) if len(held)]


def template_name(config: RunConfig, tokenizer: Tokenizer, rows: str) -> str:
    """Return the template that `auto` stands for."""
    if rows == "text":
        return "plain"
    if config.template != "auto":
        return config.template
    return "chat" if tokenizer.chat_template else "alpaca"


def load_template(name: str, day: str | None = None) -> Any:
    """Return the template of a name; one with a clock writes this day, else today."""
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
) -> Population:
    """Read, tokenize and share out the data.

    Args:
        config: names the sources.
        tokenizer: turns text into ids.
        memory: where clients keep what they remember.
        rows: what they are, as an objective says it.
        pool: one client trains on everybody's rows (held-out rows stay with their clients).
        report: told how far the tokenizing of text is.
        first: the number that the first of the clients has in the federation.

    Raises:
        DataError: unreadable data, a client without rows, more clients than rows.
    """
    sources = _sources(config, tokenizer, rows, report)
    owned, tests, public = _read(config, sources)
    owned, public = keep_apart(config, sources, owned, tests, public)
    template = load_template(template_name(config, tokenizer, rows), config.template_date)
    table = sources.table() if isinstance(sources, Texts) else sources.table(tokenizer, template)
    complete(sources, table, template)
    names, train, held = _shares(config, sources, table, owned, tests, first)
    if not isinstance(sources, Texts) and not any(len(test) for test in tests):
        _tell_repeats(sources, train, held)
    if isinstance(table, PairTable) and rows == "judged":
        for own in [*train, *held, *([] if public is None else [table.within(public)])]:
            table.pair_up(table.rows_of(own))
    held_rows = [table.rows_of(own) for own in held]
    everybodys = None if public is None else table.within(public)
    shared = table.rows_of(everybodys) if everybodys is not None and config.public_share else None
    evaluated = trained = Clients(
        names, [table.rows_of(own) for own in train], held_rows, table, memory, shared, first=first
    )
    if everybodys is not None and not config.public_share:
        trained = _with_public(evaluated, table.rows_of(everybodys))
    if pool:
        everything = np.concatenate([*train, *([] if everybodys is None else [everybodys])])
        trained = Clients(["central"], [table.rows_of(everything)], [held_rows[0][:0]], table, memory)
    choices: list[str] | None = None
    asked: dict[int, Questions] = {}
    if isinstance(table, ConversationTable) and isinstance(sources, Conversations):
        choices = _choices(config, sources.examples, train)
        asked = _ask(choices, sources.examples, held, table, tokenizer, template, config)
    split = _described(config, sources, table, names, [np.concatenate(own) for own in zip(train, held, strict=True)])
    counts = {**table.counts, **sources.account.omissions.counts}
    sizes = table.text_bytes if isinstance(table, Documents) else None
    return Population(names, trained, evaluated, asked, choices, counts, split, sizes, account=sources.account)


def _sources(config: RunConfig, tokenizer: Tokenizer, rows: str, report: Report) -> Texts | Conversations | Judgements:
    if rows == "text":
        return Texts(config, tokenizer=TextTokenizer(tokenizer), report=report)
    if rows == "prompts":
        return Prompts(config, needs_answer=needs_answer(config))
    return Conversations(config) if rows == "conversations" else Judgements(config, unpaired=rows == "judged")


def _read(config: RunConfig, sources: Sources) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray | None]:
    """Read all sources; return the examples of each owner, those of its tests, and the public ones."""
    owned: list[np.ndarray] = []
    tests: list[np.ndarray] = []
    if config.clients:
        for client in config.clients:
            owned.append(sources.add(client.data))
            apart = client.eval or (client.data if config.eval_dataset_split else None)
            tests.append(owned[-1][:0] if apart is None else sources.add(apart, held_out=True))
    else:
        files = config.split_strategy == "domain"
        owned.append(sources.add(config.dataset_name or "", sample=config.dataset_sample, files=files))
        if config.eval_dataset_name is not None or config.eval_dataset_split is not None:
            tests.append(sources.add(config.eval_dataset_name or config.dataset_name or "", held_out=True))
    return owned, tests, None if config.public_data is None else sources.add(config.public_data, public=True)


def _tell_repeats(sources: Sources, train: list[np.ndarray], held: list[np.ndarray]) -> None:
    count, of = count_repeats(sources, train, held), sum(len(own) for own in held)
    if count:
        sources.log(
            f"{count} of the {of} held-out rows have the same content as a row that is trained on: the data repeats "
            "itself, and scores on them say less."
        )


def _with_public(clients: Clients, rows: Sequence[int] | np.ndarray) -> Clients:
    """Return the clients and, last, one that has the public rows."""
    if PUBLIC in clients.names:
        raise DataError(f"A client is called '{PUBLIC}', which is the name of the public_data: give it another name.")
    train, held = [*clients.train, rows], [*clients.held_out, rows[:0]]
    return replace(clients, names=[*clients.names, PUBLIC], train=train, held_out=held)


def _described(
    config: RunConfig, sources: Sources, table: TokenTable, names: list[str], owned: list[np.ndarray]
) -> JsonObject:
    """Say what each client has; labels are those that the split went by, or the answers where it went by clients."""
    natural = bool(config.clients) or config.split_strategy in registry.NATURAL_SPLITS
    labels = (sources.answers if natural else sources.labels)(np.arange(len(sources.origins)))
    how = {
        "strategy": "clients" if config.clients else plugins.public_name(config.split_strategy),
        "column": config.split_column,
    }
    return how | describe_split(names, owned, table.lengths, labels)


def _shares(
    config: RunConfig, sources: Sources, table: TokenTable, owned: list[np.ndarray], tests: list[np.ndarray], first: int
) -> tuple[list[str], list[np.ndarray], list[np.ndarray]]:
    """Return the names, and which examples each client trains on and holds out.

    What is dealt and held out is examples: the rows of a long text stay together.
    """
    parts = [table.within(own) for own in owned]
    kept_out = [table.within(test) for test in tests]
    if config.clients:
        names = [client.name for client in config.clients]
    else:
        names, deal = _dealt(config, sources, table, parts[0])
        if kept_out:
            return names, deal, np.array_split(kept_out[0], len(deal))
        parts, kept_out = deal, [parts[0][:0]] * len(deal)
    train, held = [], []
    for number, (own, out) in enumerate(zip(parts, kept_out, strict=True)):
        if len(own) == 0:
            raise DataError(f"The client '{names[number]}' has no row with an answer within seq_length: give it data.")
        if not len(out):
            most = config.eval_rows
            own, out = hold_out(own, config.eval_fraction, seed=split_seed(config), client=first + number, most=most)
        train.append(own)
        held.append(out)
    return names, train, held


def _dealt(
    config: RunConfig, sources: Sources, table: TokenTable, numbers: np.ndarray
) -> tuple[list[str], list[np.ndarray]]:
    """Deal the examples of one source to clients; return their names and the numbers of their examples."""
    known = splits.SplitRows(
        lengths=table.lengths[numbers],
        labels=lambda: sources.labels(numbers),
        texts=lambda: sources.texts(numbers),
        origins=[sources.origins[number] for number in numbers],
        column=sources.labels(numbers) if sources.values else None,
    )
    how = splits.SplitSettings(
        clients=config.num_clients,
        seed=split_seed(config),
        alpha=config.split_alpha,
        min_rows=config.split_min_rows,
        shards=config.shards_per_client,
        rest=config.clients_of_rest,
    )
    shares = split(config)(known, how)
    if shares.unassigned:
        rows, values = sum(shares.unassigned.values()), len(shares.unassigned)
        sources.log(
            f"{rows} rows of {values} values beyond num_clients are left out: write --num_clients "
            f"{values + len(shares.rows)} for a client of each, or --clients_of_rest 1 for one of them all."
        )
    names = shares.names or [f"client_{number}" for number in range(len(shares.rows))]
    return names, [numbers[own] for own in shares.rows]


def _choices(config: RunConfig, examples: list[Example], train: list[np.ndarray]) -> list[str] | None:
    """Return the closed set of answers: the one that is named, or the one that training answers form."""
    if config.choices is not None:
        return list(config.choices) or None
    return closed_set(examples[number].answer for own in train for number in own)


def _ask(
    choices: list[str] | None,
    examples: list[Example],
    held: list[np.ndarray],
    table: ConversationTable,
    tokenizer: Tokenizer,
    template: Any,
    config: RunConfig,
) -> dict[int, Questions]:
    """Make questions of the held-out rows whose answer is one of the choices."""
    if not choices:
        return {}
    numbers = np.concatenate(held)
    shown = [examples[number] for number in numbers]
    length, lead = config.seq_length, lead_of(config)
    made = encode_choices(shown, tokenizer, template, choices, seq_length=length, lead=lead)
    return {
        int(row): Questions(Question(made.prompts[i], made.choices[i]), int(made.right[i]))
        for i, row in enumerate(table.rows_of(numbers))
        if made.right[i] >= 0
    }
