"""The key that all sites have in their kits, and the server has not: with it they encrypt updates."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from weft.core.exchange import Protection
from weft.core.secret import Common
from weft.errors import ConfigError
from weft.protection.ciphertexts import MOST_KEY, check_library, new_key
from weft.sites.authority import write_private
from weft.sites.kit_settings import kind_of_kit
from weft.sites.requests import Refused

FILE = "ckks.key"
"""In the kit of a site, and beside the authority's root key."""


def common_of(
    kit: Path | None, protection: Protection, run: str, shared: Callable[[], Collection[str]]
) -> Common | None:
    """Return what a site has in common with the others in a run; None: the run's protection needs nothing.

    Args:
        kit: of the site.
        protection: of the run.
        run: names the run.
        shared: returns the names of the tensors that sites send.

    Raises:
        Refused: the site has no key, or one that is damaged; or the run would encrypt no tensor.
    """
    if not protection.shares_key:
        return None
    try:
        protection.check(shared())
    except ConfigError:
        raise Refused("the run's encrypt fits no shared tensor, so that its server would see them all") from None
    file = None if kit is None else kit / FILE
    if file is None or not file.is_file():
        raise Refused(f"its kit has no {FILE}, without which it takes part in no encrypted sum")
    if file.stat().st_mode & 0o077:
        file.chmod(0o600)
    with open(file, "rb") as content:
        key = content.read(MOST_KEY + 1)
    try:
        protection.fingerprint(key)
    except ConfigError:
        raise Refused(f"the {FILE} in its kit is damaged") from None
    return Common(key, run)


def make_key(kits: Path, *, renew: bool = False) -> list[Path]:
    """Make a key and write it into the kits of all sites in a folder, and beside the authority; return these files.

    Never into the server's kit, nor an administrator's: they read nobody.

    Args:
        kits: the folder of the kits.
        renew: replace the key that is there, in all of them.

    Raises:
        ConfigError: the folder holds no kits, or there is a key already.
        MissingExtra: TenSEAL is not installed.
    """
    check_library()
    own = kits / "authority" / FILE
    if not own.parent.is_dir():
        raise ConfigError(f"'{kits}' holds no kits with their authority: make them with `weft server init`.")
    if own.exists() and not renew:
        raise ConfigError(f"'{own}' is there already, and a new one would shut out sites that have it: write --renew.")
    key = new_key()
    files = [own]
    write_private(own, key)
    for kit in _site_kits(kits):
        write_private(kit / FILE, key)
        files.append(kit / FILE)
    return files


def give_key(kits: Path, kit: Path) -> None:
    """Write the key of a federation into the kit of one more site, if there is a key."""
    if (own := kits / "authority" / FILE).is_file() and kind_of_kit(kit) == "client":
        write_private(kit / FILE, own.read_bytes())


def _site_kits(kits: Path) -> list[Path]:
    """Return the kits of sites in a folder."""
    found = sorted(path.parent.parent for path in kits.glob("*/startup/fed_client.json"))
    return [kit for kit in found if kind_of_kit(kit) == "client"]
