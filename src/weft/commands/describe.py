"""`weft describe`: what each client's rows are like, before any training; with --federated as the clients tell it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from weft.arguments import Parser, add_config_flags
from weft.config import RunConfig, gather, settle
from weft.errors import ConfigError, RunError
from weft.json_types import JsonObject
from weft.verbs import add_file, file_and_flags, print_notices

MOST = 50
"""The most clients of a table."""


def run(argv: list[str]) -> int:
    """Print what the rows of each client are like: exactly, or as clients tell it to a server, or of sites."""
    parser = Parser(
        prog="weft describe",
        usage="weft describe [RUN.yaml] [--federated [--kit KIT]] [--KEY VALUE ...]",
        description="Show what each client's rows are like: how many, how long, in which languages, with which labels.",
        allow_abbrev=False,
    )
    add_file(parser)
    parser.add_argument("--federated", action="store_true", help="as clients tell it: no small counts, and noise")
    parser.add_argument("--kit", metavar="DIR", help="with --federated: ask the sites, by this administrator's kit")
    parser.add_argument("--name", help="with --kit: of the run that asks [describe-DATE-TIME]")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config_flags(parser, "describe")
    arguments = parser.parse(argv)
    if arguments.kit is not None and not arguments.federated:
        raise ConfigError("--kit is of sites, which tell what their policies allow: add --federated.")
    if arguments.name is not None and arguments.kit is None:
        raise ConfigError("--name is of a run that asks sites: add --kit, or leave it out.")
    values, flags = file_and_flags(arguments)
    if not arguments.federated and "statistics_noise" in flags:
        raise ConfigError("--statistics_noise is of what clients tell: add --federated, or leave it out.")
    found = _of_sites(arguments, values, flags) if arguments.kit else _of_clients(arguments, values, flags)
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    _print(found)
    return 0


def _of_clients(arguments: argparse.Namespace, values: JsonObject, flags: JsonObject) -> dict[str, JsonObject]:
    """Return the statistics of simulated clients."""
    fixed: JsonObject = {"data_statistics": True}
    config, _ = settle(*gather(values, flags | fixed), exempt=set(RunConfig.model_fields))
    if config.runtime == "nvflare":
        raise ConfigError("A run of sites has its rows there: add --federated --kit kits/admin to ask them.")
    from weft.commands.split import dealt
    from weft.launch.data_statistics import protected, simulated, statistics_of

    population, tokenizer = dealt(config)
    if arguments.federated:
        return simulated(config, population, tokenizer)
    return {name: protected(one) for name, one in statistics_of(population, tokenizer, config).items()}


def _of_sites(arguments: argparse.Namespace, values: JsonObject, flags: JsonObject) -> dict[str, JsonObject]:
    """Ask sites by a run of no rounds; return what they told."""
    from weft.core.texts import printable
    from weft.launch.prompt_texts import with_prompt_texts
    from weft.sites.part_files import to_send
    from weft.sites.run_status import require_result
    from weft.sites.watcher import watch

    fixed: JsonObject = {"data_statistics": True, "num_rounds": 0, "runtime": "nvflare"}
    unset = dict.fromkeys(("personal_steps", "best_metric", "early_stopping_rounds"))
    config, _ = settle(*gather(values, flags | fixed | unset), exempt=set(RunConfig.model_fields))
    name = arguments.name or time.strftime("describe-%Y%m%d-%H%M%S")  # a run that is done keeps its name
    states: list[str] = []

    def hear(status: JsonObject) -> None:
        if (state := printable(str(status.get("state")))) not in states:
            states.append(state)
            print(f"weft: {name}: {state}", file=sys.stderr)

    try:
        last = watch(Path(arguments.kit), to_send(with_prompt_texts(config)), name, hear)
    except KeyboardInterrupt:
        print_notices(f"interrupted; the run '{name}' goes on at the server, and `weft stop {name}` ends it.")
        raise
    require_result(name, last)
    found = last.get("statistics")
    if not isinstance(found, dict) or not found:
        raise RunError("No site tells anything of its rows: its site.yaml must have `statistics: true` below `accept`.")
    return found


def _print(found: Mapping[str, JsonObject]) -> None:
    """Print a table of the clients, and how much they differ."""
    from weft.commands.tables import print_table
    from weft.core.texts import printable
    from weft.launch.data_statistics import differences, notes

    kinds = {"lengths": "tokens of a row", "languages": "languages", "labels": "labels"}
    shown = [kind for kind in kinds if any(kind in one for one in found.values())]
    rows = []
    for name, one in list(found.items())[:MOST]:
        cells = [_words(one[kind]) if kind in one else "not told" for kind in shown]
        rows.append([printable(name), str(one.get("rows", "")), str(one.get("held", "")), *cells])
    heads = ["client", "train", "held out", *(kinds[kind] for kind in shown)]
    print_table("What each client's rows are like", heads, rows, left=(0, *range(3, len(heads))))
    if len(found) > MOST:
        print(f"and {len(found) - MOST} clients more (--json lists them all)")
    for line in (*notes(found), *differences(found)):
        print(line)


def _words(counts: object) -> str:
    """Return counts as text: `en 90, de 12` or `1-32: 40, 33-64: 60`."""
    if isinstance(counts, list):
        return ", ".join(f"{low}-{high}: {count}" for low, high, count in counts) or "too few"
    assert isinstance(counts, dict)
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {count}" for name, count in ordered[:8] if count) or "too few"
