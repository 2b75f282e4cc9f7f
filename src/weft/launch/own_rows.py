"""Conversations of a file of the server's or of a client's own, tokenized as the run's conversations are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.core.local_rule import LocalRule
from weft.core.objective import Objective
from weft.data.columns import Cells
from weft.data.encode import ConversationTable
from weft.data.load import read_rows, resolve_source
from weft.errors import ConfigError, DataError
from weft.federation.clients import InMemory
from weft.federation.plan import Plan
from weft.json_types import JsonObject
from weft.launch.population import populate
from weft.models.resident import Resident
from weft.objectives.refusing import Refusing
from weft.objectives.sft import SFT
from weft.training.job import Job, LocalResult
from weft.training.loop import GradientSteps
from weft.training.schedules import Schedule


@dataclass(frozen=True)
class OwnRows:
    """Some rows of a table."""

    table: ConversationTable
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        return self.table[int(self.numbers[row])]


def with_attack_prompts(config: RunConfig, tokenizer: Tokenizer, objective: Objective) -> Objective:
    """Return the objective with the rows of `adversarial_prompts`, where it learns from them.

    Raises:
        ConfigError: they cannot be read or used.
    """
    if config.adversarial_prompts is None:
        return objective
    assert isinstance(objective, Refusing)
    rows = read_own_rows(config, tokenizer, config.adversarial_prompts, "adversarial_prompts")
    return replace(objective, requests=rows)


def tuner(config: RunConfig, plan: Plan, model: Resident, rows: OwnRows, steps: int) -> Callable[[Job], LocalResult]:
    """Return what makes so many optimizer steps on rows of the server's own, at the run's learning rate.

    Args:
        config: the run.
        plan: the run's, whose local work is by gradients.
        model: the resident model, which is loaded before the result is called.
        rows: the server's.
        steps: of each call.
    """
    assert isinstance(plan.local, GradientSteps)
    constant = Schedule("constant", config.learning_rate, 0.0, 1)
    local, objective = replace(plan.local, steps=steps, schedule=constant, public_share=0.0), SFT().for_model(model)
    return lambda job: local.work(model, objective, rows, LocalRule(), job)


def read_own_rows(
    config: RunConfig, tokenizer: Tokenizer, name: str, key: str, changes: JsonObject | None = None
) -> OwnRows:
    """Return the conversations of a file or data set that is not the run's; no cleaner and no attack changes them.

    Args:
        config: the run.
        tokenizer: the run's.
        name: of the file or data set.
        key: of the run that names it, for messages.
        changes: further keys by which they are read.

    Raises:
        ConfigError: they cannot be read or used; the message names the key.
    """
    own: JsonObject = {
        "dataset_name": name,
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
        "attack": "none",
        "attack_args": {},
        "adversarial_prompts": None,
    }
    sources = ("dataset_split", "eval_dataset_name", "eval_dataset_split", "public_data", "dataset_sample")
    try:
        own |= _unnamed_columns(config, name)
        reads = config.model_copy(update=own | dict.fromkeys(sources) | (changes or {}))
        clients = populate(reads, tokenizer, InMemory(), rows="conversations", pool=False).trained
    except DataError as error:
        raise ConfigError(f"The rows of {key} cannot be used: {error}") from None
    assert isinstance(clients.table, ConversationTable)
    return OwnRows(clients.table, np.asarray(clients.train[0]))


def _unnamed_columns(config: RunConfig, name: str) -> JsonObject:
    """Return None for every key that names a column which a file lacks: its own columns are recognised by their names.

    Raises:
        DataError: the file cannot be read.
    """
    keys = [key for key in ("instruction_column", "response_column") if getattr(config, key) is not None]
    cells = Cells(read_rows(resolve_source(name, config.local_data_dir)), name) if keys else None
    return {key: None for key in keys if cells is not None and not cells.has_columns(getattr(config, key))}
