"""What a site reports of its metrics: those that its policy allows, and none of few rows."""

from __future__ import annotations

from weft.config import RunConfig
from weft.core.declarations import declared, names
from weft.core.metrics import complete
from weft.core.types import Metrics
from weft.federation.client_host import ClientHost
from weft.json_types import JsonObject
from weft.launch.budgets import deciding_units
from weft.sites.policy import COUNTS, SitePolicy


def reportable(policy: SitePolicy, metrics: Metrics, rows: int) -> Metrics:
    """Return the metrics that may be sent: those that `report` names, and those that a metric in `report` needs.

    Args:
        policy: the site policy.
        metrics: counts and sums over the rows that were trained on or evaluated.
        rows: how many different rows these are, of a training those of one round. With fewer than `min_report_rows`, or
            where so few were read that they can be no more, only counts of work are sent.
    """
    report, least = policy.accept.report, policy.accept.min_report_rows
    if min(rows, metrics.get("rows", rows)) < least:  # a turn may read one row of many
        return {name: value for name, value in metrics.items() if name in COUNTS}
    metrics = _without_rare_classes(metrics, least)
    if report is None:
        return metrics
    needed = {name for metric in declared() if metric.name in report for name in metric.pick(metrics)}
    allowed = (*COUNTS, *report)
    return complete({name: value for name, value in metrics.items() if name in needed or name.startswith(allowed)})


def _without_rare_classes(metrics: Metrics, least: int) -> Metrics:
    """Return metrics without families of counts, such as confusion/RIGHT/GIVEN, in which a class has too few rows.

    A class of one row is one person's label, and what the model answers to it. All of the family is left out: the count
    of a class that is missing alone would follow from the number of rows.
    """
    known, classes = names(), dict[tuple[str, str], float]()
    families = {name: pattern for name in metrics if "*" in (pattern := known.pattern(name) or "")}
    for name, pattern in families.items():
        first = name.split("/")[1]
        classes[pattern, first] = classes.get((pattern, first), 0.0) + metrics[name]
    rare = {pattern for (pattern, _), count in classes.items() if 0 < count < least}
    return complete({name: value for name, value in metrics.items() if families.get(name) not in rare})


def counts_of(config: RunConfig, host: ClientHost) -> JsonObject:
    """Return what a site tells of its data in the handshake.

    Args:
        config: the run at the site.
        host: answers for the site alone.

    Returns:
        `rows` and `held`, the counts of rows to train on and of held-out rows; `units`, that of units of privacy, where
        the site's own noise hides them: its guarantee depends on their number, and does not cover it.
    """
    counts = {"rows": len(host.train_clients.train[0]), "held": len(host.eval_clients.held_out[0])}
    return counts | ({"units": deciding_units(config, host.train_clients)} if host.plan.privacy.in_steps else {})
