"""`weft sweep STUDY.yaml`: runs over arms, settings and seeds, to one table, one picture and one page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import yaml

from weft.arguments import Parser
from weft.config import canonical, read_file
from weft.errors import ConfigError
from weft.json_types import JsonObject

if TYPE_CHECKING:
    from weft.studies.sweep import Checked, Found


def run(argv: list[str]) -> int:
    """Make what is left of a study, or with --dry_run say what that takes; return the exit code."""
    parser = Parser(
        prog="weft sweep",
        description="Make the runs of a study, those that are not done, and write a table, a picture and a page of "
        "them. The same command goes on with a study that was stopped. docs/studies.md describes the file.",
        allow_abbrev=False,
    )
    parser.add_argument("study", metavar="STUDY.yaml", help="the study file")
    parser.add_argument("--output_dir", metavar="DIR", help="directory of the study, instead of the file's")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="keys of all runs, instead of the base's and the grid's; also the path of a YAML file of keys",
    )
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="these arms only")
    parser.add_argument("--metrics", nargs="+", metavar="METRIC", help="metrics, instead of the file's")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="runs that are made at a time [1]")
    parser.add_argument("--retry", action="store_true", help="try runs again that failed")
    parser.add_argument(
        "--dry_run", action="store_true", help="say how many runs there are, how long they take and what they send"
    )
    arguments = parser.parse(argv)
    if arguments.processes < 1:
        raise ConfigError(f"--processes is {arguments.processes}: write 1 or more.")
    from weft.studies.study import read_study

    study = read_study(
        arguments.study,
        keys=parse_keys(arguments.set),
        arms=arguments.arms,
        metrics=arguments.metrics,
        output_dir=arguments.output_dir,
    )
    from weft.studies.sweep import check, sweep

    checked = check(study)
    if arguments.dry_run:
        _estimate(checked, arguments.processes)
        return 0
    command = shlex.join(["weft", "sweep", *argv])
    try:
        found = sweep(checked, processes=arguments.processes, retry=arguments.retry, note=_note, command=command)
    except KeyboardInterrupt:
        print(f"weft: interrupted; what is done is kept. Go on with: {command}", file=sys.stderr)
        return 130
    _print(found)
    if found.failures:
        _note(f"a run that failed is tried again, or goes on, by `{command} --retry`.")
    return 1 if found.failures or found.unmeasured else 0


def parse_keys(words: Sequence[str]) -> JsonObject:
    """Return the keys of KEY=VALUE words, each value as YAML reads it, over those of files of keys.

    Raises:
        ConfigError: a word is none and no such file, or a key is there twice.
    """
    keys: JsonObject = {}
    files: JsonObject = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals and word.endswith((".yaml", ".yml")):
            files |= canonical(read_file(word))
            continue
        if not equals or not key:
            raise ConfigError(
                f"--set has '{word}': write KEY=VALUE, such as --set num_rounds=20, or a YAML file of keys."
            )
        if key in keys:
            raise ConfigError(f"--set has {key} twice: leave one of them out.")
        try:
            keys[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set has '{word}', whose value is not valid YAML: put quotes around it.") from None
    return files | canonical(keys)


def _note(sentence: str) -> None:
    print(f"weft: {sentence}", file=sys.stderr, flush=True)


def _estimate(checked: Checked, processes: int) -> None:
    from weft.commands.tables import print_table
    from weft.studies.estimate import cells_of_part, parts_of, sum_of
    from weft.studies.ledger import StudyDir
    from weft.studies.sweep import planned_cells

    folder = StudyDir(checked.study.output_dir)
    parts = parts_of(planned_cells(checked), folder.times(), folder.failures())
    heads = ["runs of", "runs", "done", "failed", "time of one", "sent by one"]
    print_table("the study", heads, [cells_of_part(part) for part in parts], sum_of(parts, processes))


def _print(found: Found) -> None:
    """Print the tables, then the folder's page."""
    from weft.commands.tables import print_table
    from weft.studies.words import COST_HEADS, costs_of_row, heads_and_cells, title_of

    for measure in found.measures:
        print_table(title_of(measure), *heads_and_cells(found.rows, measure), left=(0, 4, 5))
    print_table("mean rank over the metrics, and what it took", COST_HEADS, [costs_of_row(row) for row in found.rows])
    for name, why in found.failures.items():
        print(f"failed: {name}: {why}")
    print(found.page)
