"""What a process needs before it can answer for clients: its settings, the model, what measures it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from weft.config import RunConfig
from weft.core.objective import Evaluator
from weft.core.types import Tensors
from weft.data.words import Words
from weft.evaluation.heldout import HeldOut
from weft.evaluation.preferred import Preferred
from weft.evaluation.rewarded import Rewarded
from weft.federation.plan import Plan
from weft.launch.few_shot import choose_few_shot
from weft.launch.population import Population
from weft.launch.reference import refer
from weft.models.group import RankGroup
from weft.models.load import base_model, load_resident
from weft.models.notes import Note, unsaid
from weft.models.remote import ask_elsewhere
from weft.models.resident import Resident
from weft.objectives.grpo import GRPO
from weft.objectives.preference import Preference


def resident(
    config: RunConfig, tokenizer: Any, plan: Plan, group: RankGroup | None = None, note: Note = unsaid
) -> Resident:
    """Return the run's model, or what asks it where it is; raises as `load_resident` and `ask_elsewhere` do.

    `note` is told what is not as it seems of the checkpoint.
    """
    if config.endpoint is None:
        return load_resident(config, tokenizer, plan.sharing.lora, group, note)

    def table() -> torch.Tensor:
        near = config.model_copy(update={"device": "cpu"})
        embeddings: torch.Tensor = base_model(near).get_input_embeddings().weight.detach()
        return embeddings

    return ask_elsewhere(config, tokenizer, Words(tokenizer).begin, table)


def prepare_process(config: RunConfig) -> None:
    """Set what is the same for the whole process: threads, and kernels that give the same bits every time."""
    if config.threads:
        torch.set_num_threads(config.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    torch.backends.cudnn.benchmark = False


def make_ready(plan: Plan, model: Resident) -> None:
    """Let the objective get ready, and the model remember how it began where something compares with that."""
    plan.objective.start()
    remember_start(plan, model)


def remember_start(plan: Plan, model: Resident) -> None:
    """Let the model remember how it began, where something compares with that."""
    if plan.objective.needs_start or plan.local.kind == "directions":
        model.remember()


def set_apart(plan: Plan, model: Resident) -> Tensors:
    """Note in a model as it was loaded what of it does not travel; return all that is trained."""
    values = model.values()
    model.initial = {name: value for name, value in values.items() if not plan.sharing.travels(name)}
    return values


def equip(
    config: RunConfig, plan: Plan, population: Population, model: Resident, path: Path, note: Callable[[str], None]
) -> None:
    """Do what comes before the first round, with the model as the run begins from it.

    Args:
        config: the run.
        plan: its parts.
        population: gets what the starting model says of its rows.
        model: as it was loaded.
        path: of the file that keeps this.
        note: told what takes a while.
    """
    make_ready(plan, model)
    if plan.objective.needs_reference:
        refer(population, model, path, config.eval_batch_size, note)
    if config.few_shot:
        choose_few_shot(config, population, plan.objective, model, note)


def evaluator_of(config: RunConfig, plan: Plan, population: Population) -> Evaluator:
    """Return what measures a model on a client's held-out rows."""
    if isinstance(plan.objective, Preference):
        return Preferred(plan.objective, config.eval_batch_size)
    if isinstance(plan.objective, GRPO):
        return Rewarded(plan.objective, config.eval_batch_size)
    return HeldOut(config.eval_batch_size, population.asked, population.text_bytes)
