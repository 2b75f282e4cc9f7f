"""The parts that every process builds before it answers for clients, in one order: plan to evaluator."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.core.objective import Evaluator
from weft.core.types import Tensors
from weft.data.store import Report
from weft.data.words import Words
from weft.federation.client_host import ClientHost
from weft.federation.clients import MemoryStore
from weft.federation.conditions import Conditions
from weft.federation.plan import Plan
from weft.launch import compose
from weft.launch.cleaning import losses
from weft.launch.few_shot import choose_few_shot
from weft.launch.leaving import inspection_of, inspector
from weft.launch.own_rows import with_attack_prompts
from weft.launch.population import Population, populate
from weft.launch.reference import refer
from weft.launch.scoring import evaluator_class
from weft.models.group import RankGroup
from weft.models.load import base_model, load_model_config, load_resident
from weft.models.notes import Note, ignore_note
from weft.models.remote import remote_model
from weft.models.resident import Resident
from weft.models.tokenizer import check_fits, load_tokenizer
from weft.training.row_probe import check_apart


class ClientBuilder:
    """Builds what answers for clients in one process.

    The process of a run, a Ray actor, a follower in a rank group, a site and the server of sites all use it. They
    differ in where their rows and memories are, and in what they check between the steps; the steps are the same:
    `plan`, `tokenizer`, `read` (or `take`), `model`, `host`. A step that was not called runs when its result is needed.

    Raises, from any step:
        ConfigError: parts that cannot be combined, or a tokenizer or model that cannot be used.
        DataError: rows that cannot be read.
    """

    def __init__(self, config: RunConfig, *, note: Note = ignore_note) -> None:
        """Compose the plan and set the process's threads.

        Args:
            config: the run; a caller may replace it by a more complete one between the steps.
            note: receives sentences about surprises in the checkpoint and about work that takes a while.
        """
        prepare_process(config)
        self.config, self.note = config, note
        self.group: RankGroup | None = None
        """The processes that the model is spread over."""
        self.shared: Path | None = None
        """A folder in which several runs of a study keep what they have in common."""
        self.plan: Plan = compose.plan(config)
        self.population: Population | None = None
        self._rows_are_bare = False
        self._values: Tensors = {}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer, which fits the model's configuration."""
        tokenizer: Tokenizer = load_tokenizer(self.config)
        if self.config.endpoint is None:
            check_fits(self.config, tokenizer, load_model_config(self.config))
        return tokenizer

    @cached_property
    def model(self) -> Resident:
        """The run's model as it was loaded, or a client of its endpoint; `initial` holds values that do not travel."""
        model = resident(self.config, self.tokenizer, self.plan, self.group, self.note)
        # Before the first task loads other values into the model.
        needs_start = self.plan.objective.needs_start or self.plan.codec_down.remembers
        if needs_start or self.plan.local.kind == "directions":
            model.store_reference()
        self._values = model.values()
        model.initial = {name: value for name, value in self._values.items() if not self.plan.sharing.travels(name)}
        return model

    def shared_names(self) -> list[str]:
        """Return the names of the trained tensors that clients send."""
        return [name for name in self.model.masters if self.plan.sharing.travels(name)]

    def read(self, memory: MemoryStore, *, first: int = 0, report: Report = lambda *_: None) -> Population:
        """Read, tokenize and deal out the rows that the configuration names.

        Args:
            memory: where clients keep what they remember between rounds.
            first: the number that the first client has in the federation.
            report: called with the progress of tokenizing plain text.
        """
        rows, pool = self.plan.objective.rows, self.plan.algorithm.pools_data
        self.population = populate(
            self.config,
            self.tokenizer,
            memory,
            rows=rows,
            pool=pool,
            report=report,
            first=first,
            surprise=lambda samples: losses(self.model, samples, self.config),
        )
        self._rows_are_bare = True
        return self.population

    def take(self, population: Population) -> None:
        """Use rows that another process read, with the references and examples that it put beside them."""
        self.population, self._rows_are_bare = population, False

    def host(
        self, *, reference: Path | None = None, conditions: Conditions | None = None
    ) -> tuple[ClientHost, Tensors]:
        """Prepare the objective with the model that the run begins from, and assemble the client host.

        Args:
            reference: the file that keeps the starting model's log-probabilities, for objectives that need them.
            conditions: the drop-outs and speeds that this process simulates; none where another process does.

        Returns:
            The client host, and the starting values of all trained tensors.
        """
        assert self.population is not None
        population, model = self.population, self.model
        objective = with_attack_prompts(self.config, self.tokenizer, self.plan.objective)
        plan = self.plan = replace(self.plan, objective=objective.for_model(model))
        plan.objective.start()
        if self._rows_are_bare and plan.objective.needs_reference:
            assert reference is not None
            refer(population, model, reference, self.config.eval_batch_size, self.note, self.shared)
        if self._rows_are_bare and self.config.few_shot:
            choose_few_shot(self.config, population, plan.objective, model, self.note)
        if plan.privacy.in_steps and self.config.endpoint is None and self.config.runtime != "nvflare":
            check_apart(model, plan.objective, next(iter(population.trained)).train)
        evaluator: Evaluator = evaluator_class(plan).make(plan.objective.plain, self.config.eval_batch_size, population)
        clients = (population.trained, population.evaluated)
        inspection = inspection_of(self.config, self.tokenizer)
        if inspection is not None:
            test = inspector(inspection.begun(model), self.note)
            clients = (replace(clients[0], inspect=test), replace(clients[1], inspect=test))
        # Only the caller keeps the starting values: of a whole model they are as large as its weights.
        values, self._values = self._values, {}
        return ClientHost(plan, model, evaluator, *clients, conditions or Conditions()), values


def resident(
    config: RunConfig, tokenizer: Tokenizer, plan: Plan, group: RankGroup | None = None, note: Note = ignore_note
) -> Resident:
    """Return the run's model, or a client of its endpoint; raises as `load_resident` and `remote_model` do.

    `note` receives sentences about surprises in the checkpoint, such as missing weights.
    """
    if config.endpoint is None:
        return load_resident(config, tokenizer, plan.sharing.lora, group, note)

    def embeddings_table() -> torch.Tensor:
        cpu_config = config.model_copy(update={"device": "cpu"})
        embeddings: torch.Tensor = base_model(cpu_config).get_input_embeddings().weight.detach()
        return embeddings

    return remote_model(config, tokenizer, Words(tokenizer).begin, embeddings_table)


def prepare_process(config: RunConfig) -> None:
    """Set what is the same for the whole process: threads, and kernels that give the same bits every time."""
    if config.threads:
        torch.set_num_threads(config.threads)
    # cuBLAS sums in a fixed order only with a workspace of fixed size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # The benchmark chooses kernels by their time, so the bits would depend on the machine's load.
    torch.backends.cudnn.benchmark = False
