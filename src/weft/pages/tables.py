"""Tables of scores: of evaluation tasks, of clients, of shared and own models, and of how unlike clients are."""

from __future__ import annotations

from weft.json_types import JsonObject
from weft.pages.html import MOST_ROWS, labels, quantity, table
from weft.pages.record import RunRecord


def tasks_table(records: list[JsonObject], best: int | None) -> str:
    """Return the table of the scores of evaluation tasks: at the start, after the best round and the newest one."""
    if not records:
        return ""
    first, last = records[0], records[-1]
    shown = {f"round {first['round']}" if first["round"] else "before training": first}
    shown |= {f"round {best}, the best": one for one in records if one["round"] == best}
    shown |= {f"round {last['round']}": last} if last is not first and last["round"] != best else {}
    rows = [
        (key, *(_with_error(record.get(key), record.get(f"{key}_stderr")) for record in shown.values()))
        for key in last
        if "/" in key and not key.endswith("_stderr")
    ]
    return table(["task and metric", *shown], rows)


def _with_error(value: float | None, error: float | None) -> str | None:
    """Return a score with its standard error."""
    if value is None:
        return None
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def models_table(models: JsonObject) -> str:
    """Return the table of the scores of the shared model and of the clients' own models."""
    kinds = {
        "shared": "shared model, everybody's rows",
        "own": "own models, own rows",
        "own_on_everybody": "own models, everybody's rows (mean)",
    }
    columns = labels()
    keys = [key for key in columns if any(models.get(name, {}).get(key) is not None for name in kinds)]
    rows = [
        (words, *(quantity(key, models[name].get(key)) for key in keys))
        for name, words in kinds.items()
        if name in models
    ]
    return table(["", *(columns[key] for key in keys)], rows) if rows else ""


def clients_table(clients: dict[str, JsonObject]) -> str:
    """Return the table of the scores of clients."""
    first = sorted(clients.items())[:MOST_ROWS]
    columns = labels()
    keys = [key for key in columns if any(values.get(key) is not None for values in clients.values())]
    rows = [(name, *(quantity(key, values.get(key)) for key in (*keys, "rows"))) for name, values in first]
    more = len(clients) - len(first)
    return table(["client", *(columns[key] for key in keys), "rows"], rows, more=more) if rows else ""


def left_out_of(record: RunRecord) -> JsonObject:
    """Return the scores of clients that were left out."""
    return dict(record.summary.get("left_out") or record.newest.get("left_out") or {})


def groups_table(record: RunRecord) -> str:
    """Return the table of how unlike clients are: of the evaluation, and of the models where clients have own ones."""
    kinds = {"evaluation": record.summary.get("groups") or record.newest.get("groups") or {}}
    kinds |= (record.summary.get("models") or {}).get("groups") or {}
    apart = left_out_of(record)
    kinds |= {"left out": apart["groups"]} if "groups" in apart else {}
    columns = labels()
    rows = [
        (
            f"{kind.replace('_', ' ')}: {columns[key]}",
            *(quantity(key, one.get(name)) for name in ("mean", "worst")),
            one.get("worst_client"),
            *(quantity("", one.get(name)) for name in ("spread", "jain")),
        )
        for kind, metrics in kinds.items()
        for key, one in metrics.items()
        if key in columns
    ]
    heads = ["", "mean over clients", "worst", "client", "spread (standard deviation)", "Jain's index"]
    return table(heads, rows, words=(0, 3)) if rows else ""
