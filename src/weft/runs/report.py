"""One page about a run: self-contained HTML that opens anywhere, made from the files in the run directory alone.

Loads no script, font or image from anywhere. Client names and reasons were written by others: all text is escaped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from html import escape
from pathlib import Path

from weft import plugins
from weft.core.declarations import TRAIN_LOSS, scores
from weft.core.files import write_atomic
from weft.json_types import JsonObject
from weft.runs import contribution, metrics
from weft.runs.audit_section import audit_section
from weft.runs.cleaning import cleaning_table
from weft.runs.comparison import describe_evaluation
from weft.runs.curves import draw_curves
from weft.runs.layout import RunDir
from weft.runs.privacy_words import privacy_section
from weft.runs.progress import split_line
from weft.runs.split_picture import SplitPicture, draw_split
from weft.runs.text import contamination_lines, human_bytes, human_duration, human_number

MOST_CLIENTS = 200
LABELS = {
    "seconds": "time",
    "bytes_up": "sent to the server",
    "bytes_down": "sent to clients",
    "data_parallel_bytes": "data-parallel training would have sent",
    "flop_utilisation": "share of the machine's matrix throughput",
    "peak_memory_bytes": "peak memory",
    TRAIN_LOSS.name: TRAIN_LOSS.label,
    "product_error": "product error",
    "product_error_max": "largest product error",
    "evaluated": "evaluation of",
}
STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #66717c; --line: #dde2e7; --page: #fff; --panel: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe5ea; --soft: #93a0ac; --line: #323a42; --page: #14181c; --panel: #1c2126; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 62rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .6rem; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2.25rem; margin: 0; }
dt { color: var(--soft); font-size: .82rem; } dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
figure { margin: 0; } svg { width: 100%; height: auto; color: var(--ink); }
.table { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.1rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; white-space: nowrap; }
th:first-child, td:first-child, td.text, th.text { text-align: left; overflow-wrap: anywhere; }
pre { background: var(--panel); padding: 1rem; border-radius: 6px; overflow-x: auto; font-size: .85rem; }
p { color: var(--soft); }
"""


def write_report(run_path: str | os.PathLike[str]) -> Path:
    """Write report.html from what is in the run directory, also of a run that is not finished; returns its path.

    Raises:
        ConfigError: there is no run.
        DataError: a log is broken.
    """
    run = RunDir(run_path)
    config = run.read_config()
    records = metrics.read(run.metrics_file)
    rounds = [record for record in records if record.get("event") == "round"]
    evaluations = [record for record in records if record.get("event") == "eval"]
    tasks = [record for record in records if record.get("event") == "tasks"]
    timing = metrics.read(run.timing_file)
    summary: JsonObject = {}
    if run.summary_file.exists():
        summary = json.loads(run.summary_file.read_text(encoding="utf-8"))
    summary |= {"evaluated": describe_evaluation(config, summary)} if summary else {}
    split: JsonObject = {}
    picture = None
    if run.split_file.exists():
        split = json.loads(run.split_file.read_text(encoding="utf-8"))
        picture = draw_split(split)
        write_atomic(run.split_picture, picture.alone.encode())
    title = run.path.resolve().name
    body = [
        f"<h1>{escape(title)}</h1>",
        _header(config, rounds, len(split.get("clients") or []), finished=bool(summary)),
        *_section("Training", draw_curves(rounds, evaluations, tasks)),
        *_section("Summary", _summary(summary, rounds, evaluations, timing)),
        *_section("Privacy", privacy_section(summary.get("privacy"))),
        *_section("Audits", audit_section(run)),
        *_section("Contribution", contribution.section(run)),
        *_section("Evaluation tasks", _tasks(tasks, (summary.get("best") or {}).get("round"))),
        *_section("Shared and own models", _models(summary.get("models") or {})),
        *_section("Clients", _clients(summary.get("clients") or (evaluations or [{}])[-1].get("clients") or {})),
        *_section("Differences between clients", _groups(summary, (evaluations or [{}])[-1])),
        *_section("Clients that took no part", _clients((_apart(summary, evaluations) or {}).get("clients") or {})),
        *_section("Data", _split(split, picture, summary.get("contamination") or split.get("contamination") or {})),
        *_section("Cleaning", cleaning_table(split.get("cleaning") or {})),
        *_section("Discarded updates", _failures(rounds, summary.get("failures") or {})),
        *_section("Configuration", f"<pre>{escape(run.config_file.read_text(encoding='utf-8'))}</pre>"),
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} - Weft report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
    # Names of clients may hold lone surrogates, which UTF-8 cannot encode.
    write_atomic(run.report_file, page.encode("utf-8", "replace"))
    return run.report_file


def _section(heading: str, content: str) -> list[str]:
    return [f"<h2>{heading}</h2>", content] if content else []


def _header(config: JsonObject, rounds: list[JsonObject], clients: int, *, finished: bool) -> str:
    last_round = rounds[-1]["round"] if rounds else 0
    num_rounds = config.get("num_rounds", last_round)
    client_configs = config.get("clients") or []
    sources = [str(client.get("data")) for client in client_configs[:3]] + (["..."] if client_configs[3:] else [])
    facts = {
        "algorithm": plugins.public_name(config["fed_alg"]) if config.get("fed_alg") else None,
        "model": _model(config),
        "data": ", ".join(sources) or config.get("dataset_name"),
        "clients": clients or len(client_configs) or config.get("num_clients"),
        "rounds": f"{last_round} of {num_rounds}" + ("" if finished else ", not finished"),
    }
    items = (f"<div><dt>{key}</dt><dd>{_cell(value)}</dd></div>" for key, value in facts.items() if value is not None)
    return f"<dl>{''.join(items)}</dl>"


def _model(config: JsonObject) -> str | None:
    shape = [config.get("size"), config.get("hidden_size"), config.get("num_layers")]
    return "trained from scratch" if any(value is not None for value in shape) else config.get("model_name_or_path")


def _summary(
    summary: JsonObject,
    rounds: list[JsonObject],
    evaluations: list[JsonObject],
    timing: list[JsonObject],
) -> str:
    """Return the table of the run's numbers; of an unfinished run, of what its logs hold so far."""
    if not summary and rounds:
        summary = {key: sum(r.get(key) or 0 for r in rounds) for key in ("tokens", "bytes_up", "bytes_down")}
        summary["seconds"] = sum(record.get("seconds") or 0 for record in timing)
        summary |= {"train_loss": rounds[-1].get("train_loss"), "eval": evaluations[-1] if evaluations else {}}
    rows = [
        (LABELS.get(key, key.replace("_", " ")), _quantity(key, value))
        for key, value in summary.items()
        if value is not None and not isinstance(value, dict | list)
    ]
    evaluation = summary.get("eval") or {}
    if best := summary.get("best"):
        rows.append((f"best round by {best.get('metric')}", best.get("round")))
        rows.append(("ended early", "yes" if best.get("stopped_early") else "no"))
    rows += [
        (f"evaluation {label}", _quantity(key, evaluation[key]))
        for key, label in _columns().items()
        if evaluation.get(key) is not None
    ]
    return _table(["", ""], rows) if rows else ""


def _tasks(records: list[JsonObject], best: int | None) -> str:
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
    return _table(["task and metric", *shown], rows)


def _with_error(value: float | None, error: float | None) -> str | None:
    """Return a score with its standard error."""
    if value is None:
        return None
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def _models(models: JsonObject) -> str:
    """Return the table of the scores of the shared model and of the clients' own models."""
    labels = {
        "shared": "shared model, everybody's rows",
        "own": "own models, own rows",
        "own_on_everybody": "own models, everybody's rows (mean)",
    }
    columns = _columns()
    keys = [key for key in columns if any(models.get(name, {}).get(key) is not None for name in labels)]
    rows = [
        (text, *(_quantity(key, models[name].get(key)) for key in keys))
        for name, text in labels.items()
        if name in models
    ]
    return _table(["", *(columns[key] for key in keys)], rows) if rows else ""


def _apart(summary: JsonObject, evaluations: list[JsonObject]) -> JsonObject | None:
    """Return the scores of clients that were left out."""
    return summary.get("left_out") or (evaluations or [{}])[-1].get("left_out")


def _groups(summary: JsonObject, newest: JsonObject) -> str:
    """Return the table of how unlike clients are: of the evaluation, and of the models where clients have own ones."""
    kinds = {"evaluation": summary.get("groups") or newest.get("groups") or {}}
    kinds |= (summary.get("models") or {}).get("groups") or {}
    apart = _apart(summary, [newest])
    kinds |= {"left out": apart["groups"]} if apart and "groups" in apart else {}
    columns = _columns()
    rows = [
        (
            f"{kind.replace('_', ' ')}: {columns[key]}",
            *(_quantity(key, one.get(name)) for name in ("mean", "worst")),
            one.get("worst_client"),
            *(_quantity("", one.get(name)) for name in ("spread", "jain")),
        )
        for kind, metrics in kinds.items()
        for key, one in metrics.items()
        if key in columns
    ]
    heads = ["", "mean over clients", "worst", "client", "spread (standard deviation)", "Jain's index"]
    return _table(heads, rows) if rows else ""


def _split(split: JsonObject, picture: SplitPicture | None, tested: JsonObject) -> str:
    """Return the picture of the split, how skewed it is, and which test items are among training rows."""
    lines = [*([split_line(split)] if split else []), *contamination_lines(tested)]
    figure = f"<figure>{picture.inline}</figure>" if picture else ""
    return "".join(f"<p>{escape(line)}</p>" for line in lines) + figure


def _clients(clients: dict[str, JsonObject]) -> str:
    first_clients = sorted(clients.items())[:MOST_CLIENTS]
    columns = _columns()
    keys = [key for key in columns if any(values.get(key) is not None for values in clients.values())]
    rows = [(name, *(_quantity(key, values.get(key)) for key in (*keys, "rows"))) for name, values in first_clients]
    omitted = len(clients) - len(first_clients)
    return _table(["client", *(columns[key] for key in keys), "rows"], rows, omitted) if rows else ""


def _failures(rounds: list[JsonObject], total: JsonObject) -> str:
    """Return the table of clients whose updates were not used: how often, in which round last, and why."""
    rows: dict[str, tuple[int, int | None, object]] = {name: (1, None, reason) for name, reason in total.items()}
    by_client: dict[str, tuple[int, int | None, object]] = {}
    for record in rounds:
        for name, reason in (record.get("failures") or {}).items():
            by_client[name] = (by_client.get(name, (0,))[0] + 1, record["round"], reason)
    rows |= by_client
    lines = [(name, *values) for name, values in sorted(rows.items())]
    heads, more = ["client", "times", "last round", "reason"], len(lines) - MOST_CLIENTS
    return _table(heads, lines[:MOST_CLIENTS], more, text=(3,)) if lines else ""


def _table(heads: list[str], rows: Iterable[Iterable[object]], more: int = 0, text: tuple[int, ...] = ()) -> str:
    """Return a table; the columns in `text` are set flush left, as the first one is."""
    kind = ['class="text"' if column in text else "" for column in range(len(heads))]
    head = "".join(f"<th {kind[i]}>{escape(name)}</th>" for i, name in enumerate(heads))
    lines = "\n".join(
        "<tr>" + "".join(f"<td {kind[i]}>{_cell(value)}</td>" for i, value in enumerate(row)) + "</tr>" for row in rows
    )
    rest = f"<p>and {more} more</p>" if more > 0 else ""
    header = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f'<div class="table"><table>{header}<tbody>\n{lines}\n</tbody></table></div>{rest}'


def _columns() -> dict[str, str]:
    """Return the columns of the tables of clients and models: the keys of a record and their labels."""
    return {metric.name: metric.label for metric in scores()} | {"cluster": "cluster"}


def _quantity(key: str, value: object) -> object:
    """Return a known number as people read it; anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    metric = next((metric for metric in (TRAIN_LOSS, *scores()) if metric.name == key), None)
    if metric is not None and (text := metric.in_report(value)) is not None:
        return text
    if metric is None and "bytes" in key:
        return human_bytes(value)
    if key == "seconds":
        return human_duration(value)
    if key == "flop_utilisation":
        return f"{value:.1%}"
    return human_number(value) if isinstance(value, float) else f"{value:,}"


def _cell(value: object) -> str:
    return "&ndash;" if value is None else escape(str(value))
