"""Shutting a party out of a federation: the certificates that the server refuses, whoever connects with them."""

from __future__ import annotations

import difflib
import json
import threading
from datetime import UTC, datetime
from pathlib import Path

from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.sites.authority import issued, write_private
from weft.sites.kit_settings import SUPERVISOR
from weft.sites.provisioning import read_project, write_project

REVOKED = "revoked.json"
"""File with the refused certificates: in the authority's folder, and in local/ of the server's kit."""


class Revocations:
    """The list of refused certificates in a server's kit, read again whenever the file changes."""

    def __init__(self, kit: Path) -> None:
        self.path = kit / "local" / REVOKED
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._names: dict[str, str] = {}

    def owner(self, certificate: str) -> str | None:
        """Return whose certificate this is if it is refused, else None.

        Args:
            certificate: its SHA-256, in hexadecimal.

        Raises:
            ValueError: the list cannot be read; then nobody may be let in.
        """
        with self._lock:
            try:
                state = self.path.stat()
            except FileNotFoundError:
                self._stamp, self._names = None, {}
                return None
            stamp = (state.st_mtime_ns, state.st_ino)
            if stamp != self._stamp:
                self._names = {entry["certificate"]: entry["name"] for entry in _read(self.path)}
                self._stamp = stamp
            return self._names.get(certificate)


def revoke(kits: Path, name: str) -> tuple[Path, bool]:
    """Refuse all certificates that were issued to a site or an administrator until now.

    A server that runs cuts the party's connections within seconds. A new certificate for the same name is not refused.

    Returns:
        A file to copy into local/ of every other copy of the server's kit, and whether `kits` holds that kit.

    Raises:
        ConfigError: nobody has this name, or its certificates are refused already.
    """
    project = read_project(kits)
    authority = kits / "authority"
    certificates = [entry for entry in issued(authority) if entry["name"] == name]
    parties = [*project["clients"], *project["admins"]]
    if not certificates or certificates[-1]["kind"] == "server" or name == SUPERVISOR:
        near = difflib.get_close_matches(name, parties, 1)
        raise ConfigError(
            f"'{kits}' has no site or administrator '{name}'" + (f": is '{near[0]}' meant?" if near else ".")
        )
    path = authority / REVOKED
    entries = _read(path) if path.exists() else []
    refused = {entry["certificate"] for entry in entries}
    since = datetime.now(UTC).isoformat()
    new = [entry for entry in certificates if entry["certificate"] not in refused]
    if not new:
        raise ConfigError(f"'{name}' is shut out already; `weft server sign` lets it in again, with another key.")
    entries += [
        {"name": name, "certificate": entry["certificate"], "key": entry["key"], "since": since} for entry in new
    ]
    content = (json.dumps(entries, indent=1) + "\n").encode()
    write_private(path, content)
    for group in ("clients", "admins"):
        project[group] = [other for other in project[group] if other != name]
    write_project(kits, project)
    local = kits / "server" / "local"
    if local.is_dir():
        write_private(local / REVOKED, content)
    return path, local.is_dir()


def revoked_keys(kits: Path) -> set[str]:
    """Return the fingerprints of the keys that belong to refused certificates."""
    path = kits / "authority" / REVOKED
    return {entry["key"] for entry in _read(path)} if path.exists() else set()


def _read(path: Path) -> list[JsonObject]:
    entries = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("certificate"), str) and isinstance(entry.get("name"), str)
        for entry in entries
    ):
        raise ValueError(f"{path} is no list of refused certificates")
    return entries
