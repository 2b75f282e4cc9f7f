"""A blind attacker: it tells rows apart by their words alone, and never asks a model.

Where it succeeds, rows that were trained on differ from those that were not by more than that, and no attack on a model
measures membership (Meeus et al. 2024, arXiv 2406.17975).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weft.audits.statistics import Estimate, auc

FOLDS = 5
RIDGE = 1.0


def blind(members: Sequence[np.ndarray], others: Sequence[np.ndarray], chance: np.random.Generator) -> Estimate:
    """Return the area of a bag of tokens that is cross-validated, with a 99.9 % interval.

    Args:
        members: token ids (T,) of rows that were trained on.
        others: of rows that were not.
        chance: deals the folds.
    """
    rows = [*members, *others]
    labels = np.repeat([1.0, -1.0], [len(members), len(others)])
    bags = _bags(rows)
    scores = np.zeros(len(rows))
    folds = chance.permutation(len(rows)) % FOLDS
    for fold in range(FOLDS):
        here, there = folds != fold, folds == fold
        if there.any() and len(set(labels[here].tolist())) == 2:
            scores[there] = _ridge(bags[here], labels[here], bags[there])
    return auc(scores[labels > 0], scores[labels < 0], quantile=3.2905)


def _bags(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Return (rows, tokens): which tokens each row has, and, last, its length; each of mean 0 and deviation 1."""
    ids = np.unique(np.concatenate(rows))
    bags = np.zeros((len(rows), len(ids) + 1))
    for number, row in enumerate(rows):
        bags[number, np.searchsorted(ids, np.unique(row))] = 1.0
        bags[number, -1] = len(row)
    bags -= bags.mean(axis=0)
    bags /= np.maximum(bags.std(axis=0), 1e-9)
    return bags


def _ridge(known: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the scores of a ridge regression, by the Gram matrix: there are more tokens than rows."""
    penalty = RIDGE * known.shape[1]
    weights = np.linalg.solve(known @ known.T + penalty * np.eye(len(known)), labels - labels.mean())
    scores: np.ndarray = asked @ (known.T @ weights)
    return scores
