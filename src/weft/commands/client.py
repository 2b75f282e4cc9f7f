"""`weft client start KIT --site site.yaml`: a site of a federation; `weft client check`: what it would lack."""

from __future__ import annotations

from pathlib import Path

from weft.arguments import Parser
from weft.commands import kits
from weft.verbs import print_notices


def run(argv: list[str]) -> int:
    """Ask for a kit or make it, check the site's machine, or run the site until Ctrl-C or SIGTERM."""
    if argv[:1] == ["check"]:
        from weft.commands import check

        return check.client(argv[1:])
    if argv and argv[0] in kits.CLIENT:
        return kits.CLIENT[argv[0]](argv[1:])
    parser = Parser(
        prog="weft client",
        description="A site of a federation.",
        epilog="`weft client check --help`, and the same of request and install, lists their own options.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "what",
        choices=["check", "start", *kits.CLIENT],
        help="; ".join(("check: see what is missing", "start: run the site", *map(kits.HELP.__getitem__, kits.CLIENT))),
    )
    parser.add_argument("kit", metavar="KIT", help="the site's start-up kit")
    parser.add_argument("--site", metavar="FILE", required=True, help="site.yaml: its data, and what it agrees to")
    arguments = parser.parse(argv)
    kits.require_first("client", arguments.what)
    from weft.sites.processes import keep_running

    ready = f"the site runs; its output goes to {arguments.kit}/console.log. Ctrl-C ends it."
    return keep_running(Path(arguments.kit), Path(arguments.site), print_notices, ready)
