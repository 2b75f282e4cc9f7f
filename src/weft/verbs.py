"""What the training verbs share: their words, their configuration, and how they end."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from typing import Any

from weft.arguments import Parser, add_config_flags
from weft.config import RunConfig, build, read_file

Defaults = Callable[[dict[str, Any]], dict[str, Any]]
OWN = ("config", "resume", "overwrite", "dry_run", "quiet", "json")


def parser(verb: str, description: str) -> Parser:
    """Return the parser of a verb: its own flags, and one for every key of a run."""
    made = Parser(
        prog=f"weft {verb}",
        usage=f"weft {verb} [--config FILE] [--KEY VALUE ...]",
        description=description,
        allow_abbrev=False,
    )
    made.add_argument("--config", metavar="FILE", help="a run file (YAML); flags override its keys")
    made.add_argument("--resume", action="store_true", help="go on with the run in --output_dir")
    made.add_argument("--overwrite", action="store_true", help="delete the run that is in --output_dir")
    made.add_argument("--dry_run", action="store_true", help="print the resolved run and its plan, and stop")
    made.add_argument("--quiet", action="store_true", help="no progress")
    made.add_argument("--json", action="store_true", help="progress as one JSON object a line")
    add_config_flags(made.add_argument_group("keys of a run"))  # type: ignore[arg-type]
    return made


def resolve(arguments: argparse.Namespace, defaults: Defaults) -> RunConfig:
    """Return the configuration: the run file, or with --resume and without one the saved run, overridden by flags."""
    values: dict[str, Any] = read_file(arguments.config) if arguments.config else {}
    flags = {key: value for key, value in vars(arguments).items() if key not in OWN}
    if arguments.resume and not arguments.config:
        from weft.runs.layout import RunDir

        saved = RunDir(flags.get("output_dir", RunConfig.model_fields["output_dir"].default))
        return build(saved.read_config() | {"output_dir": str(saved.path)} | flags)
    given = values | flags
    return build(defaults(given) | given)


def train_verb(verb: str, description: str, argv: list[str], defaults: Defaults = lambda given: {}) -> int:
    """Train, or describe what would be trained.

    Args:
        verb: as it is written.
        description: what it does, for its help.
        argv: the words behind it.
        defaults: from the keys that are given to the verb's own defaults of others.
    """
    arguments = parser(verb, description).parse(argv)
    config = resolve(arguments, defaults)
    if arguments.dry_run:
        from weft.launch.describe import describe

        print(describe(config))
        return 0
    from weft.launch.train import train

    try:
        finished = train(
            config,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            quiet=arguments.quiet,
            as_json=arguments.json,
        )
    except KeyboardInterrupt:
        from weft.runs.layout import RunDir

        if not RunDir(config.output_dir).holds_run:
            raise
        again = f"weft {verb} --output_dir {shlex.quote(config.output_dir)} --resume"
        print(f"weft: interrupted; the finished rounds are kept. Go on with: {again}", file=sys.stderr)
        return 130
    if not arguments.json and os.environ.get("RANK", "0") == "0":  # of the processes of one client, the first speaks
        print(finished.path)
    return 0
