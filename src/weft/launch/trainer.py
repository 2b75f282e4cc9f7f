"""A run under way: rounds are computed, recorded, committed, and the results written.

Whatever is in metrics.jsonl is deterministic, so a run that was killed and resumed ends with the same bytes there
and the same weights as one that was not; what is not deterministic (seconds, memory) is in timing.jsonl and
summary.json.
"""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

from weft.config import RunConfig
from weft.core.declarations import scores
from weft.core.exchange import Runtime
from weft.core.files import write_atomic
from weft.core.tensors import num_bytes
from weft.core.types import Metrics, ServerState, Tensors
from weft.errors import ConfigError, RunError
from weft.federation.client_host import ClientHost
from weft.federation.clients import ClientData
from weft.federation.loop import RoundDone, Rounds, run_rounds, set_aside
from weft.federation.state import begin
from weft.json_types import JsonObject
from weft.launch import compose, rank_group
from weft.launch.personal_models import PersonalModels
from weft.launch.population import Population
from weft.launch.ray_actor import runtime_of
from weft.launch.records import Tally, evaluation_record, peak_memory, round_record, utilisation
from weft.launch.results import has_shared, shared_of, write_weights
from weft.models.group import RankGroup
from weft.runs import checkpoint
from weft.runs.card import write_cards
from weft.runs.layout import RunDir
from weft.runs.metrics import MetricsLog, plain
from weft.runs.progress import Progress
from weft.runs.report import write_report
from weft.runs.trackers import Trackers


class Behind(NamedTuple):
    """How far a run is: a state, and what belongs to it of the logs (their lengths in bytes) and sums."""

    state: ServerState
    metrics: int
    timing: int
    tally: JsonObject


class Trainer:
    """A run under way: it takes rounds from the federation and commits them to the directory."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDir,
        host: ClientHost,
        population: Population,
        progress: Progress,
        trackers: Trackers,
        group: RankGroup | None = None,
        begin: Callable[[ClientHost], AbstractContextManager[Runtime]] | None = None,
        hear: Callable[[JsonObject], None] = lambda _: None,
    ) -> None:
        """Take all of a run.

        Args:
            config: its keys.
            run: its directory.
            host: its parts and its model, which answer for clients that are here.
            population: its clients.
            progress: told what happens.
            trackers: and these.
            group: the processes that the model is spread over.
            begin: returns what carries messages to clients that are not here.
            hear: told every round's record.
        """
        self.config, self.run, self.host, self.population = config, run, host, population
        self.plan, self.model, self.evaluator = host.plan, host.model, host.evaluator
        self.progress, self.trackers = progress, trackers
        self.announcer = rank_group.Announcer(group) if group is not None else None
        self.begin, self.hear = begin, hear
        self.tally = Tally()
        if not any(self.plan.sharing.travels(name) for name in self.model.masters):
            raise ConfigError(
                f"share ({', '.join(self.plan.sharing.patterns)}) fits no trained tensor, such as "
                f"{next(iter(self.model.masters))}: write a part of a name, or a glob."
            )
        self.metrics = MetricsLog(run.metrics_file)
        self.timing = MetricsLog(run.timing_file)

    def run_all(self, values: Tensors) -> ServerState:
        """Run the rounds that are left, then write the results; return the state after the last.

        Args:
            values: all that is trained, as the model was loaded.
        """
        with self.metrics, self.timing:
            state = self._all_rounds(self._start(values))
        if self.announcer:
            self.announcer.end()
        self._finish(state)
        return state

    def _start(self, values: Tensors) -> ServerState:
        """Return the state to go on from: that of the newest checkpoint, or the model as it was loaded."""
        found = checkpoint.latest(self.run, self.progress.note)
        if found is None:
            self.metrics.truncate(0)
            self.timing.truncate(0)
            checkpoint.rewind(self.run, 0)
            return begin(self.plan, values, self.model.fixed)
        state, extra = found
        self.metrics.truncate(extra["metrics"])
        self.timing.truncate(extra["timing"])
        self.tally = Tally(**extra["tally"])
        checkpoint.rewind(self.run, state.round)
        return state

    def _all_rounds(self, state: ServerState) -> ServerState:
        """Run and commit the rounds that are left; return the state after the last."""
        config, population = self.config, self.population
        behind = committed = self._behind(state)
        since = time.monotonic()
        here = partial(runtime_of, config, population=population, progress=self.progress, announce=self.announcer)
        with (self.begin or here)(self.host) as runtime:
            try:
                for done in self._rounds(state, runtime):
                    self._record(done)
                    behind = self._behind(done.state)
                    if time.monotonic() - since >= config.checkpoint_seconds or self._kept(done.state.round):
                        self._commit(behind)
                        committed, since = behind, time.monotonic()
            except BaseException as error:
                if behind is not committed:
                    known = isinstance(error, KeyboardInterrupt | RunError)
                    with contextlib.nullcontext() if known else contextlib.suppress(Exception):
                        self._commit(behind)
                raise
        if behind is not committed:
            self._commit(behind)
        return behind.state

    def _rounds(self, state: ServerState, runtime: Runtime) -> Iterator[RoundDone]:
        config, population = self.config, self.population
        return run_rounds(
            self.plan,
            state,
            runtime,
            Rounds(
                config.num_rounds,
                compose.selection(config, population),
                config.eval_every,
                config.max_attempts,
                self.host.conditions,
                population.trained.sizes(),
                config.max_bad_updates,
                self.run.secret,
            ),
            clients=population.trained.names,
            eval_clients=population.tested(),
        )

    def _kept(self, round: int) -> bool:
        return self.config.save_model_freq > 0 and round % self.config.save_model_freq == 0

    def _behind(self, state: ServerState) -> Behind:
        """Return how far the run is, with the state after the round that was recorded last."""
        return Behind(state, self.metrics.size(), self.timing.size(), copy.deepcopy(vars(self.tally)))

    def _commit(self, behind: Behind) -> None:
        """Write a checkpoint; what is logged of the round after it, where that was interrupted, is forgotten."""
        self.metrics.truncate(behind.metrics)
        self.timing.truncate(behind.timing)
        extra = {"metrics": behind.metrics, "timing": behind.timing, "tally": behind.tally}
        freq, most = self.config.save_model_freq, self.config.save_total_limit
        checkpoint.save(self.run, behind.state, extra, keep_every=freq, keep_most=most)

    def _record(self, done: RoundDone) -> None:
        record = round_record(done, self.plan.objective.metrics)
        self.tally.add(done, record)
        if done.record.repeated:
            self.metrics.append(record)
            self.progress.note(
                f"round {record['round']}: {len(record['clients'])} good replies, fewer than min_clients "
                f"({self.config.min_clients}): it is begun again."
            )
            return
        self.metrics.append(record)
        timing = {
            "round": record["round"],
            "seconds": done.seconds,
            "tokens_per_second": record["tokens"] / done.seconds,
            "peak_memory_bytes": peak_memory(self.model.device),
        }
        asked = {name: int(count) for name, count in done.record.sums.items() if name.startswith("endpoint_")}
        self.timing.append(timing | asked)
        if again := asked.get("endpoint_retries"):
            self.progress.note(f"round {record['round']}: {again} requests to the endpoint were sent again.")
        self._note_failures(done, record)
        if faults := record.get("reward_faults"):
            said = ", ".join(f"{count} {fault.replace('_', ' ')}" for fault, count in faults.items())
            self.progress.note(f"round {record['round']}: rewards that failed count as 0 ({said}).")
        if not record["clients"] and record["failures"]:
            self.progress.note(f"round {record['round']}: no update could be used; the model stays as it was.")
        self.progress.round(record | timing)
        self.hear({"round": record | timing})
        self.trackers.log({f"train/{k}": v for k, v in (record | timing).items() if k != "round"}, record["round"])
        if done.scores is not None:
            self._record_evaluation(done.state.round, done.scores)

    def _note_failures(self, done: RoundDone, record: JsonObject) -> None:
        aside = set_aside(done.state, self.config.max_bad_updates)
        for client, reason in record["failures"].items():
            self.progress.note(f"round {record['round']}: the update of '{client}' was dropped: {reason}.")
            if client in aside and client in done.record.bad:
                self.progress.note(f"'{client}' sent {self.config.max_bad_updates} bad updates and is set aside.")
        if done.record.late:
            self.progress.note(f"round {record['round']}: {done.record.late} replies came too late or twice.")

    def _record_evaluation(self, round: int, sums: dict[str, Metrics]) -> None:
        evaluation = evaluation_record(round, sums, self.evaluator.metrics)
        self.tally.evaluation = plain(evaluation)
        self.metrics.append(evaluation)
        self.progress.evaluation(evaluation)
        self.hear({"evaluation": evaluation})
        self.trackers.log({f"eval/{k}": v for k, v in evaluation.items() if k != "round"}, round)

    def _finish(self, state: ServerState) -> None:
        """Write the trained weights, the summary and the report."""
        models = self._save_weights(state)
        evaluation, errors = self.tally.evaluation or {}, self.tally.product_errors
        summary = {
            "rounds": state.round,
            "attempts": state.round + state.attempts,
            "seconds": self.tally.seconds,
            "tokens": self.tally.tokens,
            "bytes_up": self.tally.bytes_up,
            "bytes_down": self.tally.bytes_down,
            "data_parallel_bytes": 2 * self.tally.steps * num_bytes(self.model.masters),
            "flop_utilisation": utilisation(self.plan.objective.rows, self.model, self.config.adapts, self.tally),
            "peak_memory_bytes": peak_memory(self.model.device),
            "train_loss": self.tally.train_loss,
            "product_error": errors[1] / errors[0] if errors[0] else None,
            "product_error_max": errors[2] if errors[0] else None,
            "eval": {
                metric.name: evaluation.get(metric.name)
                for metric in scores()
                if metric.always or metric.name in evaluation
            },
            "clients": evaluation.get("clients", {}),
            "models": models,
            "skew": self.population.split.get("skew", {}),
            "failures": self.tally.failures,
            "bad_updates": self.tally.bad_updates,
            "late_updates": self.tally.late_updates,
            "reward_faults": self.tally.reward_faults,
            "rows": self.population.counts,
            "choices": self.population.choices,
        }
        write_atomic(self.run.summary_file, (json.dumps(plain(summary), indent=1) + "\n").encode())
        write_report(self.run.path)
        write_cards(self.run, personal=self.plan.personal)
        self.progress.done(summary)

    def _save_weights(self, state: ServerState) -> JsonObject:
        """Write the shared model, and every client's own where there are such; return what they are worth."""
        model, several = self.model, self.plan.algorithm.choice is not None
        if has_shared(self.plan):
            write_weights(self.config, model, shared_of(self.config, self.plan, model, state), self.run.path)
        own = PersonalModels(self.plan, state, model, self.population, self.evaluator)
        if not own.exist or self.begin is not None:  # those of clients elsewhere stay with them
            return {}

        def keep(client: ClientData) -> None:
            if self.plan.personal_steps or several or client.memory.load(client.name, state.round):
                write_weights(self.config, model, own.whole(), self.run.client_dir(client.name))

        return own.compare(self.config.eval_everybody, keep)
