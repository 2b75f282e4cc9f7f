"""The log-probabilities that the starting model gives to everybody's preferences: computed once, kept with the run."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from weft.core.files import write_atomic
from weft.data.pairs import PairTable
from weft.launch.population import Population
from weft.models.layout import Question
from weft.models.resident import Resident
from weft.objectives.choices import choice_logps


@torch.no_grad()
def refer(population: Population, model: Resident, path: Path, batch_size: int, note: Callable[[str], None]) -> None:
    """Fill the reference of the population's table, from the file where it is there and whole.

    The model must still be the one that the run began from. Each row is computed by itself.
    """
    table = population.trained.table
    assert isinstance(table, PairTable)
    try:
        saved_values = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        saved_values = None
    if saved_values is not None and saved_values.shape == table.reference.shape:
        table.reference[:] = saved_values
        return
    note(f"the starting model's log-probabilities of {len(table)} rows are computed once.")
    was_training = model.model.training
    model.model.eval()
    # Longest first, so that rows of similar length share a batch.
    order = sorted(range(len(table)), key=lambda row: -len(table[row].prompt))
    for at in range(0, len(order), batch_size):
        rows = order[at : at + batch_size]
        questions = [Question(table[row].prompt, table[row].answers) for row in rows]
        table.reference[rows] = choice_logps(model, questions).view(-1, 2).cpu().numpy()
    model.model.train(was_training)
    content = io.BytesIO()
    np.save(content, table.reference, allow_pickle=False)
    write_atomic(path, content.getvalue())
