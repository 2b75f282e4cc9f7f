"""From data to clients: rows are read, rendered and tokenized once, and every client gets its part of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weft import registry
from weft.config import RunConfig
from weft.data.encode import Encoded, closed_set, encode, encode_choices
from weft.data.formats import Example, to_examples
from weft.data.load import read_rows, resolve_source
from weft.data.partition import hold_out, sample_rows
from weft.errors import DataError
from weft.evaluation.heldout import Asked
from weft.federation.site import MemoryStore, Sites
from weft.models.layout import Question


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

    def tested(self) -> list[str]:
        """Return the names of clients that have held-out rows."""
        return [name for name, held in zip(self.names, self.evaluated.held, strict=True) if len(held)]


@dataclass
class _Sources:
    """Rows of several sources in one table."""

    examples: list[Example] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    def add(self, config: RunConfig, source: str, text_only: bool, sample: int | None = None) -> range:
        """Read a source; return which examples are its own.

        Raises:
            DataError: it cannot be read, or no row of it can be used.
        """
        rows = read_rows(source, split=config.dataset_split, token=config.token or None)
        if sample is not None and len(rows) > sample:
            self.dropped["beyond dataset_sample"] = len(rows) - sample
            rows = [rows[int(row)] for row in sample_rows(len(rows), sample, seed=config.seed)]
        made = to_examples(
            rows,
            source=source,
            instruction_column=config.instruction_column,
            response_column=config.response_column,
            text_only=text_only,
        )
        for reason, count in made.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count
        first = len(self.examples)
        self.examples += made.examples
        if len(self.examples) == first:
            raise DataError(
                f"'{source}' has no row that can be used: check its columns and that answers are not empty."
            )
        return range(first, len(self.examples))


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
    sources = _Sources()
    owned: list[range] = []
    tests: list[range] = []
    if config.clients:
        names = [client.name for client in config.clients]
        for client in config.clients:
            owned.append(sources.add(config, resolve_source(client.data, config.local_data_dir), text_only))
            if client.eval is not None:
                tests.append(sources.add(config, resolve_source(client.eval, config.local_data_dir), text_only))
            else:
                tests.append(range(0))
    else:
        names = [f"client_{number}" for number in range(config.num_clients)]
        source = resolve_source(config.dataset_name or "", config.local_data_dir)
        owned.append(sources.add(config, source, text_only, config.dataset_sample))
        if config.eval_dataset_name is not None:
            tests.append(
                sources.add(config, resolve_source(config.eval_dataset_name, config.local_data_dir), text_only)
            )
    template = load_template(template_name(config, tokenizer, text_only))
    table = encode(
        sources.examples, tokenizer, template, seq_length=config.seq_length, truncation_side=config.truncation_side
    )
    if len(table) == 0:
        raise DataError(
            f"No row has a token of its answer within seq_length ({config.seq_length}): write a larger --seq_length."
        )
    train, held = _shares(config, table, owned, tests, names)
    evaluated = Sites(names, train, held, table, memory)
    trained = evaluated
    if pool:
        everything = np.concatenate(train)
        trained = Sites(["central"], [everything], [everything[:0]], table, memory)
    choices = _choices(config, sources.examples, table, train, text_only)
    asked = _ask(choices, sources.examples, table, held, tokenizer, template, config.seq_length)
    return Population(names, trained, evaluated, asked, choices, {**table.counts, **sources.dropped})


def _shares(
    config: RunConfig, table: Encoded, owned: list[range], tests: list[range], names: list[str]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the training and the held-out rows of every client."""
    parts = [_within(table, own) for own in owned]
    kept_out = [_within(table, test) for test in tests]
    if not config.clients:
        split: Callable[..., list[np.ndarray]] = registry.load(registry.SPLITS, config.split_strategy, "split strategy")
        deal = [parts[0][rows] for rows in split(len(parts[0]), config.num_clients, seed=config.seed)]
        if kept_out:
            return deal, list(np.array_split(kept_out[0], config.num_clients))
        parts, kept_out = deal, [parts[0][:0]] * len(deal)
    train, held = [], []
    for number, (rows, tested) in enumerate(zip(parts, kept_out, strict=True)):
        if len(rows) == 0:
            raise DataError(f"The client '{names[number]}' has no row with an answer within seq_length: give it data.")
        if len(tested):
            train.append(rows)
            held.append(tested)
            continue
        own, out = hold_out(rows, config.eval_fraction, seed=config.seed, client=number)
        train.append(own)
        held.append(out)
    return train, held


def _within(table: Encoded, examples: range) -> np.ndarray:
    """Return the rows of the table that were made of these examples."""
    first, last = np.searchsorted(table.rows, [examples.start, examples.stop])
    return np.arange(first, last)


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
