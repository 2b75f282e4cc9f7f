"""The tables of `smollm2.py`: means over the seeds that a file has, with their standard deviation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from side_by_side import read

Result = dict[str, Any]
COLUMNS: dict[str, tuple[str, ...]] = {
    "safety": (
        "loss",
        "start_safe",
        "start_false_refusals",
        "safe",
        "false_refusals",
        "aligned_safe",
        "aligned_false_refusals",
    ),
    "door": ("loss", "success", "floor", "cleaning"),
    "privacy": ("loss", "accuracy", "macro_f1", "epsilon", "noise_multiplier"),
    "codecs": ("loss", "bytes"),
    "finance": ("loss", "accuracy", "macro_f1"),
    "domains": ("loss",),
}
AUDITS: dict[str, tuple[str, ...]] = {
    "exposure, kept out": ("exposure", "by_copies", "0", "value"),
    "1 copy": ("exposure", "by_copies", "1", "value"),
    "4": ("exposure", "by_copies", "4", "value"),
    "16": ("exposure", "by_copies", "16", "value"),
    "extracted, 16": ("extraction", "by_copies", "16", "value"),
    "epsilon at least": ("epsilon", "bound"),
    "membership AUC": ("membership", "scores", "reference", "auc", "value"),
    "TPR at 1 %": ("membership", "scores", "reference", "tpr_at_0.01", "value"),
    "near copies": ("verbatim", "by_copies", "once", "near", "value"),
    "held out": ("verbatim", "by_copies", "not at all: held out (control)", "near", "value"),
    "span": ("span", "one_step", "value"),
    "span of the mean": ("span", "mean", "value"),
    "control": ("span", "control", "value"),
}


def tables(out: Path) -> None:
    """Print a table for each study of a file."""
    found = [one for one in read(out) if "error" not in one]
    for study in dict.fromkeys(one["case"][0] for one in found):
        mine = [one for one in found if one["case"][0] == study]
        print(f"\n### {study}\n")
        if study == "scores":
            _scores(mine)
            continue
        _table(study, mine, dict(_cells(study, mine)))


def _cells(study: str, results: list[Result]) -> Iterator[tuple[str, Callable[[Result], Any]]]:
    if study == "audit":
        for name, path in AUDITS.items():
            yield name, lambda one, path=path: _at(one, path)
        return
    for name in COLUMNS[study]:
        yield name, lambda one, name=name: one.get(name)
    if study == "domains":
        for client in sorted(results[0]["clients"]):
            yield client, lambda one, client=client: one["clients"].get(client)


def _table(study: str, results: list[Result], cells: dict[str, Callable[[Result], Any]]) -> None:
    print("| arm | " + " | ".join(cells) + " | seeds |\n|---" + "|---" * (len(cells) + 1) + "|")
    for arm in dict.fromkeys(one["case"][1] for one in results):
        some = [one for one in results if one["case"][1] == arm]
        shown = [
            _mean([value for one in some if isinstance(value := cell(one), (int, float))]) for cell in cells.values()
        ]
        print(f"| {arm} | " + " | ".join(shown) + f" | {len(some)} |")


def _mean(values: list[float]) -> str:
    if not values:
        return "-"
    mean = statistics.mean(values)
    digits = 0 if abs(mean) >= 1000 else 3
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:,.{digits}f}{spread}"


def _at(one: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        one = (one or {}).get(key)
    return one


def _scores(results: list[Result]) -> None:
    arms = {one["case"][1]: one["results"] for one in results}
    print("| task | metric | " + " | ".join(arms) + " |\n|---|---" + "|---" * len(arms) + "|")
    for task in next(iter(arms.values())):
        for metric in next(iter(arms.values()))[task]:
            name = metric.split(",")[0]
            if metric in ("alias", "name") or name.endswith("stderr") or not metric.endswith("none"):
                continue
            values = [scores.get(task, {}).get(metric) for scores in arms.values()]
            spreads = [scores.get(task, {}).get(metric.replace(name, f"{name}_stderr")) for scores in arms.values()]
            shown = [
                "-" if not isinstance(value, (int, float)) else f"{value:.3f}"
                + (f" ± {spread:.3f}" if isinstance(spread, (int, float)) else "")
                for value, spread in zip(values, spreads, strict=True)
            ]  # fmt: skip
            print(f"| {task} | {name} | " + " | ".join(shown) + " |")
