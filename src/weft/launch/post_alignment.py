"""Post-hoc alignment at the server: after the last round the shared model is tuned on rows of the server's own.

Robust aggregation hardly stops safety poisoning, and tuning on refusals afterwards does (2406.10630). The run itself
stays as it is: the tuned model is written beside it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from weft.config import RunConfig
from weft.core import tensors
from weft.core.libraries import Tokenizer
from weft.core.local_rule import LocalRule
from weft.core.types import DELTA, ServerState
from weft.data.encode import ConversationTable
from weft.errors import ConfigError, DataError
from weft.federation.clients import InMemory
from weft.federation.plan import Plan
from weft.json_types import JsonObject
from weft.launch.population import populate
from weft.launch.results import shared_of, write_weights
from weft.models.resident import Resident
from weft.objectives.sft import SFT
from weft.runs.layout import RunDir
from weft.training.job import Job
from weft.training.loop import GradientSteps
from weft.training.schedules import Schedule

FOLDER = "aligned"


def rows_of(config: RunConfig, tokenizer: Tokenizer) -> tuple[ConversationTable, np.ndarray]:
    """Return the rows of `post_alignment`, tokenized as the run's conversations are, and which of them to train on.

    Raises:
        ConfigError: they cannot be read or used; the message names the key.
    """
    changes: JsonObject = {
        "dataset_name": config.post_alignment,
        "objective": "sft",
        "clients": None,
        "num_clients": 1,
        "split_strategy": "iid",
        "split_args": {},
        "split_column": None,
        "eval_fraction": 0.0,
        "public_share": 0.0,
        "choices": [],
        "clean": [],
        "leave_out": [],
    }
    sources = ("dataset_split", "eval_dataset_name", "eval_dataset_split", "public_data", "dataset_sample")
    own = config.model_copy(update=changes | dict.fromkeys(sources))
    try:
        clients = populate(own, tokenizer, InMemory(), rows="conversations", pool=False).trained
    except DataError as error:
        raise ConfigError(f"The rows of post_alignment cannot be used: {error}") from None
    assert isinstance(clients.table, ConversationTable)
    return clients.table, np.asarray(clients.train[0])


class _Chosen:
    """Some rows of a table."""

    def __init__(self, table: ConversationTable, numbers: np.ndarray) -> None:
        self.table, self.numbers = table, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return self.table[int(self.numbers[row])]


def write_aligned(config: RunConfig, plan: Plan, model: Resident, run: RunDir, state: ServerState) -> JsonObject:
    """Tune the shared model of a run that is over, and write it into the folder `aligned`; return the summary's entry.

    Args:
        config: the run.
        plan: the run's.
        model: the resident model; its values are lost.
        run: its directory.
        state: after the last round; it stays as it is.
    """
    table, numbers = rows_of(config, model.tokenizer)
    assert isinstance(plan.local, GradientSteps)
    constant = Schedule("constant", config.learning_rate, 0.0, 1)
    steps = replace(plan.local, steps=config.post_alignment_steps, schedule=constant, public_share=0.0)
    model.load(shared_of(config, plan, model, state))
    rows, objective = _Chosen(table, numbers), SFT().for_model(model)
    done = steps.work(model, objective, rows, LocalRule(), Job({}, state.params, round=state.round))
    params = tensors.add(state.params, done.finished.streams[DELTA])
    values = shared_of(config, plan, model, replace(state, params=params))
    folder = write_weights(config, model, values, run.path / FOLDER)
    loss = done.metrics["loss_sum"] / max(1.0, done.metrics["loss_tokens"])
    return {"folder": f"{FOLDER}/{folder.name}", "rows": len(rows), "steps": config.post_alignment_steps, "loss": loss}
