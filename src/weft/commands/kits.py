"""Commands about kits: `weft client request | install`, and `weft server sign | revoke | admin | renew | ckks`."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from weft.arguments import Parser
from weft.errors import ConfigError
from weft.verbs import print_notices

PASSPHRASE = "WEFT_PASSPHRASE"
"""Environment variable with the passphrase of the authority's root key."""


def new_passphrase(asked: bool) -> str | None:
    """Return the passphrase for a new root key, or None for a key that lies open.

    Args:
        asked: whether a passphrase is wanted although the environment has none.
    """
    if PASSPHRASE in os.environ:
        if not os.environ[PASSPHRASE]:
            raise ConfigError(f"{PASSPHRASE} is empty: set it to a passphrase, or unset it.")
        return os.environ[PASSPHRASE]
    if not asked:
        return None
    if not sys.stdin.isatty():
        raise ConfigError(f"There is no terminal to type a passphrase at: set {PASSPHRASE}.")
    first = getpass.getpass("Passphrase for the authority's root key: ")
    if not first or getpass.getpass("Again: ") != first:
        raise ConfigError("The two passphrases differ, or are empty: try again.")
    return first


def passphrase(kits: Path) -> str | None:
    """Return the passphrase of the authority of `kits`, from the environment or a terminal; None if none is needed."""
    from weft.sites.authority import is_sealed

    if not is_sealed(kits / "authority"):
        return None
    if PASSPHRASE in os.environ or not sys.stdin.isatty():
        return os.environ.get(PASSPHRASE)
    return getpass.getpass("Passphrase of the authority's root key: ")


def require_first(verb: str, word: str) -> None:
    """Raise ConfigError for a command with a parser of its own that comes after a flag, where nobody looks for it."""
    if word == "check" or word in HELP:
        raise ConfigError(f"'{word}' comes before all flags: write `weft {verb} {word} ...`.")


def request(argv: list[str]) -> int:
    """Make a key here, and a signing request for the authority."""
    parser = Parser(prog="weft client request", description="Ask for a certificate.", allow_abbrev=False)
    parser.add_argument("--name", required=True, help="of the site, or NAME@PLACE of an administrator")
    parser.add_argument("--out", help="folder of the kit to be [the name]")
    arguments = parser.parse(argv)
    from weft.sites.authority import spoken
    from weft.sites.kit_requests import make_request

    kit = Path(arguments.out or arguments.name)
    file, key = make_request(arguments.name, kit)
    print(file)
    print_notices(
        f"the key stays in {kit}; send {file} to whoever runs the server.",
        f"the fingerprint of the key, to compare by telephone: {spoken(key)}",
        f"then: weft client install ANSWER --kit {kit}",
    )
    return 0


def install(argv: list[str]) -> int:
    """Make a kit from the authority's answer and the key that is here."""
    parser = Parser(prog="weft client install", description="Make the kit from an answer.", allow_abbrev=False)
    parser.add_argument("answer", metavar="ANSWER", help="the file that `weft server sign` wrote")
    parser.add_argument("--kit", required=True, help="the folder that `weft client request` made")
    arguments = parser.parse(argv)
    from weft.sites.authority import spoken
    from weft.sites.kit_requests import install as make

    kit = Path(arguments.kit)
    _, root = make(Path(arguments.answer), kit)
    print(kit)
    print_notices(f"the fingerprint of the authority, to compare by telephone: {spoken(root)}")
    return 0


def sign(argv: list[str]) -> int:
    """Sign a request."""
    parser = Parser(prog="weft server sign", description="Answer a request for a certificate.", allow_abbrev=False)
    parser.add_argument("kits", metavar="KITS", help="the folder of the kits")
    parser.add_argument("request", metavar="REQUEST", help="the file that `weft client request` wrote")
    parser.add_argument("--out", help="file of the answer [NAME.answer.json beside the request]")
    parser.add_argument("--admin", action="store_true", help="the request may be an administrator's")
    arguments = parser.parse(argv)
    from weft.sites.authority import DAYS, spoken
    from weft.sites.kit_requests import sign as answer
    from weft.sites.provisioning import open_kits

    kits, out = Path(arguments.kits), Path(arguments.out) if arguments.out else None
    authority = open_kits(kits, passphrase(kits))
    signed = answer(kits, Path(arguments.request), authority, out, admin=arguments.admin)
    print(signed.answer)
    print_notices(
        f"send {signed.answer} to '{signed.name}'; it is no secret, and valid for {DAYS} days.",
        f"compare by telephone the fingerprint of their key: {spoken(signed.key)}",
        f"and that of the authority: {spoken(signed.root)}",
    )
    return 0


def revoke(argv: list[str]) -> int:
    """Shut a site or an administrator out."""
    parser = Parser(prog="weft server revoke", description="Shut a site or administrator out.", allow_abbrev=False)
    parser.add_argument("kits", metavar="KITS", help="the folder of the kits")
    parser.add_argument("name", metavar="NAME", help="the site, or the administrator")
    arguments = parser.parse(argv)
    from weft.sites.revocation import revoke as shut_out

    copy, is_here = shut_out(Path(arguments.kits), arguments.name)
    if not is_here:
        print(copy)
        print_notices(f"copy {copy} into local/ of the server's kit: from then on '{arguments.name}' is refused.")
        return 0
    print_notices(
        f"the server that runs from {Path(arguments.kits) / 'server'} refuses '{arguments.name}' from now on; if the "
        f"server runs from a copy of this folder, perhaps on another machine, copy {copy} into local/ of that copy."
    )
    return 0


def admin(argv: list[str]) -> int:
    """Make the kit of one more administrator."""
    parser = Parser(prog="weft server admin", description="Make an administrator's kit.", allow_abbrev=False)
    parser.add_argument("kits", metavar="KITS", help="the folder of the kits")
    parser.add_argument("name", metavar="NAME@PLACE", help="the administrator, as the audit log names them")
    arguments = parser.parse(argv)
    from weft.sites.provisioning import add_kit

    kits = Path(arguments.kits)
    if "@" not in arguments.name:
        raise ConfigError(f"An administrator is called NAME@PLACE, not '{arguments.name}'; sites: `weft server add`.")
    print(add_kit(kits, arguments.name, passphrase=passphrase(kits)))
    return 0


def renew(argv: list[str]) -> int:
    """Sign new certificates for the kits that are here."""
    parser = Parser(prog="weft server renew", description="Renew the certificates of kits.", allow_abbrev=False)
    parser.add_argument("kits", metavar="KITS", help="the folder of the kits")
    arguments = parser.parse(argv)
    from weft.sites.authority import DAYS
    from weft.sites.provisioning import renew_kits

    kits = Path(arguments.kits)
    for kit in renew_kits(kits, passphrase(kits)):
        print(kit)
    print_notices(
        f"their certificates are valid for {DAYS} days again; copy startup/*.crt to the kits in use, and restart the "
        "server. Sites with keys of their own send a request again."
    )
    return 0


def ckks(argv: list[str]) -> int:
    """Make the key of encrypted sums, for the sites' kits."""
    parser = Parser(prog="weft server ckks", description="Make the key of encrypted sums.", allow_abbrev=False)
    parser.add_argument("kits", metavar="KITS", help="the folder of the kits")
    parser.add_argument("--renew", action="store_true", help="replace the key that is there")
    arguments = parser.parse(argv)
    from weft.sites.kit_key import make_key

    own, *given = make_key(Path(arguments.kits), renew=arguments.renew)
    for file in (own, *given):
        print(file)
    print_notices(
        f"whoever has {own.name} and sees what reaches the server reads every site's updates: give each site its own "
        "kit over a channel that you trust, and run the server where neither these kits nor the authority are.",
        f"a site that makes its own kit (`weft client request`) needs {own} too: it lies beside startup/ in the kit.",
    )
    return 0


SERVER = {"sign": sign, "revoke": revoke, "admin": admin, "renew": renew, "ckks": ckks}
CLIENT = {"request": request, "install": install}
"""Commands after `weft server` and `weft client`, beside those in their modules."""
HELP = {
    "sign": "sign: answer a request for a certificate",
    "revoke": "revoke: shut a site or an administrator out",
    "admin": "admin: make an administrator's kit",
    "renew": "renew: write new certificates for the same keys",
    "ckks": "ckks: make the key of encrypted sums for the sites' kits",
    "request": "request: make a key here, and ask for a certificate",
    "install": "install: make the kit from the answer",
}
"""What each of these does, for the help of `weft server` and `weft client`."""
