"""`weft forget RUN`: the run once more, without a client or without some rows, bit for bit as if it never had them."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from weft.arguments import Parser
from weft.errors import ConfigError
from weft.json_types import JsonObject


def run(argv: list[str]) -> int:
    """Say what forgetting costs, and forget."""
    arguments = _arguments(argv)
    from weft.launch.forget import plan_forgetting
    from weft.launch.run import Run

    opened = Run(arguments.run)
    out = Path(arguments.output_dir or f"{str(opened.path).rstrip('/')}-forgotten").absolute()
    if out.exists() and any(out.iterdir()):
        if not arguments.dry_run:
            raise ConfigError(f"'{out}' is there already: give another --output_dir.")
        print(f"weft: '{out}' is there already: to forget, give another --output_dir.", file=sys.stderr)
    rows = Path(arguments.rows) if arguments.rows else None
    forgetting = plan_forgetting(opened, tuple(arguments.client), rows, out)
    if rows is not None and forgetting.missing:
        print(f"weft: {_not_found(rows, forgetting.missing)}", file=sys.stderr)
    print(f"weft: {forgetting.cost(arguments.method)}", file=sys.stderr)
    if arguments.dry_run:
        return 0
    if not arguments.yes and arguments.method == "exact":
        if not sys.stdin.isatty():
            raise ConfigError("Nobody is there to be asked whether to begin: add --yes, or --dry_run.")
        if input("Begin? [y/N] ").strip().lower() not in ("y", "yes"):
            return 0
    from weft.config import build
    from weft.launch.train import train

    if arguments.method != "exact":
        from weft.launch.forget_cheap import forget_cheaply

        exact = Run(arguments.exact) if arguments.exact else None
        forgetting = forget_cheaply(forgetting, arguments.method, exact)
        _print(forgetting.scores)
    forgetting.write()
    config = build({name: value for name, value in forgetting.keys.items() if value is not None})
    try:
        train(config, resume=True, quiet=arguments.quiet)
    except KeyboardInterrupt:
        command = f"weft sft --output_dir {shlex.quote(str(out))} --resume"
        print(f"weft: interrupted; the finished rounds are kept. Go on with: {command}", file=sys.stderr)
        return 130
    print(out)
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    """Return the arguments; ConfigError for some that exclude each other."""
    parser = Parser(
        prog="weft forget",
        usage="weft forget RUN (--client NAME ... | --rows FILE) [--output_dir DIR] [--yes | --dry_run]",
        description="Make a run anew without a client or without some rows: back to the last state that had not seen "
        "them, and on from there. The result equals a run that never had them.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--client", nargs="+", default=[], metavar="NAME", help="clients to forget")
    parser.add_argument(
        "--rows", metavar="FILE", help="rows to forget, as they stand in the data (.jsonl, .json, .csv)"
    )
    parser.add_argument(
        "--method", choices=["exact", "update", "ascent"], default="exact", help="exact, or a cheaper one [exact]"
    )
    parser.add_argument("--exact", metavar="DIR", help="the exact run, by which a cheaper method is scored")
    parser.add_argument("--output_dir", metavar="DIR", help="of the new run [RUN-forgotten]")
    parser.add_argument("--yes", action="store_true", help="do not ask before the rounds are computed")
    parser.add_argument("--dry_run", action="store_true", help="say what it costs, and do nothing")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    arguments = parser.parse(argv)
    if bool(arguments.client) == bool(arguments.rows):
        raise ConfigError("Nothing to forget is named, or two kinds: write --client NAME, or --rows FILE.")
    if arguments.method != "exact" and arguments.rows:
        raise ConfigError(f"--method {arguments.method} forgets whole clients: write --client NAME, or --method exact.")
    if arguments.method == "exact" and arguments.exact:
        raise ConfigError("--exact is what a cheaper method is scored by: add --method update or ascent.")
    return arguments


def _not_found(rows: Path, missing: tuple[int, ...]) -> str:
    """Return a sentence that names rows by their places, and says nothing of what is in them."""
    places = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
    are = f"Row {places} of '{rows}' is" if len(missing) == 1 else f"{len(missing)} rows of '{rows}' ({places}) are"
    return f"{are} not among the rows of the run, as they stand there: check the columns and the spelling."


def _print(scores: JsonObject) -> None:
    """Print the scores of the models as a table."""
    from weft.commands.tables import print_table

    rows = [
        [
            name,
            f"{one['loss']:.4f}",
            f"{one['membership']:.3f}",
            "more than 20" if one["relearning"] is None else str(one["relearning"]),
        ]
        for name, one in scores.items()
    ]
    heads = ["model", "loss of the others", "membership (AUC)", "local rounds to relearn"]
    print_table("What is left of the forgotten", heads, rows)
