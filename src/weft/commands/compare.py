"""`weft compare RUN...`: the numbers of runs, and the keys in which they differ, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from weft.arguments import Parser
from weft.launch.finished import Run
from weft.runs.text import human_bytes, human_duration, human_number

METRICS: dict[str, Callable[[float], str]] = {
    "rounds": str,
    "train_loss": lambda value: f"{value:.4f}",
    "eval loss": lambda value: f"{value:.4f}",
    "eval perplexity": lambda value: f"{value:.3f}",
    "eval bits_per_byte": lambda value: f"{value:.4f}",
    "eval accuracy": lambda value: f"{value:.4f}",
    "eval macro_f1": lambda value: f"{value:.4f}",
    "eval preference_accuracy": lambda value: f"{value:.4f}",
    "eval reward_margin": lambda value: f"{value:.4f}",
    "eval reward": lambda value: f"{value:.4f}",
    "eval kl": lambda value: f"{value:.3g}",
    "product_error": lambda value: f"{value:.2g}",
    "bytes_up": human_bytes,
    "bytes_down": human_bytes,
    "tokens": human_number,
    "seconds": human_duration,
    "peak_memory_bytes": human_bytes,
}


def run(argv: list[str]) -> int:
    """Print the table."""
    parser = Parser(prog="weft compare", description="Print runs side by side.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse(argv)
    runs = [Run(path) for path in arguments.runs]
    summaries = [flat(each.summary) for each in runs]
    if arguments.json:
        print(json.dumps({str(each.path): summary for each, summary in zip(runs, summaries, strict=True)}, indent=1))
        return 0
    _print(runs, summaries)
    return 0


def flat(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of a summary under the names of the table's rows."""
    return {
        name: (summary["eval"].get(name.removeprefix("eval ")) if name.startswith("eval ") else summary.get(name))
        for name in METRICS
    }


def _print(runs: list[Run], summaries: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Runs")
    table.add_column("")
    for each in runs:
        table.add_column(Text(str(each.path)), justify="right")
    configs = [each.config.model_dump(mode="json") for each in runs]
    for key in configs[0]:
        values = [config[key] for config in configs]
        if key != "output_dir" and any(value != values[0] for value in values):
            table.add_row(key, *(Text(str(value)) for value in values), style="dim")
    table.add_section()
    for name, shown in METRICS.items():
        values = [summary[name] for summary in summaries]
        if any(value is not None for value in values):
            table.add_row(name, *("-" if value is None else shown(value) for value in values))
    Console().print(table)
