"""Few-shot examples: rows of a client's own that stand before its rows, chosen where the rows are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from weft.config import RunConfig
from weft.core.objective import Objective
from weft.core.seeds import derive, generator
from weft.data.words import Words
from weft.federation.clients import ClientData, Examples, View
from weft.launch.population import Population
from weft.models.resident import Resident

CANDIDATES, SCORED_ROWS = 4, 16
"""Sets of examples that are tried, and other rows that they are tried on."""


def choose_few_shot(
    config: RunConfig, population: Population, objective: Objective, model: Resident, note: Callable[[str], None]
) -> None:
    """Choose every client's examples: of some random sets the one behind which the model is least surprised.

    They follow from the seed and the starting model, so a run that goes on has the same. Examples that do not fit the
    model's context with a row behind them are left out, with a warning.
    """
    words = Words(model.tokenizer)
    limit = getattr(model.model.config, "max_position_embeddings", None) or 1 << 30
    prompt_lengths = {"text": config.prompt_length, "prefix": config.num_virtual_tokens + config.private_tokens}
    room = limit - config.seq_length - prompt_lengths.get(config.prompt_method or "", 0)
    short = 0
    for client in population.trained:
        tokens, missing = _choose(config, client, words, objective, model, room)
        short += missing
        if len(tokens):
            population.trained.examples[client.index] = Examples(words, tokens)
            if client.index < population.evaluated.first + len(population.evaluated):
                population.evaluated.examples[client.index] = Examples(words, tokens)
    if short:
        note(f"{short} examples were left out: with a row of {config.seq_length} tokens they exceed the context.")


def _choose(
    config: RunConfig, client: ClientData, words: Words, objective: Objective, model: Resident, room: int
) -> tuple[np.ndarray, int]:
    """Return the tokens of a client's examples, and how many there was no room for."""
    # Drawn by the client's name alone, so the examples do not depend on which other clients there are.
    chance = generator(config.seed, "examples", client.name)
    count = min(config.few_shot, len(client.train) - 1)
    best_loss, best_tokens, missing = float("inf"), np.zeros(0, dtype=np.int32), config.few_shot
    for _ in range(CANDIDATES):
        order = chance.permutation(len(client.train))
        tokens, fitting = np.zeros(0, dtype=np.int32), 0
        for row in order[:count]:
            ids = _without_begin(client.train[int(row)][0], words)
            if len(tokens) + len(ids) <= room:
                tokens, fitting = np.concatenate([tokens, ids]), fitting + 1
        others = View(client.train.table, client.train.index, Examples(words, tokens))
        rows = [others[int(row)] for row in order[count : count + SCORED_ROWS]]
        loss = objective.assess(model, rows, config.batch_size, derive(config.seed, "examples", client.name))
        if loss < best_loss:
            best_loss, best_tokens, missing = loss, tokens, config.few_shot - fitting
    return best_tokens, missing


def _without_begin(ids: np.ndarray, words: Words) -> np.ndarray:
    """Return the token ids of a row without the tokens that every row begins with."""
    plain = ids[ids >= 0]
    starts = np.array_equal(plain[: len(words.begin)], words.begin)
    return plain[len(words.begin) :] if starts else plain
