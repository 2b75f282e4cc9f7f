"""What the training verbs share: their words, their configuration, and how they end."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from weft.arguments import Once, Parser, add_config_flags
from weft.config import Resolved, RunConfig, gather, read_file, settle
from weft.errors import ConfigError

Defaults = Callable[[dict[str, Any]], dict[str, Any]]


def parser(verb: str, description: str, *, trains: bool = True) -> Parser:
    """Return the parser of a verb: its own flags, where it trains here, and one for every key of a run."""
    made = Parser(
        prog=f"weft {verb}",
        usage=f"weft {verb} [RUN.yaml] [--KEY VALUE ...]",
        description=description,
        allow_abbrev=False,
    )
    add_file(made)
    if trains:
        _add_ways(made)
    add_config_flags(made, verb)
    return made


def _add_ways(made: Parser) -> None:
    made.add_argument("--resume", action="store_true", help="go on with the run in --output_dir")
    made.add_argument("--overwrite", action="store_true", help="delete the run that is in --output_dir")
    made.add_argument("--dry_run", action="store_true", help="print the plan and what differs from defaults, and stop")
    made.add_argument("--all_keys", action="store_true", help="with --dry_run: print every key of the run")
    made.add_argument("--quiet", action="store_true", help="no progress")
    made.add_argument("--json", action="store_true", help="progress as one JSON object a line")


def add_file(made: Parser) -> None:
    """Add the run file, which may also be given by --config."""
    made.add_argument("file", nargs="?", metavar="RUN.yaml", help="a run file; flags override its keys")
    made.add_argument("--config", metavar="FILE", action=Once, help="the same")


def written(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keys of the run file and those of the flags; ConfigError for two files, or one taken for a value.

    `--KEY null` takes back what the file says.
    """
    given = {key: value for key, value in vars(arguments).items() if key in RunConfig.model_fields}
    flags = {key: None if value in ("null", ["null"]) else value for key, value in given.items()}
    for key, value in flags.items():
        last = value[-1] if isinstance(value, list) and value else value
        if not arguments.file and not arguments.config and str(last).endswith((".yaml", ".yml")):
            raise ConfigError(f"--{key} takes '{last}' for its value: write the run file first, before all flags.")
    if arguments.file and arguments.config:
        raise ConfigError(
            f"Two run files are given, '{arguments.file}' and '{arguments.config}': leave one of them out."
        )
    file = arguments.file or arguments.config
    return read_file(file) if file else {}, flags


def say(*sentences: str | None) -> None:
    """Tell the user something about the settings, on standard error."""
    for sentence in filter(None, sentences):
        print(f"weft: {sentence}", file=sys.stderr)


def saved_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the run in `output_dir`, none of which is given now; ConfigError if there is none."""
    from weft.runs.layout import RunDir

    run = RunDir(keys.get("output_dir", RunConfig.model_fields["output_dir"].default))
    return Resolved(run.read_config() | {"output_dir": str(run.path)})


def check_adapter(config: RunConfig, judged: Collection[str]) -> None:
    """Refuse keys of LoRA that were given where the run begins from an adapter of another shape."""
    start = Path(config.model_name_or_path).expanduser()
    if config.from_scratch or not any((start / name).exists() for name in ("adapter_config.json", "adapter")):
        return
    from weft.models.starting import from_adapter

    begun = from_adapter(config)
    for key in ("peft_lora_r", "peft_lora_alpha", "use_rslora", "use_dora"):
        if key in judged and getattr(begun, key) != getattr(config, key):
            raise ConfigError(
                f"{key} is {getattr(config, key)}, and the run goes on with the adapter in '{start}', whose {key} is "
                f"{getattr(begun, key)}: leave --{key} out, or merge the adapter first with `weft export`."
            )


def settings(arguments: argparse.Namespace, defaults: Defaults) -> tuple[RunConfig, list[str]]:
    """Return the configuration, and what is to be said of it when it is not refused any more."""
    values, flags = written(arguments)
    if arguments.all_keys and not arguments.dry_run:
        raise ConfigError("--all_keys is about what --dry_run prints: add --dry_run, or leave --all_keys out.")
    if arguments.resume and not values:
        values = saved_keys(flags)
    given, judged = gather(values, flags)
    config, said = settle(given, judged, defaults, command=not values)
    check_adapter(config, judged)
    return config, [said] if said else []


def train_verb(verb: str, description: str, argv: list[str], defaults: Defaults = lambda given: {}) -> int:
    """Train, or describe what would be trained.

    Args:
        verb: as it is written.
        description: what it does, for its help.
        argv: the words behind it.
        defaults: from the keys that are given to the verb's own defaults of others.
    """
    arguments = parser(verb, description).parse(argv)
    config, said = settings(arguments, defaults)
    if arguments.dry_run:
        from weft.launch.dry_run import describe

        print(describe(config, all_keys=arguments.all_keys))
        say(*said)
        return 0
    from weft.launch.train import train

    try:
        finished = train(
            config,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            quiet=arguments.quiet,
            as_json=arguments.json,
            notes=said,
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
