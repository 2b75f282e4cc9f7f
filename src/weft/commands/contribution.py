"""`weft contribution RUN`: what each client added to a finished run, by its rounds once more."""

from __future__ import annotations

import json
import sys

from weft.arguments import Parser
from weft.json_types import JsonObject

MEANS = (
    "Leave-one-out: nats a token by which the loss on held-out rows would be higher after the rounds without the "
    "client, each round from its own state. Gradient: the same to first order, whose sum is what the steps gain. "
    "A value is of this run and these rows; it tells something of the client's rows to whoever reads it."
)


def run(argv: list[str]) -> int:
    """Measure, print a table, and write contribution.json and the report."""
    parser = Parser(
        prog="weft contribution",
        description="Repeat the rounds of a run, and measure each with and without one client: what each client added.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--accept_changed", action="store_true", help="measure although its base or rows changed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    arguments = parser.parse(argv)
    from weft.core.files import write_atomic
    from weft.launch.contribution import contributions
    from weft.launch.run import Run
    from weft.pages.report import write_report
    from weft.runs.start import CONTRIBUTION

    def say(done: int, of: int) -> None:
        if not arguments.quiet:
            print(f"weft: round {done} of {of}", file=sys.stderr)

    opened = Run(arguments.run, accept_changed=arguments.accept_changed)
    found = contributions(opened, say)
    write_atomic(opened.path / CONTRIBUTION, (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    write_report(opened.path)
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    _print(found)
    return 0


def _print(found: JsonObject) -> None:
    from weft.commands.tables import print_table
    from weft.runs.contribution import HEADS, cells

    title = f"Contribution over {found['rounds']} rounds, on {found['rows']} held-out rows"
    print_table(title, HEADS["groups" if "groups" in found else "clients"], cells(found), note=MEANS, left=(0,))
    if not found["same_bits"]:
        print("The rounds did not give the bits of the run, so the values are of rounds that are like its own.")
