"""`weft server`: the server of a federation of sites: its kits, its process."""

from __future__ import annotations

import sys
from pathlib import Path

from weft.arguments import Parser
from weft.commands import kits
from weft.errors import ConfigError, RunError
from weft.verbs import print_notices


def run(argv: list[str]) -> int:
    """Make kits, add parties to them or shut them out, check the server's machine, or run the server."""
    if argv[:1] == ["check"]:
        from weft.commands import check

        return check.server(argv[1:])
    if argv and argv[0] in kits.SERVER:
        return kits.SERVER[argv[0]](argv[1:])
    arguments = _parser().parse(argv)
    kits.require_first("server", arguments.what)
    if arguments.what == "start":
        if not arguments.place:
            raise ConfigError("Which server? Write `weft server start kits/server`.")
        return _start(Path(arguments.place))
    from weft.sites.provisioning import add_kit, make_kits

    if arguments.what == "add":
        if not arguments.place or not arguments.site:
            raise ConfigError("Which site, to which kits? Write `weft server add kits hospital_d`.")
        folder = Path(arguments.place)
        print(add_kit(folder, arguments.site, passphrase=kits.passphrase(folder)))
        return 0
    names = [name.strip() for name in arguments.clients.split(",") if name.strip()]
    out = Path(arguments.out)
    secret = kits.new_passphrase(arguments.passphrase)
    make_kits(arguments.host, names, out, arguments.port, passphrase=secret)
    for name in ("server", *names, "admin"):
        print(out / name)
    print(
        f"weft: give each party its own folder over a channel that you trust, keep {out / 'authority'} where nobody "
        f"else can read it, and open port {arguments.port} of {arguments.host} to the sites.",
        file=sys.stderr,
    )
    if not names:
        print_notices(
            "no site has a kit yet: each makes its key with `weft client request`, or name some by `weft server add`."
        )
    if secret is None:
        print_notices(
            f"the authority's root key in {out / 'authority'} is not encrypted, and readable for you only; "
            "--passphrase encrypts one."
        )
    return 0


def _parser() -> Parser:
    """Return the parser of the commands that have none of their own."""
    parser = Parser(
        prog="weft server",
        description="The server of a federation of sites.",
        epilog="`weft server sign --help`, and the same of check, revoke, admin, renew and ckks, lists their options.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "what",
        choices=["init", "add", "check", "start", *kits.SERVER],
        help="; ".join(
            (
                "init: make kits",
                "add: make one more",
                "check: see what is missing",
                "start: run the server",
                *map(kits.HELP.__getitem__, kits.SERVER),
            )
        ),
    )
    parser.add_argument("place", nargs="?", help="add: the folder of the kits; start: the server's kit")
    parser.add_argument("site", nargs="?", help="add: the name of the new site")
    parser.add_argument("--host", default="localhost", help="name or address by which sites reach the server")
    parser.add_argument("--port", type=int, default=8002, help="the one port that it listens to [8002]")
    parser.add_argument("--clients", default="", help="names of the sites: a,b,c")
    parser.add_argument("--out", default="kits", help="folder of the kits [kits]")
    parser.add_argument(
        "--passphrase", action="store_true", help="init: ask for a passphrase that encrypts the root key"
    )
    return parser


def _start(path: Path) -> int:
    """Run the server until Ctrl-C or SIGTERM; RunError if it cannot listen to its port."""
    from weft.sites.check_network import listening_problem
    from weft.sites.kit_files import read_kit
    from weft.sites.processes import keep_running

    kit = read_kit(path, "server")
    why = listening_problem(kit.host, kit.port)
    if why is not None:
        raise RunError(f"The server cannot start: {why}.")
    ready = f"the server runs; its output goes to {path}/console.log. Ctrl-C ends it."
    return keep_running(path, None, print_notices, ready)
