"""A run under way: rounds are computed, recorded, committed, and the results written.

Whatever is in metrics.jsonl is deterministic, so a run that was killed and resumed ends with the same bytes there
and the same weights as one that was not; what is not deterministic (seconds, memory) is in timing.jsonl and
summary.json.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

from weft.config import RunConfig
from weft.core.exchange import Runtime
from weft.core.metrics import ENDPOINT_COUNTS
from weft.core.types import ServerState, Tensors
from weft.errors import BudgetSpent, RunError
from weft.federation.client_host import ClientHost
from weft.federation.clients import ClientData
from weft.federation.loop import RoundDone, Rounds, is_evaluated, run_rounds
from weft.federation.scores import Scores
from weft.federation.state import begin
from weft.json_types import JsonObject
from weft.launch import compose, rank_group
from weft.launch.best import BestRule
from weft.launch.budgets import account_of
from weft.launch.commits import Commits, Logs, Position
from weft.launch.dishonest_server import dishonest
from weft.launch.federated import scores_of
from weft.launch.malicious import attacked, malicious_of
from weft.launch.pages import write_pages
from weft.launch.personal_models import PersonalModels
from weft.launch.population import Population
from weft.launch.post_alignment import write_aligned
from weft.launch.ray_actor import runtime_of
from weft.launch.recorder import Recorder, made_of
from weft.launch.records import Tally, evaluation_record, peak_memory, round_record, summary_of, tasks_record
from weft.launch.results import has_shared, shared_names, shared_of, write_weights
from weft.launch.round_notes import notes
from weft.launch.run_tasks import RunTasks
from weft.launch.scoring import scored_clients
from weft.models.group import RankGroup
from weft.runs import checkpoint
from weft.runs.layout import RunDir
from weft.runs.metrics import MetricsLog, flat, plain
from weft.runs.progress import Progress
from weft.runs.trackers import Trackers


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
        tasks: RunTasks | None = None,
        begin: Callable[[ClientHost], AbstractContextManager[Runtime]] | None = None,
        listener: Callable[[JsonObject], None] = lambda _: None,
        evaluated: ServerState | None = None,
    ) -> None:
        """Connect the parts of a run and open its logs.

        Args:
            config: its keys.
            run: its directory.
            host: its parts and its model, which answer for the clients of this process.
            population: its clients.
            progress: shows its rounds and warnings.
            trackers: log its numbers.
            group: the processes that the model is spread over.
            tasks: what the server's model is put to between rounds; None: nothing.
            begin: opens the runtime that carries messages to clients; None: the one that the configuration names.
            listener: called with the record of every round and evaluation.
            evaluated: of a run without rounds: the state to evaluate; None: that of the model as it was loaded.
        """
        self.config, self.run, self.host, self.population = config, run, host, population
        self.plan, self.model, self.evaluator = host.plan, host.model, host.evaluator
        self.progress, self.trackers = progress, trackers
        self.announcer = rank_group.Announcer(group) if group is not None else None
        self.begin, self.listener, self.evaluated = begin, listener, evaluated
        self.tally, self.malicious = Tally(), malicious_of(config, population.names)
        self.tasks = RunTasks(config) if tasks is None else tasks
        self.best = BestRule.of(config, type(self.evaluator), self.tasks)
        if self.best is not None:
            self.best.check(self.evaluator, population, reported=self.plan.reports)
        self.plan.protection.check(shared_names(self.plan, self.model))
        self.tested = scored_clients(config, self.plan, population, progress.note)
        self.account = account_of(config, self.plan.privacy, run, population.trained)
        self.recorder = Recorder(run, self.account)
        self.metrics = MetricsLog(run.metrics_file, self.recorder.hear)
        self.timing = MetricsLog(run.timing_file)
        self.logs = Logs(self.metrics, self.timing, self.recorder.log)
        self.commits = Commits(config, run, self.logs, self.plan)

    def run_all(self, values: Tensors) -> ServerState:
        """Run the rounds that are left, then write the results; return the state after the last.

        Args:
            values: all that is trained, as the model was loaded.
        """
        with self.recorder.log:
            with self.metrics, self.timing:
                state = self._all_rounds(self._start(values))
            if self.announcer:
                self.announcer.end()
            self._finish(state)
        return state

    def _start(self, values: Tensors) -> ServerState:
        """Return the state to go on from: that of the newest checkpoint, or the model as it was loaded."""
        saved_state = checkpoint.latest(self.run, self.progress.note)
        if saved_state is None:
            self.logs.truncate(0, 0, 0)
            checkpoint.rewind(self.run, 0)
            return self.evaluated or begin(self.plan, values, self.model.fixed)
        state, extra = saved_state
        # Without a record, one begins here: an older version wrote none, or it was deleted.
        self.logs.truncate(extra["metrics"], extra["timing"], extra.get("chain", 0) if self.logs.chain.size() else 0)
        self.tally = Tally(**extra["tally"])
        checkpoint.rewind(self.run, state.round)  # what clients wrote later belongs to rounds that are run again
        return state

    def _all_rounds(self, state: ServerState) -> ServerState:
        """Run and commit the rounds that are left; return the state after the last."""
        config, population, commits = self.config, self.population, self.commits
        self.recorder.begin(state.round, made_of(self.run, self.model.device))
        if self.tasks.asked and state.round == 0 and not self.metrics.size():
            self._record_tasks(state)
        position = commits.committed = self._position(state)
        local = partial(runtime_of, config, population=population, progress=self.progress, announce=self.announcer)
        with (self.begin or local)(self.host) as runtime, commits:
            try:
                if not config.num_rounds:
                    self._record_evaluation(0, scores_of(self.plan, state, runtime, population, self.progress.note))
                    position = self._position(state)
                for result in () if self._is_over() else self._rounds(state, runtime):
                    self._record(result)
                    self.recorder.add(result)
                    position = self._position(result.state)
                    best = self.tally.best or {}
                    commits.offer(position, now=best.get("round") == position.state.round)
                    if self._is_over():
                        break
                commits.finish(position)
            except BudgetSpent as spent:
                commits.finish(position)
                self.progress.note(str(spent))
            except BaseException as error:
                # The rounds since the last checkpoint are whole and recorded, so they are saved. After an error of
                # unknown cause the save may fail too, and must not hide it.
                is_foreseen = isinstance(error, KeyboardInterrupt | RunError)
                with contextlib.nullcontext() if is_foreseen else contextlib.suppress(Exception):
                    commits.finish(position)
                raise
        return position.state

    def _rounds(self, state: ServerState, runtime: Runtime) -> Iterator[RoundDone]:
        names, tested = self.population.trained.names, self.tested
        runtime = attacked(self.plan, runtime, self.config.seed, self.malicious)
        runtime = dishonest(self.config, self.plan, self.model, runtime)
        return run_rounds(self.plan, state, runtime, self._schedule(), clients=names, eval_clients=tested)

    def _schedule(self) -> Rounds:
        config, population = self.config, self.population
        return Rounds(
            config.num_rounds,
            compose.selection(config, population, self.run.secret),
            config.eval_every,
            config.max_attempts,
            self.host.conditions,
            population.trained.sizes() if population.live_rows is None else population.live_rows,
            config.max_bad_updates,
            self.run.secret,
            config.product_error,
            self.model.device,
            population.left_out,
            *((self.account.check, self.account.spend) if self.account else ()),
        )

    def _is_over(self) -> bool:
        """Say whether the run ends before its last round, because it no longer improves."""
        return self.best is not None and self.best.stops(self.tally.best)

    def _position(self, state: ServerState) -> Position:
        """Return how far the run is, with the state after the round that was recorded last."""
        # Copied, since the tally goes on counting while this position waits to be committed.
        metrics, timing, chain = (log.size() for log in self.logs)
        return Position(state, metrics, timing, copy.deepcopy(vars(self.tally)), chain, self.logs.chain.head)

    def _record(self, result: RoundDone) -> None:
        record = round_record(result, self.plan.objective.metrics, self.malicious, self.population.domains)
        record |= self.account.line() if self.account else {}
        if self.account and self.account.hides_cohort:
            record.pop("left", None)
        self.tally.add(result, record)
        self.metrics.append(record)
        if result.record.repeated:
            self.progress.note(
                f"round {record['round']}: {len(record['clients'])} usable replies, fewer than the "
                f"{result.record.quorum} that it needs; the round is repeated."
            )
            return
        timing = {
            "round": record["round"],
            "seconds": result.seconds,
            "tokens_per_second": record["tokens"] / result.seconds,
            "peak_memory_bytes": peak_memory(self.model.device),
        }
        requests = {name: int(count) for name, count in result.record.sums.items() if name in ENDPOINT_COUNTS}
        self.timing.append(timing | requests)
        retries, most = requests.get("endpoint_retries", 0), self.config.max_bad_updates
        hides = self.account is not None and self.account.hides_cohort
        for sentence in notes(result, record, retries, most, hides=hides, trusted=self.plan.trusted):
            self.progress.note(sentence)
        self.progress.round(record | timing)
        self.listener({"round": record | timing})
        self.trackers.log({f"train/{k}": v for k, v in (record | timing).items() if k != "round"}, record["round"])
        if result.scores is not None:
            self._record_evaluation(result.state.round, result.scores)
        if is_evaluated(result.state.round, self.config.num_rounds, self.config.eval_every):
            if self.tasks.asked:
                self._record_tasks(result.state)
            if self.best is not None:
                value = self.best.value(self.tasks, self.tally, result.state.round, self.progress.note)
                self.tally.best = self.best.after(self.tally.best, result.state.round, value)

    def _record_tasks(self, state: ServerState) -> None:
        """Put the evaluation tasks to the server's model."""
        scores, answers = self.tasks.scores(state, self.model)
        record = tasks_record(state.round, plain(scores))
        self.tally.add_tasks(record, answers)
        self.metrics.append(record)
        self.progress.tasks(record, self.tasks.words(record))
        self.listener({"tasks": record})
        self.trackers.log({f"eval/{k}": v for k, v in record.items() if k not in ("event", "round")}, state.round)

    def _record_evaluation(self, round: int, scores: Scores) -> None:
        evaluation = evaluation_record(round, scores, self.evaluator.metrics, self.population.left_out)
        self.tally.evaluation = plain(evaluation)
        self.metrics.append(evaluation)
        self.progress.evaluation(evaluation)
        self.listener({"evaluation": evaluation})
        self.trackers.log({f"eval/{k}": v for k, v in flat(evaluation, "/").items()}, round)

    def _finish(self, state: ServerState) -> None:
        """Write the trained weights, the summary and the report."""
        models = self._save_weights(state)
        summary = summary_of(self.config, self.plan, self.model, self.population, self.tally, state)
        summary |= {"models": models} | ({} if self.account is None else {"privacy": self.account.statement()})
        if self.best is not None:
            summary["best"] = self._write_best(state)
        if self.config.post_alignment is not None:
            summary["aligned"] = write_aligned(self.config, self.plan, self.model, self.run, state)
        self.recorder.end(state.round)
        write_pages(self.run, plain(summary), report=self.config.report, personal=self.plan.personal)
        self.progress.finish(summary)

    def _write_best(self, state: ServerState) -> JsonObject:
        """Write the shared model of the best round; return what the summary says of it."""
        assert self.best is not None
        best, start = self.tally.best or {}, (self.tally.first_tasks or {}).get(self.best.key(self.tasks))
        round, folder = best.get("round"), None
        if round is not None and has_shared(self.plan):
            state_then = state if round == state.round else checkpoint.at(self.run, round)
            values = shared_of(self.config, self.plan, self.model, state_then)
            folder = f"best/{write_weights(self.config, self.model, values, self.run.path / 'best').name}"
        over = self._is_over() and state.round < self.config.num_rounds
        for sentence in self.best.sentences(best, start, folder, ended=state.round if over else None):
            self.progress.note(sentence)
        return self.best.as_json(best, start) | {"folder": folder, "stopped_early": over}

    def _save_weights(self, state: ServerState) -> JsonObject:
        """Write the shared model and the clients' personal models, if any; return the scores of both."""
        model, has_clusters = self.model, self.plan.algorithm.choice is not None
        if not self.config.num_rounds:  # there is nothing new to write
            return {}
        if has_shared(self.plan):
            write_weights(self.config, model, shared_of(self.config, self.plan, model, state), self.run.path)
        personal = PersonalModels(self.plan, state, model, self.population, self.evaluator)
        if not personal.exist or self.begin is not None:  # personal models of sites stay at the sites
            return {}

        def keep(client: ClientData) -> None:
            if self.plan.personal_steps or has_clusters or client.memory.load(client.name, state.round):
                write_weights(self.config, model, personal.whole(), self.run.client_dir(client.name))

        return personal.compare(self.config.eval_everybody, keep)
