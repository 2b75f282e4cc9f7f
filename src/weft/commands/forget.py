"""`weft forget RUN`: the run once more, without a client or without some rows, bit for bit as if it never had them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from weft.arguments import Parser
from weft.errors import ConfigError


def run(argv: list[str]) -> int:
    """Say what forgetting costs, and forget."""
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
    parser.add_argument("--output_dir", metavar="DIR", help="of the new run [RUN-forgotten]")
    parser.add_argument("--yes", action="store_true", help="do not ask before the rounds are computed")
    parser.add_argument("--dry_run", action="store_true", help="say what it costs, and do nothing")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    arguments = parser.parse(argv)
    if bool(arguments.client) == bool(arguments.rows):
        raise ConfigError("Nothing to forget is named, or two kinds: write --client NAME, or --rows FILE.")
    from weft.launch.forget import plan_forgetting
    from weft.launch.run import Run

    opened = Run(arguments.run)
    out = Path(arguments.output_dir or f"{str(opened.path).rstrip('/')}-forgotten").absolute()
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"'{out}' is there already: give another --output_dir.")
    rows = Path(arguments.rows) if arguments.rows else None
    forgetting = plan_forgetting(opened, tuple(arguments.client), rows, out)
    print(f"weft: {forgetting.cost()}", file=sys.stderr)
    if arguments.dry_run:
        return 0
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise ConfigError("Nobody is there to be asked whether to begin: add --yes, or --dry_run.")
        if input("Begin? [y/N] ").strip().lower() not in ("y", "yes"):
            return 0
    from weft.config import build
    from weft.launch.train import train

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
