"""Start-up kits as sites hold them, without a federation."""

from __future__ import annotations

from pathlib import Path

from weft.sites.authority import Authority, Identity, key_pem, make_authority, new_key, pem


def kit_of(authority: Authority, folder: Path, name: str) -> Path:
    """Return a kit of an authority, with what a site signs with."""
    key, public = new_key()
    startup = folder / name / "startup"
    startup.mkdir(parents=True)
    (startup / "client.crt").write_bytes(pem(authority.issue(Identity(name, "client"), public)))
    (startup / "client.key").write_bytes(key_pem(key))
    (startup / "rootCA.pem").write_bytes(pem(authority.root))
    return folder / name


def kits_of(folder: Path, names: list[str]) -> dict[str, Path]:
    """Return a kit for each name, all of one authority, which is made too."""
    authority = make_authority(folder / "authority", None)
    return {name: kit_of(authority, folder / "kits", name) for name in names}
