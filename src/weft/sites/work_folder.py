"""The folder of `weft up`: a mark says what Weft made there, and nothing else is ever replaced or deleted.

Somebody may name a folder with real kits, whose authority cannot be made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from weft.core.digests import sha256_of
from weft.core.files import missing, remove_empty, write_atomic
from weft.errors import ConfigError, RunInUse
from weft.json_types import JsonObject

MARK = ".weft-up.json"
"""The mark, in the folder of `weft up` and in its folder of kits."""
KEPT = ("runs", "parts", "weft")
"""Folders of a kit that are kept when the kit is made anew: runs and parts at the server, what sites keep of runs."""
ADVICE = "give a folder that is new, empty or made by `weft up`, or move what it holds elsewhere"


@contextmanager
def own_folder(work: Path) -> Iterator[None]:
    """Use a folder alone that is new, empty, or was made by `weft up`.

    Raises:
        ConfigError: it holds something else.
        RunInUse: another `weft up` uses it.
    """
    if work.exists() and not (work.is_dir() and ((work / MARK).is_file() or not any(work.iterdir()))):
        raise ConfigError(f"'{work}' holds what `weft up` did not make, and is left as it is: {ADVICE}.")
    above = missing(work)
    work.mkdir(parents=True, exist_ok=True)
    is_new = not (work / MARK).exists()
    descriptor = os.open(work / MARK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunInUse(
            f"Another `weft up` uses '{work}': wait for its end, or give another folder by --work."
        ) from None
    try:
        yield
    except ConfigError:
        if is_new and os.listdir(work) == [MARK]:  # a mistake of the user leaves nothing behind
            (work / MARK).unlink()
            remove_empty(above)
        raise
    finally:
        os.close(descriptor)


def renew_kits(kits: Path, sites: Sequence[str], make: Callable[[Path], None]) -> None:
    """Make kits, in the place of those that this function made before for the same sites.

    Args:
        kits: folder of the kits.
        sites: names of the sites.
        make: writes new kits into the folder that it is called with.

    Raises:
        ConfigError: the folder holds something else; it is left as it is.
    """
    mark = _checked_mark(kits, sites)
    kits.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kits.parent, prefix=".kits-") as temporary:
        new = Path(temporary) / "kits"
        make(new)
        kits.mkdir(exist_ok=True)
        made = {"sites": sorted(sites), "authorities": [_authority(new)], "roots": [_root(new / "server")]}
        # Both are Weft's own: an interruption leaves some kits of the one, and some of the other.
        both = made | {key: [*mark.get(key, []), *made[key]] for key in ("authorities", "roots")}
        write_atomic(kits / MARK, json.dumps(both).encode())
        for entry in sorted(new.iterdir()):
            _replace(entry, kits / entry.name)
        write_atomic(kits / MARK, json.dumps(made).encode())


def _replace(new: Path, old: Path) -> None:
    """Move the content of a new kit to the place of an old one, of which the folders in `KEPT` stay."""

    def certificates_last(entry: Path) -> bool:
        return entry.name == "startup"

    # A kit without certificates is thereby known to hold nothing but what is kept, whenever this is interrupted.
    old.mkdir(exist_ok=True)
    for entry in sorted(old.iterdir(), key=certificates_last):
        if entry.name in KEPT and new.name != "authority":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for entry in sorted(new.iterdir(), key=certificates_last, reverse=True):
        shutil.move(str(entry), str(old / entry.name))
    old.chmod(new.stat().st_mode & 0o777)


def _checked_mark(kits: Path, sites: Sequence[str]) -> JsonObject:
    """Return the mark of a folder of kits, {} if it is new or empty; ConfigError if it holds anything else."""
    if not os.path.lexists(kits) or (kits.is_dir() and not kits.is_symlink() and not any(kits.iterdir())):
        return {}
    try:
        mark = {} if kits.is_symlink() else dict(json.loads((kits / MARK).read_text(encoding="utf-8")))
        made, authorities, roots = sorted(mark["sites"]), mark["authorities"], mark["roots"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"'{kits}' was not made by `weft up`, and is left as it is: {ADVICE}.") from None
    if made != sorted(sites):
        raise ConfigError(
            f"'{kits}' holds the kits of other sites ({', '.join(made)}), and is left as it is: give another folder "
            "by --work, or delete that one."
        )
    for entry in sorted(kits.iterdir()):
        if entry.name == MARK:
            continue
        known = not entry.is_symlink() and entry.name in ("server", "admin", "authority", *made)
        if entry.name == "authority":
            known = known and _authority(kits) in authorities
        else:
            known = known and (_root(entry) in roots or not set(os.listdir(entry)) - set(KEPT))
        if not known:
            raise ConfigError(f"'{entry}' was not made by `weft up`, and is left as it is: {ADVICE}.")
    return mark


def _root(kit: Path) -> str:
    """Return the SHA-256 of the authority's certificate in a kit; "" if the kit is empty of certificates."""
    path = kit / "startup" / "rootCA.pem"
    return sha256_of(path) if path.is_file() else ""


def _authority(kits: Path) -> str:
    """Return a SHA-256 over the files of the authority; "" if there are none."""
    folder, total = kits / "authority", hashlib.sha256()
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    for path in files:
        total.update(f"{path.relative_to(folder)}\0".encode() + bytes.fromhex(sha256_of(path)))
    return total.hexdigest() if files else ""
