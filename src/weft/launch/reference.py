"""The log-probabilities that the starting model gives to everybody's preferences: computed once, kept with the run."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from weft.core import tensors
from weft.core.files import write_atomic
from weft.data.pairs import PairTable
from weft.launch.population import Population
from weft.models.fingerprint import fingerprint
from weft.models.layout import Question
from weft.models.resident import Resident
from weft.objectives.choices import choice_logps


@torch.no_grad()
def refer(
    population: Population,
    model: Resident,
    path: Path,
    batch_size: int,
    note: Callable[[str], None],
    shared: Path | None = None,
) -> None:
    """Fill the reference of the population's table, from a file where one is there and whole.

    The model must still be the one that the run began from. Each row is computed by itself.

    Args:
        population: its rows.
        model: the one that the run begins from.
        path: the run's own file.
        batch_size: rows that are computed at a time.
        note: receives a sentence where they are computed.
        shared: a folder of several runs, which keeps what was computed for one of them by model and rows.
    """
    table = population.trained.table
    assert isinstance(table, PairTable)
    common = None if shared is None else shared / f"reference_{_digest(model, table)}.npy"
    for file in (path, common):
        if file is not None and (content := _saved(file, table)) is not None:
            if file is not path:
                write_atomic(path, content)
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
    written = io.BytesIO()
    np.save(written, table.reference, allow_pickle=False)
    for file in (path, common):
        if file is not None:
            write_atomic(file, written.getvalue())


def _saved(path: Path, table: PairTable) -> bytes | None:
    """Take the references that a file keeps, and return its content; None: it has none for these rows."""
    try:
        content = path.read_bytes()
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if values.shape != table.reference.shape:
        return None
    table.reference[:] = values
    return content


def _digest(model: Resident, table: PairTable) -> str:
    """Return what tells references apart: the base, the starting values of all that is trained, and the rows."""
    digest = hashlib.sha256(fingerprint(model).encode())
    digest.update(tensors.digest({"start": model.masters}).encode())
    for row in range(len(table)):
        pair = table[row]
        for ids in (pair.prompt, *pair.answers):
            digest.update(f"{len(ids)} ".encode() + np.ascontiguousarray(ids, dtype=np.int64).tobytes())
    return digest.hexdigest()[:32]
