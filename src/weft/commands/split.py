"""`weft split`: show how the rows of a run are dealt to clients, without training."""

from __future__ import annotations

import json
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from weft.arguments import Parser, add_config_flags
from weft.config import RunConfig, gather, settle
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.verbs import add_file, file_and_flags

if TYPE_CHECKING:
    from weft.core.libraries import Tokenizer
    from weft.launch.population import Population
    from weft.runs.layout import RunDir

DEALS = frozenset({"split_strategy", "split_alpha", "split_min_rows", "shards_per_client", "num_clients"})
"""Keys of the split; any other key of a run is accepted too, for it may be in the run file."""


def run(argv: list[str]) -> int:
    """Print the split; without --dry_run write it and its picture to --output_dir."""
    parser = Parser(
        prog="weft split",
        usage="weft split [RUN.yaml] [--dry_run] [--KEY VALUE ...]",
        description="Show how rows are shared out over clients; takes the keys of a run and trains nothing.",
        allow_abbrev=False,
    )
    add_file(parser)
    parser.add_argument("--dry_run", action="store_true", help="print, and write no file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_config_flags(parser, "split")
    arguments = parser.parse(argv)
    config, _ = settle(*gather(*file_and_flags(arguments)), exempt=set(RunConfig.model_fields) - DEALS)

    from weft.runs.layout import RunDir
    from weft.runs.progress import split_line

    if not arguments.dry_run and RunDir(config.output_dir).holds_run:
        raise ConfigError(
            f"'{config.output_dir}' holds a run, whose own split is in its split.json: give another --output_dir, or "
            "write no files by --dry_run."
        )
    split = dealt(config)[0].split
    if arguments.json:
        print(json.dumps(split, indent=1))
    else:
        _print(split)
        print(split_line(split))
    if not arguments.dry_run:
        target = RunDir(config.output_dir)
        _write(target, split)
        if not arguments.json:
            print(target.split_picture)
    return 0


def dealt(config: RunConfig) -> tuple[Population, Tokenizer]:
    """Return the clients of a run, without its model, and its tokenizer; print what must be known of the data."""
    from weft.federation.clients import InMemory
    from weft.launch.compose import plan
    from weft.launch.data_warnings import warning_lines
    from weft.launch.population import populate
    from weft.launch.tokenizer import with_tokenizer
    from weft.models.tokenizer import load_tokenizer

    rows = plan(config).objective.rows
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(with_tokenizer(config, Path(folder)))
    population = populate(config, tokenizer, InMemory(), rows=rows, pool=False)
    for line in warning_lines(config, population):
        print(f"weft: {line}", file=sys.stderr)
    return population, tokenizer


def _write(target: RunDir, split: JsonObject) -> None:
    """Write a split and its picture; if that fails, remove what was written."""
    from weft.core.files import missing, remove_empty, write_atomic
    from weft.data.skew import split_text
    from weft.runs.split_picture import draw_split

    picture, new_folders = draw_split(split).encode(), missing(target.path)
    try:
        target.path.mkdir(parents=True, exist_ok=True)
        write_atomic(target.split_file, split_text(split).encode())
        write_atomic(target.split_picture, picture)
    except OSError as error:
        if new_folders:
            with suppress(OSError):
                target.split_file.unlink(missing_ok=True)
        remove_empty(new_folders)
        raise ConfigError(
            f"The split cannot be written to '{target.path}' ({error.strerror}): give another --output_dir, or "
            "leave the files out by --dry_run."
        ) from error


def _print(split: JsonObject) -> None:
    """Print a table of the clients, at most 50."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from weft.core.texts import printable

    clients = split["clients"]
    labels = split.get("labels") or []
    table = Table()
    table.add_column("client")
    for head in ("rows", "tokens (median)", *labels):
        table.add_column(Text(printable(head, 15) + "…" if len(head) > 16 else printable(head)), justify="right")
    entries = list(clients.items())
    for name, entry in entries[:50]:
        counts = [str(count) for count in entry.get("labels") or []]
        table.add_row(Text(printable(name)), str(entry["rows"]), f"{entry['tokens'][1]:.0f}", *counts)
    console = Console()
    console.print(table)
    if len(entries) > 50:
        console.print(f"and {len(entries) - 50} clients more", highlight=False)
