"""How long a run takes and how many bytes travel, estimated from its rows and the shape of its model, without weights.

The bytes are those that `--dry_run` prints. The time is a rough one: the operations of training and of evaluation at
the share of this machine's matrix rate that usual runs come to, and a fixed time for each step and each run.
"""

from __future__ import annotations

from typing import NamedTuple

from weft.config import RunConfig
from weft.federation.clients import InMemory
from weft.launch.best import read_tasks
from weft.launch.client import ClientBuilder
from weft.launch.dry_run import count, rehearsal
from weft.launch.personal_models import FEW
from weft.launch.population import Population
from weft.launch.prompt_texts import with_prompt_texts
from weft.launch.records import matrix_rate
from weft.launch.run_tasks import RunTasks
from weft.launch.template_date import with_template_date
from weft.models.load import arithmetic, load_model_config
from weft.models.precision import choose_device
from weft.models.starting import from_adapter

SHARE_OF_RATE = 0.3
"""Of the rate of a matrix product, what training comes to in runs of models from 7 M parameters on (docs/benchmarks.md,
`benchmarks/overhead.py`); tiny models come to less, which SECONDS_OF_STEP makes up for."""
SECONDS_OF_STEP, SECONDS_OF_RUN = 0.02, 4.0
"""What a step takes beside its products, and a run beside its steps: loading, tokenizing, writing."""
CHARACTERS = 4
"""Of a token of an evaluation task."""


class Cost(NamedTuple):
    """What a run takes."""

    bytes: float
    """Sent in all rounds, both ways, without drop-outs."""
    seconds: float


def cost_of(config: RunConfig) -> Cost:
    """Estimate what a run takes. Nothing is left on disk.

    Raises:
        ConfigError: whatever would stop the run before its first round.
    """
    with rehearsal(with_prompt_texts(config)) as rehearsed:
        return _cost(rehearsed)


def _cost(config: RunConfig) -> Cost:
    builder = ClientBuilder(from_adapter(config))
    tasks = read_tasks(config, builder.plan)
    config = builder.config = with_template_date(builder.config, builder.tokenizer)
    model_config = None if config.endpoint is not None else load_model_config(config)
    population = builder.read(InMemory())
    sizes = count(builder, model_config, population)
    clients = len(population.trained)
    cohort = len(builder.plan.algorithm.cohort(range(min(config.sample_clients, clients)), clients))
    work = (4 if config.adapts else 6) * _trained_tokens(config, population, cohort)
    work += 2 * _evaluated_tokens(config, population, tasks, personal=builder.plan.personal)
    device = choose_device(config.device)
    rate = matrix_rate(device, arithmetic(config, device))
    steps = _steps(config, population, cohort)
    seconds = SECONDS_OF_RUN + SECONDS_OF_STEP * steps + work * sizes.all / (SHARE_OF_RATE * rate)
    return Cost(sizes.traffic * cohort * config.num_rounds, seconds)


def _steps(config: RunConfig, population: Population, cohort: int) -> float:
    """Return the optimizer steps of all clients in all rounds."""
    rows = float(population.trained.sizes().mean())
    batch = config.batch_size * config.gradient_accumulation_steps
    own = config.max_steps if config.max_steps > 0 else config.num_train_epochs * -(-rows // batch)
    return own * cohort * config.num_rounds + config.personal_steps * len(population.trained)


def _row_tokens(config: RunConfig, population: Population) -> float:
    """Return the mean tokens of a row, at most its longest length."""
    rows, tokens = population.counts.get("rows", 0), population.counts.get("tokens", 0)
    return min(tokens / rows, config.seq_length) if rows and tokens else config.seq_length


def _trained_tokens(config: RunConfig, population: Population, cohort: int) -> float:
    batch = config.batch_size * config.gradient_accumulation_steps
    return _steps(config, population, cohort) * batch * _row_tokens(config, population)


def _evaluated_tokens(config: RunConfig, population: Population, tasks: RunTasks, *, personal: bool) -> float:
    """Return the tokens of all evaluations, each answer of a closed set counted as a row of its own."""
    held_out = sum(len(rows) for rows in population.evaluated.held_out)
    answers = len(population.choices or ()) or 1
    times = config.num_rounds // config.eval_every if config.eval_every else 1
    clients = len(population.trained)
    asked = clients <= FEW if config.eval_everybody is None else config.eval_everybody
    everybody = clients if personal and asked else 1
    rows = held_out * answers * (max(1, times) + everybody - 1)
    letters = sum(len(item.prompt.text) for asked in tasks.asked for item in asked.items)
    return rows * _row_tokens(config, population) + letters / CHARACTERS * (max(1, times) + 1)
