"""Finding evaluation tasks: those of Weft, those of a user's folder, and suites of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from weft.errors import ConfigError
from weft.registry import nearest
from weft.tasks.declaration import EvalTask, read_task

LIBRARY = Path(__file__).parent / "library"
SUITES = ("general", "medical", "finance", "code", "math", "safety", "open_ended")
ALL = "all"


@lru_cache(maxsize=8)
def catalogue(include: tuple[str, ...] = ()) -> dict[str, EvalTask]:
    """Return all tasks by name: Weft's, and those of the YAML files in folders, which may stand for Weft's.

    Raises:
        ConfigError: a folder is not there, a file is wrong, or two files of one folder name the same task.
    """
    tasks = _of_folder(LIBRARY)
    for name in include:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"There is no folder of tasks '{name}': check the path after --include_path.")
        tasks |= _of_folder(folder)
    return dict(sorted(tasks.items()))


def _of_folder(folder: Path) -> dict[str, EvalTask]:
    tasks: dict[str, EvalTask] = {}
    places: dict[str, Path] = {}
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        task = read_task(path)
        if task.name in tasks:
            raise ConfigError(
                f"'{path}' and '{places[task.name]}' both name their task '{task.name}': give one of them another name."
            )
        tasks[task.name], places[task.name] = task, path
    return tasks


def select(names: Sequence[str], include: Sequence[str] = ()) -> list[EvalTask]:
    """Return the tasks of names, of suites (`medical`, `all`) and of files, each once, in their order.

    Raises:
        ConfigError: there is no such task, or a file is wrong.
    """
    tasks = catalogue(tuple(include))
    suites = [*SUITES, *sorted({suite for task in tasks.values() for suite in task.suites} - set(SUITES))]
    chosen: dict[str, EvalTask] = {}
    for name in (part.strip() for text in names for part in text.split(",")):
        if not name:
            continue
        if name == ALL or name in suites:
            chosen |= {task.name: task for task in tasks.values() if name == ALL or name in task.suites}
        elif name in tasks:
            chosen[name] = tasks[name]
        elif name.endswith((".yaml", ".yml")):
            task = read_task(Path(name).expanduser())
            chosen[task.name] = task
        else:
            raise _unknown(name, [*tasks, *suites, ALL])
    if not chosen:
        raise ConfigError("No task is named: write --tasks and names, suites or files; `weft tasks` lists them.")
    return list(chosen.values())


def _unknown(name: str, names: list[str]) -> ConfigError:
    guess = nearest(name, names)
    hint = f" Did you mean '{guess}'?" if guess else ""
    return ConfigError(
        f"There is no task or suite named '{name}'.{hint} `weft tasks` lists them; --include_path FOLDER adds yours."
    )
