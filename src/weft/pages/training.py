"""What was trained, by whom and on what, in counts; what it took."""

from __future__ import annotations

from weft import plugins
from weft.core.declarations import TRAIN_LOSS
from weft.json_types import JsonObject
from weft.pages.html import facts, labels, quantity, table
from weft.pages.record import RunRecord
from weft.runs.comparison import describe_evaluation

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
PARTS = {
    "objective": "objective",
    "lora_aggregation": "LoRA factors",
    "aggregator": "aggregator",
    "privacy": "privacy",
    "codec": "codec up",
    "codec_down": "codec down",
    "protection": "protection",
    "attack": "simulated attack",
}


def header(record: RunRecord) -> str:
    """Return the facts of a run: the model, the algorithm, the clients and the rows, as counts."""
    config = record.config
    last = record.rounds[-1]["round"] if record.rounds else 0
    total = config.get("num_rounds", last)
    sources = [str(client.get("data")) for client in (config.get("clients") or [])]
    cards = record.split.get("clients") or {}
    rows = sum(int(one.get("rows") or 0) for one in cards.values())
    shown = {
        "model": _model(config),
        "trained": _trained(config),
        "algorithm": record.algorithm if config.get("fed_alg") else None,
        "clients": f"{record.num_clients:,}" if record.num_clients else None,
        "rows trained on": f"{rows:,}" if rows else None,
        "data": _sources(sources) or config.get("dataset_name"),
        "rounds": f"{last} of {total}" + ("" if record.finished else ", not finished"),
    }
    named = {label: plugins.public_name(str(config[key])) for key, label in PARTS.items() if _matters(config, key)}
    return facts(shown | named)


def _sources(paths: list[str]) -> str:
    """Return what the clients' own files are called; of many the first and how many there are."""
    names = [path.rsplit("/", 1)[-1] for path in paths[:3]]
    return ", ".join(names) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def _matters(config: JsonObject, key: str) -> bool:
    plain = {"none", "identity", "plain", "mean", "average", ""}
    return config.get(key) is not None and plugins.public_name(str(config[key])) not in plain


def _model(config: JsonObject) -> str | None:
    shape = [config.get("size"), config.get("hidden_size"), config.get("num_layers")]
    return "trained from scratch" if any(value is not None for value in shape) else config.get("model_name_or_path")


def _trained(config: JsonObject) -> str | None:
    if config.get("prompt_method"):
        return f"prompt ({config['prompt_method']})"
    if config.get("use_peft"):
        return f"LoRA, rank {config.get('peft_lora_r')}"
    return "all parameters" if "use_peft" in config else None


def costs(record: RunRecord) -> str:
    """Return the table of the run's numbers; of an unfinished run, of what its logs hold so far."""
    summary, timing = dict(record.summary), record.timing
    if not summary and record.rounds:
        summary = {key: sum(r.get(key) or 0 for r in record.rounds) for key in ("tokens", "bytes_up", "bytes_down")}
        summary["seconds"] = sum(line.get("seconds") or 0 for line in timing)
        summary |= {"train_loss": record.rounds[-1].get("train_loss"), "eval": record.newest}
    elif summary:
        summary["evaluated"] = describe_evaluation(record.config, summary)
    if summary.get("seconds"):
        summary["tokens_per_second"] = (summary.get("tokens") or 0) / summary["seconds"]
    rows = [
        (LABELS.get(key, key.replace("_", " ").replace("per second", "a second")), quantity(key, value))
        for key, value in summary.items()
        if value is not None and not isinstance(value, dict | list)
    ]
    evaluation = summary.get("eval") or {}
    if best := summary.get("best"):
        rows.append((f"best round by {best.get('metric')}", best.get("round")))
        rows.append(("ended early", "yes" if best.get("stopped_early") else "no"))
    rows += [
        (f"evaluation {label}", quantity(key, evaluation[key]))
        for key, label in labels().items()
        if evaluation.get(key) is not None
    ]
    return table(["", ""], rows) if rows else ""
