"""`weft privacy RUN`: what a run protects, against whom, and what it has spent."""

from __future__ import annotations

import json
import math

from weft.arguments import Parser
from weft.errors import ConfigError


def run(argv: list[str]) -> int:
    """Print the guarantee of a run, also of one that is under way."""
    parser = Parser(
        prog="weft privacy",
        description="Print the guarantee of differential privacy of a run, as NIST SP 800-226 asks for it.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--delta", type=float, metavar="D", help="the epsilon at another delta")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse(argv)
    if arguments.delta is not None and not (0 < arguments.delta < 1 and math.isfinite(arguments.delta)):
        raise ConfigError(f"delta is {arguments.delta:g}: write a number above 0 and below 1, such as 1e-5.")
    from weft.launch.budgets import statement_of
    from weft.launch.damage import as_written
    from weft.launch.run import Run
    from weft.runs.privacy_words import privacy_lines

    with as_written([arguments.run]):
        opened = Run(arguments.run)
        statement = statement_of(opened.config, opened.path, arguments.delta)
    if arguments.json:
        print(json.dumps(statement, indent=1))
        return 0
    lines = privacy_lines(statement)
    width = max(map(len, lines))
    print("\n".join(f"{label:<{width}}  {text}" for label, text in lines.items()))
    return 0
