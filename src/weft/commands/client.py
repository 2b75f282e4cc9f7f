"""`weft client start KIT --site site.yaml`: a site of a federation."""

from __future__ import annotations

import sys
from pathlib import Path

from weft.arguments import Parser


def run(argv: list[str]) -> int:
    """Run a site until it is asked to end."""
    parser = Parser(prog="weft client", description="A site of a federation.", allow_abbrev=False)
    parser.add_argument("what", choices=["start"], help="run the site")
    parser.add_argument("kit", metavar="KIT", help="the site's start-up kit")
    parser.add_argument("--site", metavar="FILE", required=True, help="site.yaml: its data, and what it agrees to")
    arguments = parser.parse(argv)
    from weft.sites.processes import command, keep_running

    command(Path(arguments.kit), Path(arguments.site))
    print(f"weft: the site runs; its words go to {arguments.kit}/console.log. Ctrl-C ends it.", file=sys.stderr)
    return keep_running(Path(arguments.kit), Path(arguments.site), lambda said: print(f"weft: {said}", file=sys.stderr))
