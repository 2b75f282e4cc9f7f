"""Common code of the training verbs: arguments, configuration, training, exit codes."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from weft.arguments import Once, Parser, add_config_flags
from weft.config import Resolved, RunConfig, gather, read_file, settle
from weft.errors import ConfigError
from weft.json_types import JsonObject

if TYPE_CHECKING:
    from weft.runs.layout import RunDir

Defaults = Callable[[JsonObject], JsonObject]


def parser(verb: str, description: str, *, trains: bool = True) -> Parser:
    """Return the parser of a verb, with a flag for every key of a run; `trains`: with the flags of a training too."""
    result = Parser(
        prog=f"weft {verb}",
        usage=f"weft {verb} [RUN.yaml] [--KEY VALUE ...]",
        description=description,
        allow_abbrev=False,
    )
    add_file(result)
    if trains:
        _add_run_flags(result)
    add_config_flags(result, verb)
    return result


def _add_run_flags(parser: Parser) -> None:
    parser.add_argument("--resume", action="store_true", help="resume the run in --output_dir")
    parser.add_argument("--overwrite", action="store_true", help="delete an existing run in --output_dir first")
    parser.add_argument(
        "--dry_run", action="store_true", help="print the plan and the keys that differ from defaults, without training"
    )
    parser.add_argument("--all_keys", action="store_true", help="with --dry_run: print every key of the run")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.add_argument("--json", action="store_true", help="print progress as one JSON object per line")


def add_file(parser: Parser) -> None:
    """Add the run file, as an argument or by --config."""
    parser.add_argument("file", nargs="?", metavar="RUN.yaml", help="a run file; flags override its keys")
    parser.add_argument("--config", metavar="FILE", action=Once, help="the run file, as a flag")


def file_and_flags(arguments: argparse.Namespace) -> tuple[JsonObject, JsonObject]:
    """Return the keys of the run file, and those of the flags; `--KEY null` unsets a key of the file.

    Raises:
        ConfigError: two run files, or one that was parsed as the value of a flag.
    """
    values = {key: value for key, value in vars(arguments).items() if key in RunConfig.model_fields}
    flags = {key: None if value in ("null", ["null"]) else value for key, value in values.items()}
    for key, value in flags.items():
        # argparse gives a list-valued flag every word after it, a run file too.
        last = value[-1] if isinstance(value, list) and value else value
        if not arguments.file and not arguments.config and str(last).endswith((".yaml", ".yml")):
            raise ConfigError(f"--{key} takes '{last}' for its value: write the run file first, before all flags.")
    if arguments.file and arguments.config:
        raise ConfigError(
            f"Two run files are given, '{arguments.file}' and '{arguments.config}': leave one of them out."
        )
    file = arguments.file or arguments.config
    return read_file(file) if file else {}, flags


def print_notices(*sentences: str | None) -> None:
    """Print notices about the settings on standard error."""
    for sentence in filter(None, sentences):
        print(f"weft: {sentence}", file=sys.stderr)


def saved_keys(keys: JsonObject) -> JsonObject:
    """Return the keys of the run in `output_dir`, none of which counts as set; raise ConfigError if there is no run."""
    from weft.runs.layout import RunDir

    run = RunDir(keys.get("output_dir", RunConfig.model_fields["output_dir"].default))
    return Resolved(run.read_config() | {"output_dir": str(run.path)})


def check_adapter(config: RunConfig, explicit_keys: Collection[str]) -> None:
    """Refuse LoRA keys that contradict the adapter from which the run starts."""
    start = Path(config.model_name_or_path).expanduser()
    if config.from_scratch or not any((start / name).exists() for name in ("adapter_config.json", "adapter")):
        return
    from weft.models.starting import from_adapter

    adapter_config = from_adapter(config)
    for key in ("peft_lora_r", "peft_lora_alpha", "use_rslora", "use_dora"):
        if key in explicit_keys and getattr(adapter_config, key) != getattr(config, key):
            raise ConfigError(
                f"{key} is {getattr(config, key)}, and the run goes on with the adapter in '{start}', whose {key} is "
                f"{getattr(adapter_config, key)}: leave --{key} out, or merge the adapter first with `weft export`."
            )


def settings(arguments: argparse.Namespace, defaults: Defaults) -> tuple[RunConfig, list[str]]:
    """Return the configuration, and notices to print once it is accepted."""
    values, flags = file_and_flags(arguments)
    if arguments.all_keys and not arguments.dry_run:
        raise ConfigError("--all_keys is about what --dry_run prints: add --dry_run, or leave --all_keys out.")
    if arguments.resume and not values:
        values = saved_keys(flags)
    merged, explicit_keys = gather(values, flags)
    config, notice = settle(merged, explicit_keys, defaults, command=not values)
    check_adapter(config, explicit_keys)
    return config, [notice] if notice else []


def train_verb(verb: str, description: str, argv: list[str], defaults: Defaults = lambda values: {}) -> int:
    """Train, or with --dry_run describe the run; return the exit code.

    Args:
        verb: its name.
        description: for the help.
        argv: the arguments after the verb.
        defaults: returns the verb's defaults, given the keys that are set.
    """
    arguments = parser(verb, description).parse(argv)
    config, notices = settings(arguments, defaults)
    if arguments.dry_run:
        from weft.launch.dry_run import describe

        print(describe(config, all_keys=arguments.all_keys))
        print_notices(*notices)
        return 0
    from weft.launch.libraries import uncollected
    from weft.runs.layout import RunDir

    former = _start_of(RunDir(config.output_dir))
    try:
        with uncollected() as imported:
            from weft.launch.train import train

            run = train(
                config,
                resume=arguments.resume,
                overwrite=arguments.overwrite,
                quiet=arguments.quiet,
                as_json=arguments.json,
                notes=notices,
                imported=imported,
            )
    except KeyboardInterrupt:
        now = _start_of(RunDir(config.output_dir))
        if now is None or (arguments.overwrite and now == former):
            left = "nothing is left" if now is None else "the former run is kept"
            print(f"weft: interrupted before a round was done; {left} in '{config.output_dir}'.", file=sys.stderr)
            return 130
        command = f"weft {verb} --output_dir {shlex.quote(config.output_dir)} --resume"
        print(f"weft: interrupted; the finished rounds are kept. Go on with: {command}", file=sys.stderr)
        return 130
    if not arguments.json and os.environ.get("RANK", "0") == "0":  # only one of torchrun's processes prints
        print(run.path)
    return 0


def _start_of(run: RunDir) -> tuple[int, int] | None:
    """Return what tells one run from another that began in the same directory; None: there is none."""
    if not run.holds_run:
        return None
    status = run.config_file.stat()
    return status.st_ino, status.st_mtime_ns
