"""Reads a start-up kit: whose it is, where the server is, and which files it must have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from weft.errors import ConfigError
from weft.sites.provisioning import kind_of_kit

USES = {
    "server": "the server's kit, for `weft server`",
    "client": "the kit of the site '{name}', for `weft client`",
    "admin": "an administrator's kit, for `weft submit`",
}
"""What each kind of kit is."""
WANTED = {
    "server": "the server's kit, which `weft server init` writes to the folder `server`",
    "client": "the kit that this site was sent",
    "admin": "an administrator's kit, which `weft server init` writes to the folder `admin`",
}
"""What to give instead, where another kind of kit is wanted."""


@dataclass(frozen=True)
class Kit:
    """A start-up kit."""

    path: Path
    kind: str
    """server, client or admin"""
    name: str
    """Name of the party in its federation."""
    host: str
    """Name or address of the server."""
    port: int
    certificate: Path
    key: Path
    authority: Path
    """Certificate of the authority."""


def read_kit(path: Path, expected: str | None = None) -> Kit:
    """Read a kit.

    Args:
        path: folder of the kit.
        expected: the kind of kit that is wanted; None: any.

    Raises:
        ConfigError: the folder is no kit, or one of another kind, or something in it is missing or damaged.
    """
    kind = kind_of_kit(path)
    kit = _read(path, kind)
    if expected is not None and kind != expected:
        raise ConfigError(f"'{path}' is {USES[kind].format(name=kit.name)}: give {WANTED[expected]}.")
    for file in (kit.certificate, kit.key, kit.authority, *([] if kind == "admin" else _settings(path))):
        if not file.is_file():
            raise _damaged(path, f"{file.relative_to(path)} is missing")
    return kit


def _read(path: Path, kind: str) -> Kit:
    startup = path / "startup"
    file = startup / f"fed_{kind}.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        if kind == "admin":
            own, target = settings["admin"], f"{settings['admin']['host']}:{settings['admin']['port']}"
            names = (own["username"], own["client_cert"], own["client_key"], own["ca_cert"])
        else:
            target = settings["servers"][0]["service"]["target"]
            own = settings["client"] if kind == "client" else settings["servers"][0]
            name = own["fqsn"] if kind == "client" else "server"
            names = (name, own["ssl_cert"], own["ssl_private_key"], own["ssl_root_cert"])
        host, _, port = str(target).rpartition(":")
        name, certificate, key, authority = (str(value) for value in names)
        return Kit(path, kind, name, host, int(port), startup / certificate, startup / key, startup / authority)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise _damaged(path, f"startup/{file.name} cannot be read") from None


def _settings(path: Path) -> list[Path]:
    """Return the files by which a kit forbids what no run needs; the first must be readable."""
    files = [path / "local" / name for name in ("resources.json", "authorization.json")]
    for file in files:
        try:
            if file.is_file():
                json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise _damaged(path, f"local/{file.name} cannot be read") from None
    return files


def _damaged(path: Path, what: str) -> ConfigError:
    return ConfigError(f"The kit '{path}' is damaged ({what}): unpack it again, or ask for a new one.")
