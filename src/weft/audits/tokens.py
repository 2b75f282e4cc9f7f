"""What a model says of every learnt token of a row: its log-probability, and how that compares with others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weft.models.layout import Row
from weft.models.resident import Resident


class Scored(NamedTuple):
    """The learnt tokens (T,) of a row."""

    logps: np.ndarray
    """Nats."""
    standard: np.ndarray
    """(logp - mean) / deviation, over the tokens that the model could have written, each by its probability."""


def readable(model: Resident, ids: np.ndarray) -> np.ndarray:
    """Return the ids (T,) of a row that a model can read: one without a learnt prompt has no vectors for its places."""
    kept: np.ndarray = ids if model.front is not None else ids[ids >= 0]
    return kept


def scored(model: Resident, rows: Sequence[Row], batch_size: int) -> list[Scored]:
    """Return the scores of every row's learnt tokens, without dropout."""
    rows = [(known, learn[len(learn) - len(known) :]) for ids, learn in rows for known in [readable(model, ids)]]
    results: list[Scored] = [Scored(np.zeros(0), np.zeros(0))] * len(rows)
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number][0]))
    with model.evaluating():
        for at in range(0, len(order), batch_size):
            chunk = order[at : at + batch_size]
            # A line for each row, so that targets come row by row.
            batch = model.lay_out([rows[number] for number in chunk], pack=False).to(model.device)
            logps, standard = token_scores(model.logits(batch).float(), batch.targets)
            ends = np.cumsum([int(rows[number][1][1:].sum()) for number in chunk])[:-1]
            for number, *parts in zip(chunk, np.split(logps, ends), np.split(standard, ends), strict=True):
                results[number] = Scored(*parts)
    return results


def token_scores(logits: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the log-probabilities of targets, and how many deviations they are above the mean.

    Args:
        logits: (N, V) float32.
        targets: (N,) ids.
    """
    logps = torch.log_softmax(logits, dim=-1)
    chances = logps.exp()
    mean = (chances * logps).sum(-1)
    # A probability of 0 has a log of minus infinity, and no part in the sum.
    square = (chances * logps.clamp(min=-1e4).square()).sum(-1)
    deviation = (square - mean.square()).clamp(min=1e-12).sqrt()
    own = logps.gather(1, targets[:, None])[:, 0]
    return own.cpu().numpy().astype(np.float64), ((own - mean) / deviation).cpu().numpy().astype(np.float64)
