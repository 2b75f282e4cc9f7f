"""Provisioning: a start-up kit for each party, and the certificate authority of the federation."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.sites.authority import (
    Authority,
    Identity,
    make_authority,
    name_in,
    open_authority,
    rsa_key,
    write_private,
)
from weft.sites.kit_key import give_key
from weft.sites.kit_settings import (
    ADMIN,
    ADMIN_ROLE,
    GUARD,
    LOOPBACK,
    SUPERVISOR,
    SUPERVISOR_ROLE,
    install_identity,
    kind_of_kit,
    organisation,
    read_certificate,
    write_identity,
    write_kits,
)

SITE = re.compile(r"[a-z][a-z0-9_-]{0,62}")
PERSON = re.compile(r"[a-z0-9][a-z0-9._-]*@[a-z0-9][a-z0-9.-]*")
RESERVED = ("server", "admin", "authority", "supervisor")
"""Names of folders of kits, and of parties, that no site can have."""


def make_kits(host: str, clients: Sequence[str], out: Path, port: int = 8002, *, passphrase: str | None = None) -> None:
    """Write a kit for the server, each site and the administrator, and the certificate authority that signs them.

    Args:
        host: name or address at which sites and administrator reach the server.
        clients: names of the sites whose keys are made here; others make their own (`weft client request`).
        out: a folder that does not exist, or is empty.
        port: the port that the server listens to.
        passphrase: encrypts the authority's root key; None: it is only readable for its owner.

    Raises:
        ConfigError: a name is not allowed, or the folder is not empty.
        MissingExtra: FLARE is not installed.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"'{out}' is not empty: give a new folder, or add a site with `weft server add`.")
    project: JsonObject = {"host": host, "port": port, "clients": [], "admins": [ADMIN]}
    for name in clients:
        check_party(name, project)
        project["clients"].append(name)
    identities = {out / "server": identity_of(host, "server"), out / "admin": identity_of(ADMIN, "admin")}
    identities[out / "server" / "supervisor"] = Identity(SUPERVISOR, "admin", role=SUPERVISOR_ROLE)
    identities |= {out / name: identity_of(name, "client") for name in clients}
    out.mkdir(parents=True, mode=0o700, exist_ok=True)
    write_kits(project, identities)
    authority = make_authority(out / "authority", passphrase)
    for folder, identity in identities.items():
        write_identity(folder, identity, authority, host)
    write_project(out, project)


def add_kit(kits: Path, name: str, *, passphrase: str | None = None) -> Path:
    """Write the kit of one more site or administrator (NAME@PLACE), signed by the same authority; return its folder.

    Raises:
        ConfigError: the name is taken or not allowed, or the authority cannot be opened.
    """
    project = read_project(kits)
    kind = check_party(name, project)
    if (kits / name).exists():
        raise ConfigError(f"'{kits / name}' is there already: move it away, or give another name.")
    authority = open_kits(kits, passphrase)
    identity = identity_of(name, kind)
    write_kits(project, {kits / name: identity})
    try:
        write_identity(kits / name, identity, authority, project["host"])
        give_key(kits, kits / name)
        register(kits, name)
    except BaseException:
        shutil.rmtree(kits / name)  # no half of a kit
        raise
    return kits / name


def renew_kits(kits: Path, passphrase: str | None) -> list[Path]:
    """Sign new certificates for the keys of all kits in a folder, before the old ones expire; return the kits.

    Kits of parties that were shut out are left as they are.
    """
    project, authority = read_project(kits), open_kits(kits, passphrase)
    renewed = []
    for kit in sorted({path.parent.parent for path in kits.glob("**/startup/fed_*.json")}):
        kind = kind_of_kit(kit)
        current = read_certificate(kit)
        name = name_in(current)
        if name == SUPERVISOR:
            identity = Identity(SUPERVISOR, "admin", role=SUPERVISOR_ROLE)
        elif kind == "server" or name in (*project["clients"], *project["admins"]):
            identity = identity_of(name, kind)
        else:
            continue
        host = project["host"] if kind == "server" else None
        install_identity(kit, authority.issue(identity, rsa_key(current), host), authority.root)
        renewed.append(kit)
    return renewed


def open_kits(kits: Path, passphrase: str | None) -> Authority:
    """Return the authority of a folder of kits; ConfigError: there is none, or the passphrase does not open it."""
    return open_authority(kits / "authority", passphrase)


def identity_of(name: str, kind: str) -> Identity:
    """Return what the certificate of a party says."""
    if kind == "client":
        return Identity(name, kind, organisation(name))
    return Identity(name, kind, role=ADMIN_ROLE if kind == "admin" else None)


def check_party(name: str, project: JsonObject, *, taken: bool = True) -> str:
    """Return "client" or "admin", what a party with this name is.

    Args:
        name: the party's name.
        project: the federation.
        taken: whether a name that a party has is refused.

    Raises:
        ConfigError: the name is not allowed, or is taken.
    """
    kind = "admin" if "@" in name else "client"
    if kind == "admin":
        if not PERSON.fullmatch(name) or len(name) > 64 or name == SUPERVISOR:
            raise ConfigError(
                f"An administrator cannot be called '{name}': write NAME@PLACE, in lower-case letters, digits, . - _"
            )
    elif not SITE.fullmatch(name) or name in (*RESERVED, project.get("host")):
        raise ConfigError(f"A site cannot be called '{name}': write lower-case letters, digits, - and _.")
    if taken and name in (*project.get("clients", ()), *project.get("admins", ())):
        what = "an administrator" if kind == "admin" else "a site"
        raise ConfigError(
            f"There is {what} '{name}' already: give another name, or shut it out first with `weft server revoke`."
        )
    return kind


def read_project(kits: Path) -> JsonObject:
    """Return host, port and parties of a folder of kits; ConfigError if it holds no kits."""
    try:
        project = json.loads((kits / "authority" / "project.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"'{kits}' holds no kits with their authority: make them with `weft server init`.") from None
    return {"admins": [ADMIN]} | dict(project)


def write_project(kits: Path, project: JsonObject) -> None:
    """Write host, port and parties of a folder of kits."""
    write_private(kits / "authority" / "project.json", (json.dumps(project, indent=1) + "\n").encode())


def register(kits: Path, name: str) -> None:
    """Add a party to the list of a folder of kits."""
    project = read_project(kits)
    names = project["admins" if "@" in name else "clients"]
    if name not in names:
        names.append(name)
        write_project(kits, project)


def check_current(kit: Path, kind: str) -> None:
    """Refuse a kit of an earlier Weft, which lacks components that guard it; ConfigError says how to make a new one."""
    settings = json.loads((kit / "local" / "resources.json").read_text(encoding="utf-8"))
    present = {part["path"] for part in settings["components"]}
    if not {LOOPBACK, *([GUARD] if kind == "server" else [])} <= present:
        raise ConfigError(
            f"'{kit}' was made by an earlier Weft and lacks its guards: make new kits with `weft server init`, or ask "
            "for one."
        )


def settle(kit: Path) -> None:
    """Make a server store its jobs in its kit, wherever the kit is now."""
    path = kit / "local" / "resources.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    jobs = str(kit.resolve() / "jobs")
    settings["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = f"{jobs}/snapshots"
    for part in settings["components"]:
        if part["id"] == "job_manager":
            part["args"]["uri_root"] = f"{jobs}/store"
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


__all__ = ["add_kit", "check_current", "kind_of_kit", "make_kits", "read_project", "renew_kits", "settle"]
