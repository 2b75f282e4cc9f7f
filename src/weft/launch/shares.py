"""Which examples each client trains on and holds out. Examples are dealt, so the rows of a long text stay together."""

from __future__ import annotations

import numpy as np

from weft.config import RunConfig
from weft.data import splits
from weft.data.partition import hold_out
from weft.data.sources import Sources, split_seed
from weft.errors import DataError
from weft.launch.parts import split
from weft.launch.reading import TokenTable
from weft.launch.units import cut_units


def shares_of(
    config: RunConfig,
    sources: Sources,
    table: TokenTable,
    owners: list[np.ndarray],
    tests: list[np.ndarray],
    first: int,
) -> tuple[list[str], list[np.ndarray], list[np.ndarray]]:
    """Return the names, and which examples each client trains on and holds out.

    Args:
        config: names the clients, or says how many there are and how they are dealt rows.
        sources: what was read.
        table: its rows as tokens.
        owners: examples of each client of its own; or all examples, in one array.
        tests: examples to measure on, in the same way; none: they are held out.
        first: the number that the first of the clients has in the federation.

    Raises:
        DataError: a client has no row, or there are more clients than rows.
    """
    parts = [table.within(part) for part in owners]
    tests_of_parts = [table.within(test) for test in tests]
    if config.clients:
        names = [client.name for client in config.clients]
    else:
        names, deal = _deal(config, sources, table, parts[0])
        deal = [part[:0] if name in config.forgotten else part for name, part in zip(names, deal, strict=True)]
        if tests_of_parts:
            return names, cut_units(config, sources, deal), np.array_split(tests_of_parts[0], len(deal))
        parts, tests_of_parts = deal, [parts[0][:0]] * len(deal)
    train, held_out = [], []
    for number, (part, test) in enumerate(zip(parts, tests_of_parts, strict=True)):
        if names[number] in config.forgotten:
            train.append(part[:0])
            held_out.append(part[:0])
            continue
        if len(part) == 0:
            raise DataError(f"The client '{names[number]}' has no row with an answer within seq_length: give it data.")
        if not len(test):
            most = config.eval_rows
            part, test = hold_out(part, config.eval_fraction, seed=split_seed(config), client=first + number, most=most)
        train.append(part)
        held_out.append(test)
    return names, cut_units(config, sources, train), held_out


def _deal(
    config: RunConfig, sources: Sources, table: TokenTable, numbers: np.ndarray
) -> tuple[list[str], list[np.ndarray]]:
    """Deal the examples of one source to clients; return their names and the numbers of their examples."""
    split_rows = splits.SplitRows(
        lengths=table.lengths[numbers],
        labels=lambda: sources.labels(numbers),
        texts=lambda: sources.texts(numbers),
        origins=[sources.origins[number] for number in numbers],
        column=sources.labels(numbers) if sources.values else None,
    )
    settings = splits.SplitSettings(
        clients=config.num_clients,
        seed=split_seed(config),
        alpha=config.split_alpha,
        min_rows=config.split_min_rows,
        shards=config.shards_per_client,
        rest=config.clients_of_rest,
    )
    shares = split(config)(split_rows, settings)
    if shares.unassigned:
        rows, values = sum(shares.unassigned.values()), len(shares.unassigned)
        sources.log(
            f"{rows} rows of {values} values beyond num_clients are left out: write --num_clients "
            f"{values + len(shares.rows)} for a client of each, or --clients_of_rest 1 for one of them all."
        )
    names = shares.names or [f"client_{number}" for number in range(len(shares.rows))]
    return names, [numbers[share] for share in shares.rows]
