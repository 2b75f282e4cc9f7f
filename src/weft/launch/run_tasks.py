"""The evaluation tasks of a run: put to the server's model between rounds, whatever runtime the clients have.

Nothing of it reaches a client. The same state gives the same scores, so that a resumed run writes the same lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from weft.config import RunConfig
from weft.core.digests import digest_of
from weft.core.libraries import Tokenizer
from weft.core.types import SIDE, ServerState
from weft.data.words import instruction_tokens, lead_of
from weft.errors import ConfigError
from weft.federation.plan import Plan
from weft.json_types import JsonObject
from weft.launch.results import has_shared
from weft.launch.sample_answers import samples_of
from weft.models.resident import Resident
from weft.runs.fingerprints import Fingerprints
from weft.runs.metrics import to_line
from weft.tasks.catalogue import select
from weft.tasks.declaration import EvalTask, as_json
from weft.tasks.encoding import Encoder
from weft.tasks.local_model import LocalModel
from weft.tasks.requests import EvaluatedModel, Item
from weft.tasks.results import shown
from weft.tasks.rows import folders_of, items_of, missing, rows_of
from weft.tasks.runner import records_of, replies_to, result_of
from weft.tasks.scorer import bounds_of
from weft.tasks.statistics import Measure

NEEDS = {"code": "runs programs that the model wrote", "judge": "takes a judge"}
"""What a scorer needs that a run does not have."""
METRIC_ITEMS = 4
"""Items of a task whose right answers show which metrics its scorer gives."""


@dataclass(frozen=True)
class AskedTask:
    """An evaluation task with the items that are asked."""

    task: EvalTask
    items: Sequence[Item]
    rows: int
    shots: int


@dataclass(frozen=True)
class RunTasks:
    """The evaluation tasks of a run, read before its model is loaded; without tasks it is empty."""

    config: RunConfig
    asked: Sequence[AskedTask] = ()

    @classmethod
    def read(cls, config: RunConfig, plan: Plan) -> RunTasks:
        """Read the tasks and their rows.

        Raises:
            ConfigError: there is no such task, its data is not at hand, it takes more than a model, or no model is at
                the server.
            DataError: a row does not fit its task.
        """
        if not config.eval_tasks:
            return cls(config)
        _check_model(config, plan)
        tasks, folders = select(config.eval_tasks, config.include_path), folders_of(config.task_data)
        for task in tasks:
            if task.scorer.needs:
                raise ConfigError(
                    f"The evaluation task '{task.name}' {NEEDS[task.scorer.needs]}, which no run does: leave it out of "
                    "eval_tasks, and put it to the finished run by `weft evaluate`."
                )
            if (why := missing(task, folders)) is not None:
                raise ConfigError(f"The data of the evaluation task '{task.name}' is not at hand: {why}.")
        asked = []
        for task in tasks:
            shots = config.num_fewshot if task.shots is not None else 0
            rows = rows_of(task, folders, shots)
            items = items_of(task, rows, shots, config.eval_limit, seed=config.eval_limit_seed)
            asked.append(AskedTask(task, items, len(rows.asked), shots))
        return cls(config, asked)

    def check_template(self, tokenizer: Tokenizer) -> None:
        """Refuse turns where the tokenizer has no chat template; ConfigError."""
        if self.asked:
            Encoder(tokenizer, chat=self.config.apply_chat_template)

    def fingerprints(self) -> Fingerprints:
        """Return the fingerprints of the tasks and of the rows that are asked."""
        return {
            f"the evaluation task '{one.task.name}'": digest_of(
                [to_line(as_json(one.task)), *(repr((item.prompt, sorted(item.row.items()))) for item in one.items)]
            )
            for one in self.asked
        }

    def directions(self) -> dict[str, bool]:
        """Return by which names a score can be asked for, and whether a lower one is better.

        A task's own name stands for its main metric. What its scorer counts beside it (`metrics`) has its name after a
        slash.
        """
        names: dict[str, bool] = {}
        for one in self.asked:
            metric = one.task.metric
            names[one.task.name] = names[f"{one.task.name}/{metric}"] = one.task.scorer.better(metric) == "lower"
        return names

    def metrics(self, task: str) -> list[str]:
        """Return TASK/METRIC of all that a task's scorer gives: what it makes of right answers to the first items."""
        one = next(one for one in self.asked if one.task.name == task)
        items = one.items[:METRIC_ITEMS]
        records = records_of(one.task, items, [one.task.scorer.perfect(item) for item in items])
        return [f"{task}/{name}" for name in result_of(one.task, records, one.rows, one.shots).measures]

    def scores(self, state: ServerState, model: Resident) -> tuple[JsonObject, JsonObject]:
        """Return the scores of the server's model with their standard errors, and by task some of its answers.

        Scores are by TASK/METRIC and TASK/METRIC_stderr, answers as `weft.launch.sample_answers` has them.
        The resident model, its mode and all random generators are afterwards as they were.

        Args:
            state: of the server.
            model: holds the server's parameters meanwhile.
        """
        found: JsonObject = {}
        answers: JsonObject = {}
        with model.holding(model.initial | state.params, state.memory.get(SIDE, {})):
            evaluated = self._evaluated(model)
            for one in self.asked:
                replies = list(replies_to(one.task, one.items, evaluated, self.config.seed))
                if replies and (samples := samples_of(one.task, *replies[0])):
                    answers[one.task.name] = samples
                records = [record for items, own in replies for record in records_of(one.task, items, own)]
                result = result_of(one.task, records, one.rows, one.shots)
                # The main metric stands first, so that a record shows which one it is.
                for name, measure in ({one.task.metric: result.main} | result.measures).items():
                    found[f"{one.task.name}/{name}"] = measure.value
                    if measure.error is not None:
                        found[f"{one.task.name}/{name}_stderr"] = measure.error
        return found, answers

    def main_metrics(self) -> dict[str, str]:
        """Return the key of each task's main score in a record, by task."""
        return {one.task.name: f"{one.task.name}/{one.task.metric}" for one in self.asked}

    def words(self, scores: JsonObject) -> list[str]:
        """Return the main score of each task with its 95 % interval, for people."""
        texts = []
        for one in self.asked:
            task, metric, items = one.task.name, one.task.metric, one.items
            value, error = scores[f"{task}/{metric}"], scores.get(f"{task}/{metric}_stderr")
            groups = len({item.cluster or str(item.number) for item in items})
            groups = groups if groups > 1 else len(items)
            measure = Measure(value, error, len(items), groups, bounds_of(metric))
            texts.append(f"{task} {metric} {shown(metric, measure)}")
        return texts

    def _evaluated(self, model: Resident) -> EvaluatedModel:
        prefix, words = instruction_tokens(model)
        return LocalModel(
            model,
            chat=self.config.apply_chat_template,
            batch_size=self.config.eval_batch_size,
            lead=lead_of(self.config),
            place=partial(words.into, words=prefix) if len(prefix) else None,
        )


def _check_model(config: RunConfig, plan: Plan) -> None:
    """Refuse a run whose server has no whole model that tasks could be put to."""
    why = None
    if not has_shared(plan):
        why = "every client has a model of its own"
    elif plan.sharing.keeps:
        why = "a part of the model stays with each client"
    if why is not None:
        raise ConfigError(
            f"eval_tasks are put to the model at the server, and in this run {why}: leave out --eval_tasks, and put "
            "them to one client's model by `weft evaluate RUN --client NAME`."
        )
