"""`weft evaluate MODEL_OR_RUN --tasks ...`: score a model on tasks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from weft.arguments import Parser
from weft.commands import evaluation_endpoint, evaluation_federated, evaluation_harness
from weft.commands.evaluation_helpers import Helpers, add_flags, at_hand, progress, runnable, with_opponent
from weft.commands.subject_flags import MODEL_KEYS, OF_RUNS, add_subject_flags, check_subject, subject_of
from weft.errors import ConfigError
from weft.json_types import JsonObject

if TYPE_CHECKING:
    from weft.launch.subject import Subject
    from weft.tasks.declaration import EvalTask
    from weft.tasks.requests import Item
    from weft.tasks.runner import Result
    from weft.tasks.store import Store


def _parser() -> Parser:
    parser = Parser(prog="weft evaluate", description="Score a run or a model on tasks.", allow_abbrev=False)
    parser.add_argument(
        "model", nargs="?", metavar="MODEL_OR_RUN", help="a run directory, a hub name, a model or adapter folder"
    )
    parser.add_argument(
        "--tasks", nargs="+", required=True, metavar="NAME", help="tasks, suites (general, medical, all, ...) or files"
    )
    parser.add_argument("--task_data", nargs="+", default=[], metavar="DIR", help="folders with the tasks' data")
    parser.add_argument("--include_path", nargs="+", default=[], metavar="DIR", help="folders with tasks of your own")
    parser.add_argument("--limit", type=int, metavar="N", help="ask at most N rows of a task")
    parser.add_argument(
        "--limit_seed", type=int, metavar="SEED", help="draw the rows of --limit at random [the first rows]"
    )
    parser.add_argument("--num_fewshot", type=int, metavar="N", help="worked examples before a question [0]")
    parser.add_argument("--apply_chat_template", action="store_true", help="ask in turns of the model's chat template")
    parser.add_argument("--system_instruction", default="", metavar="TEXT", help="a text before everything")
    parser.add_argument("--max_new_tokens", type=int, metavar="N", help="longest answer in tokens [the task's]")
    parser.add_argument("--batch_size", type=int, metavar="N", help="prompts at a time [16]")
    parser.add_argument("--seed", type=int, default=0, help="of sampling [0]")
    parser.add_argument(
        "--reference", metavar="MODEL_OR_RUN", help="of preference tasks: measure margins beyond those of this model"
    )
    parser.add_argument(
        "--federated", action="store_true", help="have clients score it on rows of theirs: --federated --help says more"
    )
    parser.add_argument("--harness", choices=["lm_eval"], help="put lm-eval's tasks instead of Weft's")
    add_flags(parser)
    evaluation_endpoint.add_flags(parser)
    parser.add_argument("--output_dir", metavar="DIR", help="where to [RUN/evaluation or evaluations/MODEL]")
    parser.add_argument("--overwrite", action="store_true", help="delete the results of another evaluation there first")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    add_subject_flags(parser)
    return parser


def parsed(argv: list[str]) -> argparse.Namespace:
    """Return the flags of an evaluation, checked; ConfigError."""
    arguments = _parser().parse(argv)
    _check(arguments)
    return arguments


def run(argv: list[str]) -> int:
    """Put tasks to a model, print their scores, and write them beside the run."""
    if evaluation_federated.FLAG in argv:
        return evaluation_federated.run(argv)
    arguments = parsed(argv)
    if arguments.harness is not None:
        return _run_harness(arguments)
    from weft.core.files import json_line
    from weft.tasks.results import table

    results, data, file = scored(arguments)
    if arguments.json:
        print(json_line(data))
        return 0
    print("\n".join(table(results)))
    cut = [f"{result.task.name} ({result.cut})" for result in results if result.cut]
    if cut:
        print(f"Items that were longer than the model's context lost their beginning: {', '.join(cut)}.")
    refused = [f"{result.task.name} ({result.refused})" for result in results if result.refused]
    if refused:
        print(f"Items that the endpoint refused to answer count as empty answers: {', '.join(refused)}.")
    print(file)
    return 0


def scored(arguments: argparse.Namespace) -> tuple[list[Result], JsonObject, Path]:
    """Put tasks to a model; return the results, what results.json has of them, and that file."""
    from weft.runs.layout import RunDir
    from weft.runs.task_scores import write_scores
    from weft.tasks.catalogue import select
    from weft.tasks.results import results_json, write_results
    from weft.tasks.rows import folders_of

    arguments.num_fewshot = arguments.num_fewshot or 0
    tasks = select(arguments.tasks, arguments.include_path)
    folders = folders_of(arguments.task_data)
    tasks = at_hand(tasks, folders, alone=len(tasks) == 1)
    tasks, helpers = runnable(tasks, arguments)
    if arguments.reference is not None and not any(task.kind == "preference" for task in tasks):
        raise ConfigError("--reference is of preference tasks, such as hh_helpful, and none is named: leave it out.")
    rows = {task.name: _rows(task, folders, arguments) for task in tasks}
    helpers, against = with_opponent(helpers, arguments, [(task, rows[task.name].items) for task in tasks])
    if arguments.endpoint is not None:
        kinds = {task.name: type(task.scorer.request(rows[task.name].items[0])) for task in tasks}
        subject, tasks = evaluation_endpoint.reachable(arguments, tasks, kinds)
    else:
        subject = subject_of(arguments)
    settings = _settings(arguments, subject) | against
    limited: dict[str, object] = {"limit": arguments.limit, "limit_seed": arguments.limit_seed}
    if arguments.reference is not None:
        subject, settings = _with_reference(arguments, subject, settings)
    store = _store(arguments, subject, settings)
    results: list[Result] = []
    with _keeping(subject, store):
        for task in tasks:
            results.append(_evaluated(task, rows[task.name], subject, store, arguments, helpers))
            # After every task: what is done stands, whatever comes.
            dates = {result.task.name: store.date(result.task) for result in results}
            data = results_json(results, subject.name, settings | limited, version("weft"), dates)
            file = write_results(store.folder, data)
    if subject.weights is not None:
        write_scores(RunDir(arguments.model), subject.weights)
    return results, data, file


def _with_reference(
    arguments: argparse.Namespace, subject: Subject, settings: dict[str, object]
) -> tuple[Subject, dict[str, object]]:
    """Return the model beside a reference model, and the settings with that."""
    from weft.tasks.requests import WithReference

    arguments = argparse.Namespace(**vars(arguments) | {"model": arguments.reference, "round": None, "client": None})
    other = subject_of(arguments)
    return replace(subject, reference=WithReference(subject.model, other.model)), settings | {
        "reference": other.identity
    }


def _run_harness(arguments: argparse.Namespace) -> int:
    """Put lm-eval's tasks to the model, and write their results beside those of Weft's tasks."""
    from weft.core.files import json_line
    from weft.tasks.results import write_results

    evaluation_harness.check(arguments)
    arguments.tasks = evaluation_harness.names(arguments.tasks)
    tasks = evaluation_harness.manager(arguments)
    templated, arguments.apply_chat_template = arguments.apply_chat_template, False
    subject = subject_of(arguments)  # whose prompts are texts: lm-eval applies the template
    arguments.apply_chat_template = templated
    template = subject.template() if templated else ""
    subject = replace(subject, identity=subject.identity | {"chat_template": template})
    settings = _settings(arguments, subject) | {"harness": version("lm-eval")}
    store = _store(arguments, subject, settings)
    results = evaluation_harness.evaluate(arguments, subject, tasks, store.folder)
    data = results | {"config": {"model": "weft", "model_args": subject.name} | settings}
    file = write_results(store.folder, data | {"weft_version": version("weft")})
    if arguments.json:
        print(json_line(data))
        return 0
    print("\n".join(evaluation_harness.lines(results)))
    print(file)
    return 0


@contextmanager
def _keeping(subject: Subject, store: Store) -> Iterator[None]:
    """Keep the replies of an endpoint until all tasks are done, and say what they cost, also where it fails."""
    from weft.tasks.endpoint_model import EndpointModel
    from weft.tasks.store import REPLIES

    if not isinstance(subject.model, EndpointModel):
        yield
        return
    file = store.folder / REPLIES
    subject.model.keep_in(file)
    try:
        yield
    finally:
        print(evaluation_endpoint.cost(subject.model), file=sys.stderr)
    file.unlink(missing_ok=True)  # the records hold them all


def _check(arguments: argparse.Namespace) -> None:
    for name, least in (("limit", 1), ("num_fewshot", 0), ("max_new_tokens", 1), ("batch_size", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name} is {value}: write {least} or more.")
    if arguments.limit_seed is not None and arguments.limit is None:
        raise ConfigError("--limit_seed draws the rows of --limit, which is not given: write --limit 100, or leave it.")
    evaluation_endpoint.check(arguments)
    if arguments.endpoint is not None:
        extra = [name for name in (*MODEL_KEYS, "batch_size", *OF_RUNS) if getattr(arguments, name)]
        if extra:
            raise ConfigError(f"The model is behind {arguments.endpoint}: leave --{extra[0]} out.")
        return
    check_subject(arguments)


class Asked(NamedTuple):
    """What is asked of a task."""

    items: list[Item]
    rows: int
    """Rows that the task has."""
    shots: int


def _rows(task: EvalTask, folders: list[Path], arguments: argparse.Namespace) -> Asked:
    from weft.tasks.rows import items_of, rows_of

    shots = arguments.num_fewshot if task.shots is not None else 0
    if arguments.num_fewshot and task.shots is None:
        print(f"weft: the task '{task.name}' has no worked examples; it is asked without.", file=sys.stderr)
    rows = rows_of(task, folders, shots)
    items = items_of(task, rows, shots, arguments.limit, arguments.system_instruction, arguments.limit_seed)
    return Asked(items, len(rows.asked), shots)


def _settings(arguments: argparse.Namespace, subject: Subject) -> dict[str, object]:
    names = ("num_fewshot", "apply_chat_template", "system_instruction", "max_new_tokens", "seed")
    return {name: getattr(arguments, name) for name in names} | {"model": subject.identity}


def _store(arguments: argparse.Namespace, subject: Subject, settings: dict[str, object]) -> Store:
    from weft.tasks.store import Store

    folder = Path(arguments.output_dir) if arguments.output_dir else subject.folder
    return Store(folder, settings, overwrite=arguments.overwrite)


def _evaluated(
    task: EvalTask,
    asked: Asked,
    subject: Subject,
    store: Store,
    arguments: argparse.Namespace,
    helpers: Helpers,
) -> Result:
    from weft.tasks.requests import Writing
    from weft.tasks.runner import put, result_of

    code = task.scorer.needs == "code"

    def prepare(request: Writing) -> Writing:
        # In a chat a program stands in a block of its own, and what would end a continuation may be part of it.
        request = replace(request, until=()) if code and arguments.apply_chat_template else request
        return request if arguments.max_new_tokens is None else replace(request, max_tokens=arguments.max_new_tokens)

    say = None if arguments.quiet else progress()
    finish = helpers.finish(task, store.folder)
    model = subject.reference if task.kind == "preference" and subject.reference is not None else subject.model
    records = put(task, asked.items, model, store, seed=arguments.seed, say=say, finish=finish, prepare=prepare)
    return result_of(task, records, asked.rows, asked.shots)
