"""The best round of a run by one metric, and the end of a run that no longer improves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from weft import registry
from weft.config import RunConfig
from weft.core.declarations import Metric
from weft.core.objective import Evaluator
from weft.errors import ConfigError
from weft.federation.plan import Plan
from weft.json_types import JsonObject
from weft.launch.population import Population
from weft.launch.records import Tally
from weft.launch.run_tasks import RunTasks
from weft.launch.scoring import evaluator_class


@dataclass(frozen=True)
class BestRule:
    """How rounds are compared: by which metric, in which direction, and how long without a better one."""

    metric: str
    """As it was asked for: loss, or TASK, or TASK/METRIC."""
    lower: bool
    """A smaller value is better."""
    patience: int = 0
    """Rounds without a better value after which the run ends; 0: it does not."""
    of_task: bool = False

    @classmethod
    def of(cls, config: RunConfig, evaluator: type[Evaluator], tasks: RunTasks) -> BestRule | None:
        """Return the rule that a configuration asks for, or None.

        Args:
            config: of the run.
            evaluator: of its held-out rows.
            tasks: its evaluation tasks.

        Raises:
            ConfigError: there is no such metric, or nothing says which values of it are better.
        """
        name = config.best_metric
        if name is None:
            return None
        held_out = {metric.name: metric for metric in evaluator.metrics}
        directions = tasks.directions()
        task, _, of_task = name.partition("/")
        if name in held_out:
            if held_out[name].better is None:
                names = ", ".join(metric.name for metric in held_out.values() if metric.better)
                raise ConfigError(f"best_metric is {name}, of which no value is better than another: write {names}.")
            return cls(name, held_out[name].better == "lower", config.early_stopping_rounds)
        if task in directions and name not in directions and of_task:
            scorer = next(one.task.scorer for one in tasks.asked if one.task.name == task)
            if (better := scorer.better(of_task)) is None:
                raise ConfigError(
                    f"best_metric is {name}, of which no value is better than another: write {task}, or another metric "
                    "of it."
                )
            given = [full for full in tasks.metrics(task) if scorer.better(full.partition("/")[2]) is not None]
            if name not in given:
                raise ConfigError(f"best_metric is {name}, which this task does not give: write {', '.join(given)}.")
            return cls(name, better == "lower", config.early_stopping_rounds, of_task=True)
        if name not in directions:
            known = [*(metric.name for metric in held_out.values() if metric.better), *directions]
            guess = registry.nearest(name, known)
            hint = f" Did you mean '{guess}'?" if guess else ""
            raise ConfigError(f"best_metric is '{name}', which this run does not measure.{hint} {_known(known)}")
        return cls(name, directions[name], config.early_stopping_rounds, of_task=True)

    def check(self, evaluator: Evaluator, population: Population, *, reported: bool = True) -> None:
        """Refuse a metric of held-out rows that these rows do not have; ConfigError. Those of sites are not known.

        Args:
            evaluator: of the run.
            population: its clients.
            reported: clients report scores of their held-out rows.
        """
        if self.of_task:
            return
        if not reported:
            raise ConfigError(
                f"best_metric is {self.metric}, a score of clients' rows, which clients do not report under a "
                "budget of privacy: write --eval_tasks and a metric of a task, or leave out --best_metric."
            )
        metric = next(one for one in evaluator.metrics if one.name == self.metric)
        why = _why_unmeasured(metric, population)
        if why is not None:
            raise ConfigError(f"best_metric is {self.metric}, and {why}: write another --best_metric.")

    def key(self, tasks: RunTasks) -> str:
        """Return the key of the metric in the record of an evaluation."""
        return tasks.main_metrics().get(self.metric, self.metric) if self.of_task else self.metric

    def value(self, tasks: RunTasks, tally: Tally, round: int, note: Callable[[str], None]) -> float | None:
        """Return the value of the metric after a round; None, and a note, where it was not measured."""
        record = tally.tasks if self.of_task else tally.evaluation
        value = record.get(self.key(tasks)) if record is not None and record["round"] == round else None
        if value is None:
            note(f"round {round}: best_metric ({self.metric}) was not measured.")
        return value

    def after(self, best: JsonObject | None, round: int, value: float | None) -> JsonObject:
        """Return what is known of the best round after another evaluation.

        Args:
            best: what was known; None at the first evaluation.
            round: after which the model was evaluated, counted from 1.
            value: of the metric; None, or no number: it is no candidate.

        Returns:
            `round` and `value` of the best round, `former`: the best one before it, `checked`: the newest evaluation.
        """
        best = best or {"round": None, "value": None, "former": None, "start": None}
        if value is not None and value == value and self.is_better(value, best["value"]):
            best = best | {"round": round, "value": value, "former": best["round"]}
        return best | {"checked": round}

    def is_better(self, value: float, than: float | None) -> bool:
        """Say whether a value is better than another; equal ones are not, so that the earlier round stays."""
        return than is None or (value < than if self.lower else value > than)

    def as_json(self, best: JsonObject, start: float | None) -> JsonObject:
        """Return what the summary says of the best round; `start`: the value before the first round, if it is known."""
        better = "lower" if self.lower else "higher"
        return (
            {"metric": self.metric, "better": better}
            | {name: best.get(name) for name in ("round", "value")}
            | {"start": start}
        )

    def sentences(self, best: JsonObject, start: float | None, folder: str | None, ended: int | None) -> list[str]:
        """Return for people what came of it.

        Args:
            best: what is known of the best round.
            start: the value before the first round, where it is known.
            folder: of the run, with the shared model of that round; None: there is no shared model.
            ended: the round after which the run ended before its last one; None: it did not.
        """
        if best.get("round") is None:
            return [f"no round has a value of best_metric ({self.metric}), so none was kept as the best."]
        where = f"it is in '{folder}'" if folder else "clients have models of their own, so none was written"
        lines = [f"the best round by {self.metric} is {best['round']} ({best['value']:.4g}); {where}."]
        if start is not None and not self.is_better(best["value"], start):
            lines.append(f"no round is better by {self.metric} than the model before training ({start:.4g}).")
        if ended is not None:
            lines.append(
                f"the run ended after round {ended}: {self.metric} has not improved since round {best['round']}."
            )
        return lines

    def stops(self, best: JsonObject | None) -> bool:
        """Say whether the run ends after the newest evaluation."""
        if not self.patience or best is None:
            return False
        # Before the first value there is nothing to improve on: counted from the beginning.
        return bool(best["checked"] - (best["round"] or 0) >= self.patience)


def read_tasks(config: RunConfig, plan: Plan) -> RunTasks:
    """Return the evaluation tasks of a run, with best_metric checked; raises as `RunTasks.read` and `BestRule.of`."""
    tasks = RunTasks.read(config, plan)
    BestRule.of(config, evaluator_class(plan), tasks)
    return tasks


def _known(names: list[str]) -> str:
    return f"Known: {', '.join(names)}."


def _why_unmeasured(metric: Metric, population: Population) -> str | None:
    """Return why held-out rows do not give a metric."""
    if not population.tested():
        return "no client has held-out rows"
    if population.live_rows is not None:  # sites have the rows
        return None
    if metric.count.startswith("confusion/") and not population.questions:
        return "the held-out rows have no closed set of answers"
    if metric.count == "text_bytes" and population.text_bytes is None:
        return "it is of plain text"
    return None
