"""`weft evaluate --harness lm_eval`: tasks of lm-eval, put to Weft's model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.errors import ConfigError, DataError, MissingExtra, WeftError

if TYPE_CHECKING:
    from weft.json_types import JsonObject
    from weft.launch.subject import Subject

FOLDER = "harness"
"""Of an evaluation: lm-eval's samples, a file for each task."""
NOT_WITH = (
    *("task_data", "reference", "endpoint", "limit_seed"),
    *("code_sandbox", "allow_code_execution", "judge_endpoint", "judge_model", "against"),
)
"""Flags of Weft's own tasks."""
BOOTSTRAPS = 1000
"""Samples for the standard errors that lm-eval has no formula for."""
PARTS = ("results", "group_subtasks", "configs", "n-shot", "higher_is_better", "n-samples")


def check(arguments: argparse.Namespace) -> None:
    """Refuse flags that do not go with lm-eval's tasks."""
    extra = [name for name in NOT_WITH if getattr(arguments, name) not in (None, "", [])]
    if extra:
        raise ConfigError(f"--{extra[0]} is of Weft's own tasks: leave it out with --harness lm_eval.")


def manager(arguments: argparse.Namespace) -> Any:
    """Return lm-eval's list of tasks, after a look at those that are named and at their data.

    Raises:
        MissingExtra: lm-eval is not installed.
        ConfigError: it has no such task.
        DataError: a task cannot be loaded, such as without its data.
    """
    from weft.registry import nearest

    try:
        import lm_eval.tasks  # type: ignore[import-untyped, unused-ignore]  # noqa: F401
    except ImportError:
        raise MissingExtra("lm-eval", "harness", "--harness lm_eval") from None
    for name in arguments.include_path:
        if not Path(name).expanduser().is_dir():
            raise ConfigError(f"There is no folder of tasks '{name}': check the path after --include_path.")
    folders = [str(Path(name).expanduser()) for name in arguments.include_path]
    try:
        tasks = _listed(folders, arguments.tasks)
    except Exception as error:  # a broken file in a folder: every kind of error comes out of this library
        raise ConfigError(f"lm-eval cannot read the tasks of {', '.join(folders)}: {_line(error)}.") from None
    for name in arguments.tasks:
        if name not in tasks.all_tasks:
            guess = nearest(name, list(tasks.all_tasks))
            hint = f" Did you mean '{guess}'?" if guess else ""
            raise ConfigError(f"lm-eval has no task named '{name}'.{hint} --include_path FOLDER adds yours.")
        try:
            tasks.load([name])
        except Exception as error:
            raise DataError(
                f"lm-eval cannot load the task '{name}' ({_line(error)}): check its file, the network, and that its "
                "data is there."
            ) from None
    return tasks


def _listed(folders: list[str], names: list[str]) -> Any:
    """Return lm-eval's list of tasks: that of the given folders alone, where they have all that is named.

    They go before lm-eval's own, whose files take ten CPU seconds to read. A group may have members of either.
    """
    from lm_eval.tasks import TaskManager

    if folders:
        given = TaskManager(include_path=list(folders), include_defaults=False)
        if set(names) <= set(given.all_subtasks):
            return given
    return TaskManager(include_path=list(folders) or None)


def evaluate(arguments: argparse.Namespace, subject: Subject, tasks: Any, folder: Path) -> JsonObject:
    """Put the tasks to the model, one after the other, and return lm-eval's results of all; samples are written.

    Raises:
        RunError: lm-eval fails in a task.
    """
    import lm_eval
    from lm_eval import evaluator as theirs

    from weft.core.files import json_line, write_atomic
    from weft.errors import RunError
    from weft.tasks.lm_eval_model import HarnessModel
    from weft.tasks.local_model import LocalModel

    assert isinstance(subject.model, LocalModel)
    longest = f"max_gen_toks={arguments.max_new_tokens}" if arguments.max_new_tokens else None
    model = HarnessModel(subject.model, arguments.seed)
    merged: JsonObject = {part: {} for part in PARTS}
    # It asks git for the commit of whatever folder this is, and git complains where there is none.
    theirs.get_git_commit_hash = lambda: None
    for name in arguments.tasks:
        try:
            results = lm_eval.simple_evaluate(
                model=model,
                tasks=[name],
                num_fewshot=arguments.num_fewshot,
                limit=arguments.limit,
                apply_chat_template=arguments.apply_chat_template,
                fewshot_as_multiturn=arguments.apply_chat_template,
                system_instruction=arguments.system_instruction or None,
                gen_kwargs=longest,
                task_manager=tasks,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=True,
                **dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed"), arguments.seed),
                fewshot_random_seed=arguments.seed,
            )
        except WeftError:
            raise
        except Exception as error:
            raise RunError(f"lm-eval fails in the task '{name}' ({_line(error)}): check its file and data.") from error
        plain = json.loads(json.dumps(results, default=str))
        for part in PARTS:
            merged[part] |= plain.get(part) or {}
        (folder / FOLDER).mkdir(exist_ok=True)
        for own, samples in plain.get("samples", {}).items():
            lines = "".join(json_line(sample) + "\n" for sample in samples)
            write_atomic(folder / FOLDER / f"{own}.jsonl", lines.encode())
    return merged


def lines(results: JsonObject) -> list[str]:
    """Return a table for people."""
    from weft.runs.text import columns

    rows = [["task", "metric", "score", "standard error", "n"]]
    for name, scores in results["results"].items():
        count = results["n-samples"].get(name, {}).get("effective", "")
        for key, value in scores.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or isinstance(value, str):
                continue
            error = scores.get(f"{metric}_stderr,{filtered}")
            label = metric if filtered == "none" else f"{metric} ({filtered})"
            rows.append([name, label, _number(value), _number(error), str(count)])
    return columns(rows, range(len(rows[0])))


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else "" if value is None else str(value)


def _line(error: Exception) -> str:
    from weft.data.sets import first_line

    return first_line(error).rstrip(".")


def names(words: Sequence[str]) -> list[str]:
    """Return the names of tasks, which may be separated by commas."""
    return list(dict.fromkeys(part.strip() for text in words for part in text.split(",") if part.strip()))
