"""Cleaning at the client: its training rows go through the run's cleaners; rows to measure on stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from weft.config import RunConfig
from weft.data.cleaning.cleaner import Outcome, Sample, Tools, add_up, clean
from weft.data.sources import Sources
from weft.errors import DataError
from weft.json_types import JsonObject
from weft.launch.contamination import items_of
from weft.launch.parts import cleaners
from weft.models.resident import Resident
from weft.objectives.choices import most_tokens
from weft.runs.cleaning import counts_text

ROWS = 64
"""The most rows of one pass."""
Surprise = Callable[[Sequence[Sample]], np.ndarray]
"""Computes (rows,) the mean loss of a token (nats) under the starting model."""


def clean_shares(
    config: RunConfig,
    sources: Sources,
    names: Sequence[str],
    shares: Sequence[np.ndarray | None],
    held_out: Sequence[np.ndarray],
    surprise: Surprise | None,
    uncleaned: Collection[str] = (),
) -> tuple[list[np.ndarray | None], JsonObject]:
    """Clean the training examples of every client, each by itself.

    Args:
        config: names the cleaners.
        sources: have the examples, and get the texts that were repaired or masked.
        names: of the clients.
        shares: the examples that each client trains on, and last the public ones, or None.
        held_out: examples that are measured on; they are only compared with.
        surprise: computes losses, for cleaners that use the model.
        uncleaned: names of clients whose rows stay as they are: the malicious ones of a simulation.

    Returns:
        The examples that are left to each, and the entry `cleaning` of the split: the counts of every client by
        cleaner, and of all.

    Raises:
        DataError: a client has no row left.
    """
    if not config.clean:
        return list(shares), {}
    chosen = cleaners(config)
    if surprise is None and any(cleaner.uses_model for _, cleaner in chosen):
        sources.log("cleaners that use the model do nothing here, where there is none.")
    test_rows = np.concatenate(held_out) if len(held_out) else np.zeros(0, dtype=np.int64)
    for _, cleaner in chosen:
        if cleaner.tells:
            sources.log(cleaner.tells)
    tools = Tools(surprise, [sample.text for sample in sources.samples(test_rows)], on_tasks=_task_finder(config))
    remaining: list[np.ndarray | None] = []
    counts: dict[str, dict[str, JsonObject]] = {}
    for name, numbers in zip([*names, "public"], shares, strict=True):
        if numbers is None or name in uncleaned:
            remaining.append(numbers)
            continue
        outcome = clean(sources.samples(numbers), chosen, replace(tools, client=name))
        if len(numbers) and not outcome.samples:
            raise _emptied(name, len(numbers), outcome)
        new = sources.rewrite({int(numbers[place]): outcome.samples[place] for place in sorted(outcome.changed)})
        kept = [int(numbers[place]) for place in sorted(outcome.samples)]
        remaining.append(np.array(sorted(new.get(number, number) for number in kept), dtype=np.int64))
        counts[name] = outcome.steps
    total = add_up(list(counts.values()))
    _account(sources, total)
    return remaining, {"cleaning": {"total": total, "clients": counts}}


def _task_finder(config: RunConfig) -> Callable[[str], str | None] | None:
    """Return what finds texts among the items of the run's evaluation tasks; None where nothing asks for it."""
    if not config.eval_tasks or "contamination" not in config.clean:
        return None
    items = items_of(config, config.eval_tasks)

    def find(text: str) -> str | None:
        return next((name for name, grams in items.items() if grams.shared([text])), None)

    return find


def _emptied(name: str, rows: int, outcome: Outcome) -> DataError:
    """Return the error for a client without rows."""
    cleaner, step = list(outcome.steps.items())[-1]
    return DataError(
        f"Cleaning leaves no row to the client '{name}': the cleaner {cleaner} took the last {step['left_out']} of its "
        f"{rows} ({', '.join(step['counts'])}): leave {cleaner} out of --clean, change it by --clean_args, or give the "
        "client other rows."
    )


def _account(sources: Sources, total: dict[str, JsonObject]) -> None:
    """Add what cleaning did, of all clients together, to the account of the data."""
    for name, step in total.items():
        kinds = counts_text(step)
        if step["left_out"]:
            sources.drop(f"cleaner {name}: {kinds}", step["left_out"])
        if step["changed"]:
            sources.log(f"the cleaner {name} rewrote {step['changed']} rows ({kinds}).")
        sources.account.num_examples -= step["left_out"]


def losses(model: Resident, samples: Sequence[Sample], config: RunConfig) -> np.ndarray:
    """Return (rows,) the mean loss of a token (nats) of each row as plain text, cut to seq_length tokens.

    Args:
        model: as it was loaded.
        samples: the rows.
        config: names seq_length.
    """
    values = np.zeros(len(samples))
    with model.evaluating():
        first = 0
        while first < len(samples):
            rows = _next_rows(model, samples, first, config.seq_length)
            # One row a line: positions of a packed line would have to be sorted out again.
            batch = model.lay_out([(ids, np.arange(len(ids)) > 0) for ids in rows], pack=False).to(model.device)
            owners = torch.tensor([number for number, ids in enumerate(rows) for _ in ids[1:]], device=model.device)
            each = F.cross_entropy(model.logits(batch).float(), batch.targets, reduction="none")
            sums = torch.zeros(len(rows), device=model.device).index_add(0, owners, each)
            values[first : first + len(rows)] = sums.cpu().numpy() / [len(ids) - 1 for ids in rows]
            first += len(rows)
    return values


def _next_rows(model: Resident, samples: Sequence[Sample], first: int, most: int) -> list[np.ndarray]:
    """Return the ids of as many of the next rows as fit into one pass, one at least."""
    rows: list[np.ndarray] = []
    room = most_tokens(model)
    for sample in samples[first : first + ROWS]:
        ids = model.tokenizer.encode(sample.text, add_special_tokens=False)[:most]
        room -= len(ids)
        if rows and room < 0:
            break
        # A row needs one token to predict from, and one to predict.
        rows.append(np.array(ids if len(ids) > 1 else [*ids, 0, 0][:2], dtype=np.int32))
    return rows
