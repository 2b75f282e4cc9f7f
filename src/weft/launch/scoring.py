"""How held-out rows are scored: whether clients report, what is measured, who is asked, what a sealed sum holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from weft import registry
from weft.config import RunConfig
from weft.core.objective import Evaluator
from weft.core.score_places import CLASSES, MOST_CLASSES, places_of
from weft.errors import ConfigError
from weft.federation.plan import Plan
from weft.keys.privacy import is_private
from weft.launch.population import Population
from weft.runs.text import plural


def evaluator_class(plan: Plan) -> type[Evaluator]:
    """Return the class of the evaluator that a plan's objective names."""
    kind: type[Evaluator] = registry.load(registry.EVALUATORS, plan.objective.evaluator, "evaluator")
    return kind


def with_scores(config: RunConfig, plan: Plan) -> Plan:
    """Return a plan that knows how it scores held-out rows; ConfigError for more answers than a sealed sum holds."""
    metrics, named = evaluator_class(plan).metrics, len(config.choices or ())
    plan = replace(plan, reports=_reports(config, plan), measured=metrics)
    if not plan.protection.seals_scores:
        return plan
    if named > MOST_CLASSES:
        raise ConfigError(
            f"choices names {named} answers, and the sealed scores of a run with protection {config.protection} have "
            f"places for {MOST_CLASSES} at most: name fewer, or leave out --choices."
        )
    return replace(plan, score_places=places_of(metrics, named or CLASSES))


def _reports(config: RunConfig, composed: Plan) -> bool:
    """Return whether clients send the scores of held-out rows.

    Under a budget they do so only of rows that are nobody's, and of the shared model alone: a client's own model was
    trained beyond what the budget pays for, and its few-shot examples are private rows.
    """
    public = config.eval_dataset_name is not None and config.runtime != "nvflare"
    return not is_private(config) or (public and not composed.own_models and not config.few_shot)


def scored_clients(
    config: RunConfig, plan: Plan, population: Population, note: Callable[[str], None], *, needed: str = ""
) -> Sequence[str]:
    """Return the clients that are asked for scores: those with held-out rows, if a sealed sum of them can be opened.

    Args:
        config: of the run; with no rounds, or a best round by such scores, it is refused where there are none.
        plan: the parts.
        population: the clients.
        note: called with the sentence that no score can be known.
        needed: what else needs scores.

    Raises:
        ConfigError: a sealed sum of what must be scored would have too few clients.
    """
    tested, apart = population.tested(), population.left_out
    if not (plan.protection.seals_scores and plan.reports):
        return tested
    name, least = type(plan.protection).__name__, plan.protection.smallest_sum
    alone = [client for client in tested if client in apart]
    if 0 < len(alone) < least:
        raise ConfigError(
            f"leave_out names {plural(len(alone), 'client')} with held-out rows, and "
            f"{name} opens sums of scores over {least} clients or more: name {least} or more, or none."
        )
    others = len(tested) - len(alone)
    if not 0 < others < least:
        return tested
    why = f"{others} of the clients have held-out rows, and {name} opens sums of scores over {least} clients or more"
    if not config.num_rounds:
        needed = "num_rounds is 0"
    elif config.best_metric in {metric.name for metric in plan.measured}:
        needed = f"best_metric is {config.best_metric}"
    if needed:
        raise ConfigError(f"{needed}, but {why}: hold out rows at more clients, or write --protection none.")
    note(f"{why}: their held-out rows are not scored.")
    return alone
