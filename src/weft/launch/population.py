"""From data to clients: rows are read, rendered and tokenized once, and every client gets its part of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from weft import registry
from weft.config import RunConfig
from weft.data import splits
from weft.data.encode import Encoded, closed_set, encode, encode_choices
from weft.data.formats import Example
from weft.data.partition import hold_out
from weft.data.skew import describe_split
from weft.errors import DataError
from weft.evaluation.heldout import Asked
from weft.federation.site import MemoryStore, Sites
from weft.launch.sources import Sources
from weft.models.layout import Question

PUBLIC = "public"
"""The client that has the public rows and takes part in every round."""


@dataclass(frozen=True)
class Population:
    """The clients of a run."""

    names: list[str]
    trained: Sites
    """Who trains: the clients, or one that has everybody's rows."""
    evaluated: Sites
    asked: dict[int, Asked]
    choices: list[str] | None
    counts: dict[str, int] = field(default_factory=dict)
    """Rows read, truncated, dropped and why; tokens."""
    split: dict[str, Any] = field(default_factory=dict)
    """What each client has, and how unlike the clients are."""
    text_bytes: np.ndarray | None = None
    """(all rows,) of plain text: the bytes that each row's targets stand for."""

    def tested(self) -> list[str]:
        """Return the names of clients that have held-out rows."""
        return [name for name, held in zip(self.names, self.evaluated.held, strict=True) if len(held)]


def template_name(config: RunConfig, tokenizer: Any, text_only: bool) -> str:
    """Return the template that `auto` stands for."""
    if text_only:
        return "plain"
    if config.template != "auto":
        return config.template
    return "chat" if tokenizer.chat_template else "alpaca"


def load_template(name: str) -> Any:
    """Return the template of a name."""
    if name == "plain":
        from weft.data.templates import PLAIN

        return PLAIN
    return registry.load(registry.TEMPLATES, name, "template")


def populate(config: RunConfig, tokenizer: Any, memory: MemoryStore, *, text_only: bool, pool: bool) -> Population:
    """Read, tokenize and share out the data.

    Args:
        config: names the sources.
        tokenizer: turns text into ids.
        memory: where clients keep what they remember.
        text_only: rows are text to continue, not questions and answers.
        pool: one client trains on everybody's rows (held-out rows stay with their clients).

    Raises:
        DataError: unreadable data, a client without rows, more clients than rows.
    """
    sources = Sources(config, text_only)
    owned: list[range] = []
    tests: list[range] = []
    if config.clients:
        for client in config.clients:
            owned.append(sources.add(client.data))
            tests.append(range(0) if client.eval is None else sources.add(client.eval))
    else:
        apart = config.split_strategy == "domain"
        owned.append(sources.add(config.dataset_name or "", sample=config.dataset_sample, files=apart))
        if config.eval_dataset_name is not None:
            tests.append(sources.add(config.eval_dataset_name))
    public = None if config.public_data is None else sources.add(config.public_data, public=True)
    template = load_template(template_name(config, tokenizer, text_only))
    table = encode(
        sources.examples,
        tokenizer,
        template,
        seq_length=config.seq_length,
        truncation_side=config.truncation_side,
        pieces=text_only,
    )
    if len(table) == 0:
        raise DataError(
            f"No row has a token of its answer within seq_length ({config.seq_length}): write a larger --seq_length."
        )
    names, train, held = _shares(config, sources, table, owned, tests)
    everybodys = None if public is None else _rows_of(table, _within(table, public))
    evaluated = trained = Sites(names, train, held, table, memory, everybodys if config.public_share else None)
    if everybodys is not None and not config.public_share:
        trained = _with_public(evaluated, everybodys)
    if pool:
        everything = np.concatenate(trained.train if everybodys is None else [*train, everybodys])
        trained = Sites(["central"], [everything], [everything[:0]], table, memory)
    choices = _choices(config, sources.examples, table, train, text_only)
    asked = _ask(choices, sources.examples, table, held, tokenizer, template, config.seq_length)
    split = _described(config, sources, table, names, [np.concatenate(own) for own in zip(train, held, strict=True)])
    return Population(
        names, trained, evaluated, asked, choices, {**table.counts, **sources.dropped}, split, table.text_bytes
    )


def _with_public(sites: Sites, rows: np.ndarray) -> Sites:
    """Return the clients and, last, one that has the public rows."""
    if PUBLIC in sites.names:
        raise DataError(f"A client is called '{PUBLIC}', which is the name of the public_data: give it another name.")
    return replace(sites, names=[*sites.names, PUBLIC], train=[*sites.train, rows], held=[*sites.held, rows[:0]])


def _described(
    config: RunConfig, sources: Sources, table: Encoded, names: list[str], rows: list[np.ndarray]
) -> dict[str, Any]:
    """Say what each client has; labels are those that the split went by, or the answers where it went by clients."""
    natural = bool(config.clients) or config.split_strategy in registry.NATURAL_SPLITS
    labels = (_answers if natural else _labels)(sources, table.rows)
    how = {"strategy": "clients" if config.clients else config.split_strategy, "column": config.split_column}
    return how | describe_split(names, rows, table.lengths(), labels)


def _shares(
    config: RunConfig, sources: Sources, table: Encoded, owned: list[range], tests: list[range]
) -> tuple[list[str], list[np.ndarray], list[np.ndarray]]:
    """Return the names, the training and the held-out rows of the clients.

    What is dealt and held out is examples: the rows of a long text stay together.
    """
    parts = [_within(table, own) for own in owned]
    kept_out = [_within(table, test) for test in tests]
    if config.clients:
        names = [client.name for client in config.clients]
    else:
        names, deal = _dealt(config, sources, table, parts[0])
        if kept_out:
            tested = np.array_split(kept_out[0], len(deal))
            return names, [_rows_of(table, own) for own in deal], [_rows_of(table, own) for own in tested]
        parts, kept_out = deal, [parts[0][:0]] * len(deal)
    train, held = [], []
    for number, (own, out) in enumerate(zip(parts, kept_out, strict=True)):
        if len(own) == 0:
            raise DataError(f"The client '{names[number]}' has no row with an answer within seq_length: give it data.")
        if not len(out):
            own, out = hold_out(own, config.eval_fraction, seed=config.seed, client=number)
        train.append(_rows_of(table, own))
        held.append(_rows_of(table, out))
    return names, train, held


def _dealt(
    config: RunConfig, sources: Sources, table: Encoded, numbers: np.ndarray
) -> tuple[list[str], list[np.ndarray]]:
    """Deal the examples of one source to clients; return their names and the numbers of their examples."""
    examples = [sources.examples[number] for number in numbers]
    known = splits.Rows(
        lengths=np.bincount(table.rows, weights=table.lengths())[numbers].astype(np.int64),
        labels=lambda: _labels(sources, numbers),
        texts=lambda: [" ".join(turn.text for turn in example.turns) for example in examples],
        origins=[sources.origins[number] for number in numbers],
        column=_labels(sources, numbers) if sources.values else None,
    )
    split = registry.load(registry.SPLITS, config.split_strategy, "split strategy")
    how = splits.How(
        clients=config.num_clients,
        seed=config.seed,
        alpha=config.split_alpha,
        min_rows=config.split_min_rows,
        shards=config.shards_per_client,
    )
    shares: splits.Shares = split(known, how)
    names = shares.names or [f"client_{number}" for number in range(len(shares.rows))]
    return names, [numbers[own] for own in shares.rows]


def _labels(sources: Sources, numbers: np.ndarray) -> list[str] | None:
    """Return the label of every example: of the column that is named, else its answer where these are few."""
    return [sources.values[number] for number in numbers] if sources.values else _answers(sources, numbers)


def _answers(sources: Sources, numbers: np.ndarray) -> list[str] | None:
    answers = [sources.examples[number].answer.strip() for number in numbers]
    return answers if closed_set(answers) else None


def _within(table: Encoded, examples: range) -> np.ndarray:
    """Return which of these examples have rows in the table."""
    first, last = np.searchsorted(table.rows, [examples.start, examples.stop])
    return np.unique(table.rows[first:last])


def _rows_of(table: Encoded, examples: np.ndarray) -> np.ndarray:
    """Return the rows of the table that were made of these examples, in their order."""
    first, last = (np.searchsorted(table.rows, examples, side=side) for side in ("left", "right"))
    return np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)]) if len(examples) else first


def _choices(
    config: RunConfig, examples: list[Example], table: Encoded, train: list[np.ndarray], text_only: bool
) -> list[str] | None:
    """Return the closed set of answers: the one that is named, or the one that training answers form."""
    if text_only:
        return None
    if config.choices is not None:
        return list(config.choices) or None
    return closed_set(examples[int(table.rows[row])].answer for rows in train for row in rows)


def _ask(
    choices: list[str] | None,
    examples: list[Example],
    table: Encoded,
    held: list[np.ndarray],
    tokenizer: Any,
    template: Any,
    seq_length: int,
) -> dict[int, Asked]:
    """Make questions of the held-out rows whose answer is one of the choices."""
    if not choices:
        return {}
    rows = np.concatenate(held)
    made = encode_choices(
        [examples[int(table.rows[row])] for row in rows], tokenizer, template, choices, seq_length=seq_length
    )
    return {
        int(row): Asked(Question(made.prompts[i], made.choices[i]), int(made.right[i]))
        for i, row in enumerate(rows)
        if made.right[i] >= 0
    }
