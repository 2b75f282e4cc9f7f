"""Federated evaluation without training: clients score a model on held-out rows of theirs, and send counts and sums."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from weft.config import RunConfig, build
from weft.core.exchange import Runtime
from weft.core.score_places import placed, sum_of
from weft.core.types import ServerState
from weft.errors import ConfigError, RunError
from weft.federation.loop import MAX_REASONS
from weft.federation.plan import Plan
from weft.federation.scores import Scores, evaluate
from weft.json_types import JsonObject
from weft.launch import compose
from weft.launch.client import ClientBuilder
from weft.launch.client_memory import MemoryAside
from weft.launch.personal_models import PersonalModels
from weft.launch.population import Population
from weft.launch.provenance import base_of, data_of
from weft.launch.records import evaluation_record
from weft.launch.results import has_shared
from weft.launch.run import Run
from weft.launch.scoring import scored_clients
from weft.launch.tokenizer import with_tokenizer
from weft.runs import checkpoint, fingerprints
from weft.runs.layout import RunDir, path_component
from weft.runtimes.inprocess import InProcess

SOURCES = (
    "dataset_name",
    "clients",
    "eval_dataset_name",
    "dataset_split",
    "eval_dataset_split",
    "dataset_sample",
    "public_data",
    "public_share",
    "clients_of_rest",
    "sites",
)
"""Keys that say which rows a run has; other rows have none of them."""
HERE: JsonObject = {"runtime": "inprocess", "parallel": "none"}
"""Keys of what is evaluated in this process, whatever it was trained by."""


def scores_of(
    plan: Plan,
    state: ServerState,
    runtime: Runtime,
    population: Population,
    note: Callable[[str], None],
    *,
    personal: bool = True,
) -> Scores:
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
    scores = evaluate(plan, state, runtime, tested, personal=personal, left_out=apart, failures=failures)
    if not scores.anybody:
        some = "; ".join(f"{client}: {reason}" for client, reason in list(failures.items())[:MAX_REASONS])
        raise RunError(f"No client could be evaluated ({some}): mend what the clients say, and evaluate again.")
    for client, reason in failures.items():
        note(f"the client '{client}' {reason}.")
    return scores


def scores_of_run(run: Run, changes: JsonObject, note: Callable[[str], None]) -> JsonObject:
    """Return how the shared model of a run, and clients' own ones, do on their held-out rows.

    Args:
        run: opened at the round that is meant.
        changes: keys that differ from the run's own: other rows, or how many of them.
        note: called with sentences about what is not as it seems.

    Returns:
        `shared` and `own`, each as `evaluation_record` returns it, where there are such models.

    Raises:
        ConfigError: the run's rows are at sites, it has no checkpoint, its base or rows changed, or there are no
            held-out rows.
    """
    config, folder = _changed(run, changes), run.directory
    if run.round is None:
        raise ConfigError(f"The run in '{run.path}' has not finished a round, so it has no model to evaluate.")
    changed = fingerprints.check(folder, base_of(config) | data_of(config), accept=run.accept_changed)
    for name in changed:
        note(f"{name} changed since the run was made.")
    builder = ClientBuilder(with_tokenizer(config, folder.path / "tokenizer"), note=note)
    population, state = builder.read(MemoryAside(folder)), checkpoint.at(folder, run.round)
    with tempfile.TemporaryDirectory() as other:
        # The run's own log-probabilities of its starting model are of its own rows.
        host, _ = builder.host(reference=Path(other) / "reference.npy" if changes else folder.reference_file)
    plan, metrics = host.plan, host.evaluator.metrics
    scored_clients(config, plan, population, note, needed="Only scores are asked for")
    record: JsonObject = {}
    if has_shared(plan):
        scores = scores_of(plan, state, InProcess(host), population, note, personal=False)
        record["shared"] = evaluation_record(state.round, scores, metrics, population.left_out)
    if plan.own_models:
        personal, own = PersonalModels(plan, state, host.model, population, host.evaluator), Scores()
        for client in personal.each():
            if len(held_out := population.evaluated.find(client.name).held_out):
                own.clients[client.name] = host.evaluator.evaluate(host.model, held_out)
        record["own"] = evaluation_record(state.round, _as_known(plan, own), metrics)
    return record


def _as_known(plan: Plan, scores: Scores) -> Scores:
    """Return scores as a server would know them: with a protection, their sum."""
    if not plan.protection.seals_scores:
        return scores
    rows = [placed(plan.measured, part, plan.score_places) for part in scores.clients.values()]
    values = {place: sum(row[place] for row in rows) for place in plan.score_places}
    return Scores(sums=[sum_of(plan.measured, values, scores.clients)])


def _changed(run: Run, changes: JsonObject) -> RunConfig:
    """Return the keys of a run, in this process, with others in their place."""
    keys = run.config.model_dump(mode="json")
    if run.config.runtime == "nvflare" and not {"clients", "dataset_name"} & changes.keys():
        raise ConfigError(
            f"The rows of the run in '{run.path}' are at its sites: write `weft submit RUN.yaml --num_rounds 0 "
            "--evaluated_run NAME`, or name rows that are here by --clients or --dataset_name."
        )
    if {"clients", "dataset_name"} & changes.keys():
        keys |= dict.fromkeys(SOURCES)
    return build({name: value for name, value in (keys | changes | HERE).items() if value is not None})


def _check_own(builder: ClientBuilder, name: str, kept: bool) -> None:
    """Refuse to score own models that a run did not leave; note that those which it left are not scored."""
    config, wanted = builder.config, builder.plan.keeps_own
    if wanted and not kept:
        given = "--share" if config.share else f"--fed_alg {config.fed_alg}"
        raise ConfigError(f"The run '{name}' left its clients no models of their own to score: leave out {given}.")
    if kept and not wanted:
        builder.note(
            f"of the run '{name}' the shared model is scored, and not the clients' own: for these write fed_alg and "
            "share as it had them."
        )


class Evaluated(NamedTuple):
    """A run that another one evaluates."""

    state: ServerState
    """Its shared model, as a run begins from it."""
    birth: str
    """Distinguishes it from other runs of its name: sites score their own models of this one alone."""
    rounds: int
    """Rounds after which it is evaluated."""

    @property
    def words(self) -> JsonObject:
        """What sites are told of it."""
        return {"birth": self.birth, "rounds": self.rounds}

    def made_from(self, config: RunConfig) -> fingerprints.Fingerprints:
        """Return its fingerprint, so that a run which is resumed scores no other one of the same name."""
        return {f"the run '{config.evaluated_run}'": f"{self.birth} after {self.rounds} rounds"}


def evaluated_run(builder: ClientBuilder) -> Evaluated | None:
    """Return the run that `evaluated_run` names, beside the folder of this run; None: none is.

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
    _check_own(builder, name, compose.plan(build(run.read_config())).keeps_own)
    state, model = saved[0], builder.model
    wanted = {name: tuple(value.shape) for name, value in model.masters.items() if builder.plan.sharing.travels(name)}
    if wanted != {name: tuple(value.shape) for name, value in state.params.items()}:
        raise ConfigError(
            f"The model of the run '{name}' has another shape than this run's: write what is trained, such as "
            "peft_lora_r, as that run has it."
        )
    return Evaluated(replace(state, round=0, attempts=0, attempt=0), fingerprints.birth_of(run), state.round)
