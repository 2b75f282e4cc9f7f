"""Federated evaluation without training: clients score a model on held-out rows of theirs, and send counts and sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from weft.core.exchange import Runtime
from weft.core.types import Metrics, ServerState
from weft.errors import ConfigError, RunError
from weft.federation.loop import MAX_REASONS, evaluate
from weft.federation.plan import Plan
from weft.launch.client import ClientBuilder
from weft.launch.population import Population
from weft.launch.provenance import base_of
from weft.runs import checkpoint, fingerprints
from weft.runs.layout import RunDir, path_component


def scores_of(
    plan: Plan,
    state: ServerState,
    runtime: Runtime,
    population: Population,
    note: Callable[[str], None],
    *,
    personal: bool = True,
) -> dict[str, Metrics]:
    """Return the counts and sums of all clients that have held-out rows; a client that does not answer is noted.

    Args:
        plan: the parts.
        state: the model.
        runtime: carries the messages.
        population: the clients.
        note: called with a sentence for each client that could not be evaluated.
        personal: evaluate personal models where there are any.

    Raises:
        ConfigError: no client has held-out rows.
        RunError: no client answered.
    """
    failures: dict[str, str] = {}
    tested, apart = population.tested(), population.left_out
    if not tested:
        raise ConfigError(
            "There is nothing to evaluate on, because no client has held-out rows: write an --eval_fraction above 0, "
            "or name held-out rows by --eval_dataset_name or as eval of the clients."
        )
    scores = evaluate(plan.algorithm, state, runtime, tested, personal=personal, left_out=apart, failures=failures)
    if not scores:
        some = "; ".join(f"{client}: {reason}" for client, reason in list(failures.items())[:MAX_REASONS])
        raise RunError(f"No client could be evaluated ({some}): mend what the clients say, and evaluate again.")
    for client, reason in failures.items():
        note(f"the client '{client}' {reason}.")
    return scores


def evaluated_state(builder: ClientBuilder) -> ServerState | None:
    """Return the shared model of the run that `evaluated_run` names, beside the folder of this run; None: none is.

    Args:
        builder: of the run that evaluates it.

    Raises:
        ConfigError: there is no such run, it has no model yet, or its model is not of the shape of this run's.
    """
    name, folder = builder.config.evaluated_run, Path(builder.config.output_dir).parent
    if not name:
        return None
    if path_component(name) != name or name.startswith("."):
        raise ConfigError(f"evaluated_run is '{name}', which is no name of a run: write one that `weft status` lists.")
    run = RunDir(folder / name)
    if not run.holds_run:
        raise ConfigError(f"The server has no run '{name}' to evaluate: write a name that `weft status` lists.")
    saved = checkpoint.latest(run)
    if saved is None:
        raise ConfigError(f"The run '{name}' has not finished a round, so it has no model to evaluate: wait for one.")
    fingerprints.check(run, base_of(builder.config), accept=False)
    state, model = saved[0], builder.model
    wanted = {name: tuple(value.shape) for name, value in model.masters.items() if builder.plan.sharing.travels(name)}
    if wanted != {name: tuple(value.shape) for name, value in state.params.items()}:
        raise ConfigError(
            f"The model of the run '{name}' has another shape than this run's: write what is trained, such as "
            "peft_lora_r, as that run has it."
        )
    return replace(state, round=0, attempts=0, attempt=0)
