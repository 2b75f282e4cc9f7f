"""Flags that name a model to be questioned: a run, at a round or of a client, or a model as it is to be loaded."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from weft.errors import ConfigError

if TYPE_CHECKING:
    from weft.arguments import Parser
    from weft.launch.subject import Subject

MODEL_KEYS = ("device", "dtype", "load_in_8bit", "load_in_4bit", "trust_remote_code")
"""Keys of a run by which a model is loaded; a run has its own."""
OF_RUNS = ("client", "round", "accept_changed")


def add_subject_flags(parser: Parser) -> None:
    """Add the flags of a run and of a model."""
    parser.add_argument("--client", metavar="NAME", help="of a run: whose model, where each client has its own")
    parser.add_argument("--round", type=int, metavar="N", help="of a run: after which round [the newest]")
    parser.add_argument("--accept_changed", action="store_true", help="of a run: use it although its base changed")
    parser.add_argument("--device", default=None, help="of a model: cpu, cuda, ... [auto]")
    parser.add_argument("--dtype", default=None, help="of a model: float32, bfloat16, float16 [auto]")
    parser.add_argument("--load_in_8bit", action="store_true", help="of a model: hold its weights in 8 bits")
    parser.add_argument("--load_in_4bit", action="store_true", help="of a model: hold its weights in 4 bits")
    parser.add_argument("--trust_remote_code", action="store_true", help="of a model: run code that comes with it")


def check_subject(arguments: argparse.Namespace) -> None:
    """Refuse flags of a model beside a run, and those of a run beside a model: raise ConfigError."""
    from weft.launch.subject import is_run

    if is_run(arguments.model):
        if extra := [name for name in MODEL_KEYS if getattr(arguments, name)]:
            raise ConfigError(f"A run is loaded as it was trained: leave --{extra[0]} out.")
    elif extra := [name for name in OF_RUNS if getattr(arguments, name)]:
        raise ConfigError(f"'{arguments.model}' is no run's directory: leave --{extra[0]} out, or name a run.")


def subject_of(arguments: argparse.Namespace) -> Subject:
    """Load what the flags name; raises as `weft.launch.subject` does."""
    from weft.launch.subject import is_run, of_model, of_run

    chat, size = arguments.apply_chat_template, arguments.batch_size or 16
    if is_run(arguments.model):
        from weft.launch.run import Run

        opened = Run(arguments.model, round=arguments.round, accept_changed=arguments.accept_changed)
        return of_run(opened, arguments.client, chat=chat, batch_size=size)
    given = {name: getattr(arguments, name) for name in MODEL_KEYS if getattr(arguments, name)}
    return of_model(arguments.model, given, chat=chat, batch_size=size)
