"""`weft tasks`: list the evaluation tasks, and get their data from the hub."""

from __future__ import annotations

from pathlib import Path

from weft.arguments import Parser
from weft.errors import ConfigError
from weft.json_types import JsonObject


def run(argv: list[str]) -> int:
    """List tasks, or get the data of one."""
    parser = Parser(
        prog="weft tasks",
        description="List the evaluation tasks: metric, data, licence and source.",
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="tasks or suites [all]")
    parser.add_argument("--task_data", nargs="+", default=[], metavar="DIR", help="folders with the tasks' data")
    parser.add_argument("--include_path", nargs="+", default=[], metavar="DIR", help="folders with tasks of your own")
    parser.add_argument("--get", metavar="NAME", help="get the data of a task from the hub into the first --task_data")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse(argv)
    from weft.core.files import json_line
    from weft.tasks.catalogue import select
    from weft.tasks.rows import folders_of, missing

    if arguments.get is not None:
        if not arguments.task_data:
            raise ConfigError("--get needs a folder to write to: add --task_data FOLDER.")
        for file in get(arguments.get, Path(arguments.task_data[0]).expanduser(), arguments.include_path):
            print(file)
        return 0
    folders = folders_of(arguments.task_data)
    lines: list[JsonObject] = [
        {
            "name": task.name,
            "title": task.title,
            "suites": task.suites,
            "scorer": task.kind,
            "metric": task.metric,
            "source": task.source,
            "license": task.license,
            "data": missing(task, folders),
        }
        for task in select(arguments.names or ["all"], arguments.include_path)
    ]
    if arguments.json:
        print(json_line(lines, indent=1))
        return 0
    for line in lines:
        suites, data = ", ".join(line["suites"]) or "no suite", line["data"] or "at hand"
        print(f"{line['name']}: {line['title']}\n  {suites}; {line['metric']}; {line['license']}; {line['source']}")
        print(f"  data: {data}")
    return 0


def get(name: str, folder: Path, include: list[str]) -> list[Path]:
    """Write the data of a task, and of its worked examples, from the hub into a folder; return the files.

    Raises:
        ConfigError: the task's data is not on the hub.
        DataError: it cannot be loaded.
    """
    from weft.core.files import json_line, write_atomic
    from weft.tasks.catalogue import select
    from weft.tasks.rows import from_hub, missing

    (task,) = select([name], include)[:1]
    places = {task.data.file: task.data.hub}
    if task.shots is not None and task.shots.file:
        places[task.shots.file] = task.shots.hub
    if not all(places.values()):
        raise ConfigError(f"The data of '{name}' is not on the hub: {missing(task, [])}.")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for file, place in places.items():
        rows = from_hub(place)
        lines = (json_line(row, default=str) + "\n" for row in rows)
        write_atomic(folder / f"{file}.jsonl", "".join(lines).encode())
        files.append(folder / f"{file}.jsonl")
    return files
