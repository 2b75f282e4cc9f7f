"""A run from its configuration to its files: rounds are computed, recorded, committed, and resumed after a kill.

Whatever is in metrics.jsonl is deterministic, so a run that was killed and resumed ends with the same bytes there
and the same weights as one that was not; what is not deterministic (seconds, memory) is in timing.jsonl and
summary.json.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import torch

from weft.config import VOLATILE, RunConfig
from weft.core.files import write_atomic
from weft.core.tensors import num_bytes
from weft.core.types import Metrics, ServerState
from weft.errors import ConfigError
from weft.evaluation.heldout import SCORES, HeldOut
from weft.federation.conditions import Conditions
from weft.federation.loop import RoundDone, Rounds, run_rounds
from weft.federation.plan import Plan
from weft.federation.site import Site
from weft.federation.state import begin
from weft.launch import compose
from weft.launch.finished import Run
from weft.launch.memory import DiskMemory
from weft.launch.notes import tell
from weft.launch.own import OwnModels, result_of
from weft.launch.population import Population, populate
from weft.launch.records import Tally, evaluation_record, matrix_rate, peak_memory, round_record
from weft.launch.start import with_tokenizer
from weft.models.adapters import save_model
from weft.models.load import check_fits, load_model_config, load_resident, load_tokenizer
from weft.models.resident import Resident
from weft.models.scratch import shape_of
from weft.runs import checkpoint
from weft.runs.layout import RunDir
from weft.runs.metrics import MetricsLog, plain
from weft.runs.progress import Progress
from weft.runs.report import write_report
from weft.runs.trackers import Trackers, resolve
from weft.runtimes.inprocess import InProcess


def train(
    config: RunConfig, *, resume: bool = False, overwrite: bool = False, quiet: bool = True, as_json: bool = False
) -> Run:
    """Run a configuration to its end and return the finished run.

    Raises:
        ConfigError: a mistake in the configuration or the data; nothing was changed.
        KeyboardInterrupt: the round under way was dropped, the ones before it are committed.
    """
    prepare_process(config)
    resolve(config.report_to)
    plan = compose.plan(config)
    if config.from_scratch:
        shape_of(config)
    tokenizer = None
    if not config.trains_tokenizer:
        tokenizer = load_tokenizer(config)
        check_fits(config, tokenizer, load_model_config(config))
    with (
        RunDir.create(
            config.output_dir,
            config.model_dump(mode="json"),
            resume=resume,
            overwrite=overwrite,
            volatile=VOLATILE,
            defaults={name: field.default for name, field in RunConfig.model_fields.items()},
        ) as run,
        Progress(config.num_rounds, quiet=quiet, as_json=as_json) as progress,
    ):
        config = with_tokenizer(config, run.path / "tokenizer", progress.note)
        tokenizer = tokenizer or load_tokenizer(config)
        population = populate(
            config,
            tokenizer,
            DiskMemory(run),
            text_only=plan.objective.text_only,
            pool=plan.algorithm.pools_data,
            report=progress.tokenizing,
        )
        tell(config, population, plan.algorithm, progress)
        write_atomic(run.split_file, (json.dumps(population.split, indent=1) + "\n").encode())
        progress.split(population.split)
        model = load_resident(config, tokenizer, plan.sharing.lora)
        with Trackers(config.report_to, run.path, config.model_dump(mode="json"), progress.note) as trackers:
            Training(config, run, plan, population, model, progress, trackers).run_all()
        return Run(run.path)


def prepare_process(config: RunConfig) -> None:
    """Set what is the same for the whole process: threads, and kernels that give the same bits every time."""
    if config.threads:
        torch.set_num_threads(config.threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    torch.backends.cudnn.benchmark = False


class Training:
    """A run under way: it takes rounds from the federation and commits them to the directory."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDir,
        plan: Plan,
        population: Population,
        model: Resident,
        progress: Progress,
        trackers: Trackers,
    ) -> None:
        self.config, self.run, self.plan, self.population = config, run, plan, population
        self.model, self.progress, self.trackers = model, progress, trackers
        self.tally = Tally()
        self.metrics = MetricsLog(run.metrics_file)
        self.timing = MetricsLog(run.timing_file)

    def run_all(self) -> None:
        """Run the rounds that are left, then write the results."""
        with self.metrics, self.timing:
            state = self._start()
            committed, since = state, time.monotonic()
            try:
                for done in self._rounds(state):
                    self._record(done)
                    state = done.state
                    if time.monotonic() - since >= self.config.checkpoint_seconds or self._kept(state.round):
                        self._commit(state)
                        committed, since = state, time.monotonic()
            except KeyboardInterrupt:
                if state is not committed:
                    self._commit(state)
                raise
            if state is not committed:
                self._commit(state)
        self._finish(state)

    def _start(self) -> ServerState:
        """Return the state to go on from: that of the newest checkpoint, or the model as it was loaded."""
        values, sharing = self.model.values(), self.plan.sharing
        self.model.initial = {name: value for name, value in values.items() if not sharing.travels(name)}
        if len(self.model.initial) == len(values):
            raise ConfigError(
                f"share ({', '.join(sharing.patterns)}) fits no trained tensor, such as {next(iter(values))}: "
                "write a part of a name, or a glob."
            )
        found = checkpoint.latest(self.run, self.progress.note)
        if found is None:
            self.metrics.truncate(0)
            self.timing.truncate(0)
            checkpoint.rewind(self.run, 0)
            return begin(self.plan, self.model.values(), self.model.fixed)
        state, extra = found
        self.metrics.truncate(extra["metrics"])
        self.timing.truncate(extra["timing"])
        self.tally = Tally(**extra["tally"])
        checkpoint.rewind(self.run, state.round)
        return state

    def _rounds(self, state: ServerState) -> Iterator[RoundDone]:
        config, population = self.config, self.population
        conditions = Conditions(config.seed, config.client_failure_rate, tuple(config.client_speed or ()))
        self.runtime = InProcess(
            self.plan, self.model, self._evaluator(), population.trained, population.evaluated, conditions
        )
        return run_rounds(
            self.plan,
            state,
            self.runtime,
            Rounds(
                config.num_rounds,
                compose.selection(config, population),
                config.eval_every,
                config.max_attempts,
                conditions,
            ),
            clients=population.trained.names,
            evaluated=population.tested(),
        )

    def _kept(self, round: int) -> bool:
        return self.config.save_model_freq > 0 and round % self.config.save_model_freq == 0

    def _commit(self, state: ServerState) -> None:
        extra = {"metrics": self.metrics.commit(), "timing": self.timing.commit(), "tally": vars(self.tally)}
        freq, most = self.config.save_model_freq, self.config.save_total_limit
        checkpoint.save(self.run, state, extra, keep_every=freq, keep_most=most)

    def _record(self, done: RoundDone) -> None:
        record = round_record(done)
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
        self.timing.append(timing)
        for client, reason in record["failures"].items():
            self.progress.note(f"round {record['round']}: the update of '{client}' was dropped: {reason}.")
        if not record["clients"] and record["failures"]:
            self.progress.note(f"round {record['round']}: no update could be used; the model stays as it was.")
        self.progress.round(record | timing)
        self.trackers.log({f"train/{k}": v for k, v in (record | timing).items() if k != "round"}, record["round"])
        if done.scores is not None:
            self._record_evaluation(done.state.round, done.scores)

    def _record_evaluation(self, round: int, scores: dict[str, Metrics]) -> None:
        evaluation = evaluation_record(round, scores)
        self.tally.evaluation = plain(evaluation)
        self.metrics.append(evaluation)
        self.progress.evaluation(evaluation)
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
            "flop_utilisation": self._utilisation(),
            "peak_memory_bytes": peak_memory(self.model.device),
            "train_loss": self.tally.train_loss,
            "product_error": errors[1] / errors[0] if errors[0] else None,
            "product_error_max": errors[2] if errors[0] else None,
            "eval": {key: evaluation.get(key) for key in SCORES},
            "clients": evaluation.get("clients", {}),
            "models": models,
            "skew": self.population.split.get("skew", {}),
            "failures": self.tally.failures,
            "rows": self.population.counts,
            "choices": self.population.choices,
        }
        write_atomic(self.run.summary_file, (json.dumps(plain(summary), indent=1) + "\n").encode())
        write_report(self.run.path)
        self.progress.done(summary)

    def _save_weights(self, state: ServerState) -> dict[str, Any]:
        """Write the shared model, and every client's own where there are such; return what they are worth."""
        kind = "adapter" if self.config.use_peft else "model"
        model, tokenizer = self.model.model, self.model.tokenizer
        if self.plan.algorithm.shares or not self.plan.algorithm.personal:
            save_model(model, tokenizer, result_of(state, self.model.initial), self.run.path / kind)
        own = OwnModels(self.plan, state, self.model, self.population, self._evaluator())
        if not own.exist:
            return {}

        def keep(site: Site) -> None:
            if self.plan.personal_steps or site.memory.load(site.name, state.round):
                save_model(model, tokenizer, own.whole(), self.run.client_dir(site.name) / kind)

        return own.compare(self.config.eval_everybody, keep)

    def _utilisation(self) -> float | None:
        """Return the share of the machine's matrix rate that training on plain text came to.

        A weight costs 2 operations a token forward and 4 backward, 2 where it is frozen; one of an input embedding that
        is not the output's too costs none.
        """
        if not self.plan.objective.text_only or not self.tally.seconds:
            return None
        whole = self.model.model
        weights = sum(parameter.numel() for parameter in whole.parameters())
        inputs, outputs = whole.get_input_embeddings().weight, whole.get_output_embeddings().weight
        if inputs.data_ptr() != outputs.data_ptr():
            weights -= inputs.numel()
        each = 4 if self.config.use_peft else 6
        done: float = each * weights * self.tally.tokens / self.tally.seconds
        return done / matrix_rate(self.model.device, self.model.dtype)

    def _evaluator(self) -> HeldOut:
        return HeldOut(self.config.eval_batch_size, self.population.asked, self.population.text_bytes)
