"""`weft attack MODEL_OR_RUN --on TASK`: the accuracy of a model on questions that were changed to mislead it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from weft.arguments import Parser
from weft.commands.subject_flags import add_subject_flags, check_subject, subject_of
from weft.errors import ConfigError
from weft.json_types import JsonObject

if TYPE_CHECKING:
    from weft.launch.subject import Subject
    from weft.tasks.attacks import Report

FILE = "attack.json"


def _parser() -> Parser:
    parser = Parser(
        prog="weft attack",
        description="Change questions with choices, a little, until a model that you have answers wrongly.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL_OR_RUN", help="a run directory, a hub name, a model or adapter folder")
    parser.add_argument("--on", required=True, metavar="TASK", help="an evaluation task with choices, or a task file")
    parser.add_argument("--attacks", nargs="+", metavar="NAME", help="characters, synonyms, tokens [all]")
    parser.add_argument("--budget", type=float, default=0.15, metavar="SHARE", help="of the words changed [0.15]")
    parser.add_argument("--column", metavar="NAME", help="whose text is changed [the longest in the question]")
    parser.add_argument("--limit", type=int, metavar="N", help="attack N rows of the task, drawn at random")
    parser.add_argument("--task_data", nargs="+", default=[], metavar="DIR", help="folders with the tasks' data")
    parser.add_argument("--include_path", nargs="+", default=[], metavar="DIR", help="folders with tasks of your own")
    parser.add_argument("--apply_chat_template", action="store_true", help="ask in turns of the model's chat template")
    parser.add_argument("--batch_size", type=int, default=64, metavar="N", help="prompts at a time [64]")
    parser.add_argument("--seed", type=int, default=0, help="of the rows and of typing mistakes [0]")
    parser.add_argument("--output_dir", metavar="DIR", help=f"where {FILE} goes to [as `weft evaluate`]")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    add_subject_flags(parser)
    return parser


def run(argv: list[str]) -> int:
    """Attack a model on a task, print accuracies before and after, and write them beside its evaluation."""
    arguments = _parser().parse(argv)
    names = _check(arguments)

    from weft.core.seeds import generator
    from weft.tasks.attacks import Attacker, column_of
    from weft.tasks.catalogue import select
    from weft.tasks.local_model import LocalModel
    from weft.tasks.rows import folders_of, items_of, missing, rows_of

    tasks = select([arguments.on], arguments.include_path)
    if len(tasks) != 1 or tasks[0].kind != "choice":
        what = f"has {len(tasks)} tasks" if len(tasks) != 1 else f"is of the kind {tasks[0].kind}"
        raise ConfigError(f"'{arguments.on}' {what}: name one task with choices, such as tfns, fpb or mmlu.")
    task, folders = tasks[0], folders_of(arguments.task_data)
    if (why := missing(task, folders)) is not None:
        raise ConfigError(f"The data of the task '{task.name}' is not at hand: {why}.")
    items = items_of(task, rows_of(task, folders, 0), 0, None)
    column = column_of(task, items, arguments.column)
    # At random, since rows of a task may be in the order of their answers.
    order = generator(arguments.seed, "attack").permutation(len(items)).tolist()
    worded = [number for number in order if str(items[number].row[column]).strip()]
    chosen = [items[number] for number in sorted(worded[: arguments.limit])]
    subject = subject_of(arguments)
    assert isinstance(subject.model, LocalModel)
    attacker = Attacker(task, subject.model, column=column, budget=arguments.budget, seed=arguments.seed)
    say = (lambda *_: None) if arguments.quiet or arguments.json else _say
    reports = [attacker.attack(name, chosen, say) for name in names]
    result = _result(arguments, subject, task.name, column, reports)
    _write(Path(arguments.output_dir) if arguments.output_dir else subject.folder, result)
    if arguments.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        _print(result)
    return 0


def _check(arguments: argparse.Namespace) -> list[str]:
    """Return the names of the attacks; ConfigError for values that cannot be."""
    from weft.registry import unknown_name
    from weft.tasks.attack_names import ATTACKS

    if not 0 < arguments.budget <= 1:
        raise ConfigError(f"--budget is {arguments.budget:g}: write a share of the words above 0, 1 at most.")
    for name in ("limit", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}: write 1 or more.")
    names = list(dict.fromkeys(arguments.attacks or ATTACKS))
    for name in names:
        if name not in ATTACKS:
            raise unknown_name(name, "attack", list(ATTACKS))
    check_subject(arguments)
    return names


def _say(name: str, done: int, total: int) -> None:
    print(f"weft: attack {name}: word {done} of {total} at most", file=sys.stderr)


def _result(
    arguments: argparse.Namespace, subject: Subject, task: str, column: str, reports: list[Report]
) -> JsonObject:
    survivors = frozenset.intersection(*(report.survivors for report in reports))
    items = reports[0].items
    return {
        "model": subject.name,
        "task": task,
        "column": column,
        "items": items,
        "budget": arguments.budget,
        "seed": arguments.seed,
        "accuracy": reports[0].right_before / items,
        "robust_accuracy": len(survivors) / items,
        "attacks": {report.attack: report.as_json() for report in reports},
    }


def _write(folder: Path, result: JsonObject) -> None:
    from weft.core.files import write_atomic

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / FILE, (json.dumps(result, ensure_ascii=False, indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigError(
            f"'{folder / FILE}' cannot be written ({error.strerror}): give another --output_dir."
        ) from error


def _print(result: JsonObject) -> None:
    from weft.commands.tables import print_table

    title = f"{result['task']}: {result['items']} rows, {result['budget']:.0%} of the words of '{result['column']}'"
    heads = ["attack", "accuracy", "after it", "fooled", "words changed", "questions"]
    before = f"{result['accuracy']:.1%}"
    rows = [
        [
            name,
            before,
            f"{report['robust_accuracy']:.1%}",
            f"{report['success_rate']:.1%}",
            f"{report['changed_words']:.1f}",
            f"{report['queries_per_item']:.0f}",
        ]
        for name, report in result["attacks"].items()
    ]
    print_table(title, heads, [*rows, ["any of them", before, f"{result['robust_accuracy']:.1%}", "", "", ""]])
