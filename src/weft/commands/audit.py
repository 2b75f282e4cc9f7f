"""`weft audit RUN`: what a finished model remembers of its rows, and what updates give away."""

from __future__ import annotations

import sys

from weft import registry
from weft.arguments import Parser
from weft.errors import ConfigError
from weft.json_types import JsonObject

MOST_CANDIDATES = 100_000
"""Of a million numbers that there are."""


def _parser() -> Parser:
    parser = Parser(
        prog="weft audit",
        description="Ask a run what its model remembers of the training rows, and what its updates give away.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--tests", nargs="+", metavar="NAME", help=f"audits: {', '.join(registry.AUDITS)}")
    parser.add_argument("--all", action="store_true", help="all audits that this run allows; the others are named")
    parser.add_argument("--limit", type=int, default=200, metavar="N", help="most rows of each kind [200]")
    parser.add_argument(
        "--candidates", type=int, default=255, metavar="N", help="numbers that a canary's own is ranked among [255]"
    )
    parser.add_argument(
        "--shadows", type=int, default=4, metavar="N", help="models that membership trains for LiRA; 0: none [4]"
    )
    parser.add_argument(
        "--small", action="store_true", help="a first look: a twentieth of the iterations and steps, which find less"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is guessed and sampled [0]")
    parser.add_argument("--batch_size", type=int, default=16, metavar="N", help="rows at a time [16]")
    parser.add_argument("--client", metavar="NAME", help="whose model, where each client has its own")
    parser.add_argument("--round", type=int, metavar="N", help="after which round [the newest]")
    parser.add_argument("--accept_changed", action="store_true", help="audit it although its base changed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    return parser


def run(argv: list[str]) -> int:
    """Put audits to a run, print what they found, and write it into the run."""
    arguments = _parser().parse(argv)
    if arguments.tests and arguments.all:
        raise ConfigError("--all and --tests are both given, and --all means every audit: leave out one of them.")
    if not arguments.tests and not arguments.all:
        raise ConfigError(
            f"Which audits are meant is not said: write --all, or --tests and some of {', '.join(registry.AUDITS)}."
        )
    for name, least in (("limit", 2), ("candidates", 15), ("batch_size", 1)):
        if getattr(arguments, name) < least:
            raise ConfigError(f"--{name} is {getattr(arguments, name)}: write {least} or more.")
    if arguments.candidates > MOST_CANDIDATES:
        raise ConfigError(
            f"--candidates is {arguments.candidates}, and a canary's number has six digits: write {MOST_CANDIDATES} "
            "or fewer."
        )
    if arguments.shadows < 0 or arguments.shadows % 2:
        raise ConfigError(
            f"--shadows is {arguments.shadows}, and shadows come in pairs, each with the rows that the other lacks: "
            "write 0, 2, 4 or more."
        )
    names = list(registry.AUDITS) if arguments.all else list(dict.fromkeys(arguments.tests))
    for name in names:
        registry.require(registry.AUDITS, name, "audit")
    from weft.audits.record import audits_of, put
    from weft.audits.scene import Scene
    from weft.audits.settings import Settings
    from weft.core.files import json_line
    from weft.launch.run import open_to_use
    from weft.pages.report import write_report
    from weft.runs.start import AUDIT

    opened = open_to_use(arguments)
    settings = Settings(
        arguments.seed,
        arguments.limit,
        arguments.candidates,
        arguments.client,
        arguments.batch_size,
        arguments.shadows,
        arguments.small,
    )
    scene = Scene(opened, settings)

    def say(name: str) -> None:
        if not arguments.quiet:
            print(f"weft: audit {name}", file=sys.stderr)

    found = put(scene, audits_of(names), all_of_them=arguments.all, say=say)
    write_report(opened.path)
    if arguments.json:
        print(json_line(found))
    else:
        _print(found, names)
    if not arguments.all and (left := [name for name in names if name in found["left_out"]]):
        raise ConfigError(f"No number is there for {', '.join(left)}: left_out in '{opened.path / AUDIT}' says why.")
    return 0


def _print(found: JsonObject, names: list[str]) -> None:
    """Print a table for each audit, with what it means, and why others were left out."""
    from weft.commands.tables import print_table

    for name, audit in found["audits"].items():
        if name not in names:
            continue
        print_table(f"{audit['title']} ({name})", audit["heads"], audit["rows"], left=(0,))
        for sentence in (audit["means"], f"What changes it: {audit['defence']}", *audit["notes"]):
            print(f"  {sentence}")
        print()
    for name, reason in found["left_out"].items():
        if name in names:
            print(f"{name} was left out. {reason}")
