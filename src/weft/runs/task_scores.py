"""Scores of evaluation tasks beside the weights that they are of: in the model card, and in files that the hub reads.

They come from the folders of evaluations in the run directory. Scores of other weights than those that lie there now,
as after a run was extended, are left out: a digest tells. The hub's files: huggingface.co/docs/hub/eval-results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from weft.core.digests import digest_of, file_digest
from weft.core.files import write_atomic
from weft.json_types import JsonObject
from weft.runs.layout import RunDir

CARD = "README.md"
HUB_FOLDER = ".eval_results"
"""Beside weights: a file of YAML for each task."""
TITLE = "## Evaluation tasks"
EVALUATIONS, RESULTS, SETTINGS = "evaluation", "results.json", "settings.json"
"""Of a run's directory: the folder of its evaluations, and two files of each."""
_SECTION = re.compile(rf"^{TITLE}\n.*?(?=^## |\Z)", re.M | re.S)
_DATASET = re.compile(r"[\w.-]+/[\w.-]+")


def weights_digest(weights: Path) -> str:
    """Return what tells weights from others: of a file, or of the files in a folder, without the card of these."""
    files = [weights] if weights.is_file() else sorted(path for path in weights.iterdir() if path.is_file())
    return digest_of([word for path in files if path.suffix != ".md" for word in (path.name, file_digest(path))])


def write_scores(run: RunDir, folder: Path) -> None:
    """Write the scores of the weights in a folder into the card and the hub's files beside them; nothing without a
    card."""
    card = folder / CARD
    if not card.is_file():
        return
    section = scores_section(run, folder)
    text = card.read_text(encoding="utf-8")
    former = _SECTION.search(text)
    if former is not None:
        text = text[: former.start()] + section + ("\n\n" if section else "") + text[former.end() :]
    elif section:
        head, use, rest = text.partition("\n## Use\n")
        text = f"{head.rstrip()}\n\n{section}\n{use}{rest}"
    write_atomic(card, (text.rstrip() + "\n").encode())


def scores_section(run: RunDir, folder: Path) -> str:
    """Return the section of a card on tasks, and write the hub's files; "" where no scores are of these weights."""
    evaluations = list(_evaluations(run))
    if not evaluations:
        return ""
    digest = weights_digest(folder)
    rows: dict[str, str] = {}
    for settings, results in evaluations:
        own = (settings.get("model") or {}).get("weights") == digest
        for task, score in results["main_scores"].items():
            file = folder / HUB_FOLDER / f"{task}.yaml"
            if own and score["value"] is not None:
                conditions = _conditions(task, settings, results)
                rows[task] = f"| {task} | {score['metric']} | {_shown(score)} | {score['count']} | {conditions} |"
                _write_entry(file, task, score, conditions)
            elif task not in rows:
                file.unlink(missing_ok=True)
    if not rows:
        return ""
    top = ["| task | metric | score (95 % interval) | n | asked |", "|---|---|---|---|---|"]
    return "\n".join([TITLE, "", *top, *rows.values()])


def _evaluations(run: RunDir) -> Iterator[tuple[JsonObject, JsonObject]]:
    """Yield the settings and the results of each evaluation in a run's directory, the newest last."""
    folder = run.path / EVALUATIONS
    files = [*folder.glob(f"*/{RESULTS}"), *folder.glob(f"*/*/{RESULTS}")]
    for file in sorted(files, key=lambda path: path.stat().st_mtime_ns):
        try:
            settings = json.loads((file.parent / SETTINGS).read_text(encoding="utf-8"))
            results = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # somebody broke it; `weft evaluate` writes it anew
        if isinstance(settings, dict) and isinstance(results, dict) and isinstance(results.get("main_scores"), dict):
            yield settings, results


def _conditions(task: str, settings: JsonObject, results: JsonObject) -> str:
    """Return in words how a task was asked: how many worked examples, in which form, which rows."""
    counts = results["n-samples"][task]
    words = [f"{results['n-shot'][task]}-shot"]
    words += ["chat template"] * bool(settings.get("apply_chat_template"))
    words += ["system instruction"] * bool(settings.get("system_instruction"))
    if settings.get("max_new_tokens"):
        words.append(f"answers of up to {settings['max_new_tokens']} tokens")
    if counts["effective"] < counts["original"]:
        words.append(f"{counts['effective']} of {counts['original']} rows")
    return ", ".join(words)


def _shown(score: JsonObject) -> str:
    """Return a score with its interval, shares in per cent."""
    scale, unit, places = (100.0, " %", 1) if score["share"] else (1.0, "", 3)
    text = f"{score['value'] * scale:.{places}f}{unit}"
    if score["interval"] is None:
        return text
    low, high = (end * scale for end in score["interval"])
    return f"{text} ({low:.{places}f} to {high:.{places}f})"


def _write_entry(file: Path, task: str, score: JsonObject, conditions: str) -> None:
    """Write a task's score as the hub reads it, where the task's data is a data set of the hub."""
    dataset = score["dataset"]
    if not _DATASET.fullmatch(dataset):
        return
    entry = {
        "dataset": {"id": dataset, "task_id": task},
        "value": score["value"],
        "date": score["date"],
        "notes": f"{score['metric']} by weft evaluate, {conditions}",
    }
    file.parent.mkdir(exist_ok=True)
    write_atomic(file, yaml.safe_dump([entry], sort_keys=False, allow_unicode=True).encode())
