"""What a server's or a site's machine has: versions of packages, disk, memory, folders that can be written."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from weft.core.digests import sha256_of
from weft.core.host_memory import free_memory
from weft.runs.text import human_bytes
from weft.sites.findings import FAIL, OK, WARN, Finding
from weft.sites.part_files import FOLDER

PACKAGES = ("weft", "nvflare", "torch")
LEAST_DISK, SOME_DISK = 100_000_000, 5_000_000_000
"""Free bytes below which no run can end, and below which a run of a large model may not."""
SOME_MEMORY = 2_000_000_000
"""Free bytes of memory below which loading of most models fails."""


def check_versions() -> Iterator[Finding]:
    """Check that the packages are installed, in versions that Weft supports."""
    for name in PACKAGES:
        extra = "[nvflare]" if name == "nvflare" else ""
        remedy = f"run `pip install 'weft{extra}'`"
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(FAIL, "versions", f"{name} is not installed", remedy)
            continue
        if not _supported(name, found):
            yield Finding(FAIL, "versions", f"{name} {found} is none that this Weft supports", remedy)
        else:
            yield Finding(OK, "versions", f"{name} {found}" + (" (the same everywhere)" if name == "weft" else ""))
    yield Finding(OK, "versions", f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")


def _supported(name: str, found: str) -> bool:
    """Say whether a version is in the range that Weft's own requirements name."""
    from packaging.requirements import Requirement

    for line in requires("weft") or []:
        requirement = Requirement(line)
        if requirement.name == name and requirement.specifier:
            return bool(requirement.specifier.contains(found, prereleases=True))
    return True


def check_disk(folder: Path, what: str = "disk") -> Finding:
    """Check the free bytes of the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if free < SOME_DISK:
        outcome = FAIL if free < LEAST_DISK else WARN
        return Finding(outcome, what, f"{human_bytes(free)} are free on the disk of '{folder}'", "make room there")
    return Finding(OK, what, f"{human_bytes(free)} are free on the disk of '{folder}'")


def check_memory() -> Finding:
    """Check the memory that is free now."""
    free = free_memory()
    if free is None:
        return Finding(OK, "memory", "this system does not say how much is free")
    if free < SOME_MEMORY:
        return Finding(WARN, "memory", f"{human_bytes(free)} are free", "end other programs before a run")
    return Finding(OK, "memory", f"{human_bytes(free)} are free")


def check_writable(folder: Path, what: str) -> Finding:
    """Check that files can be written to a folder, or that it can be created; nothing is left there."""
    place = folder
    while not place.exists():
        place = place.parent
    remedy = f"let the user '{_user()}' write to it, or start Weft as the kit's owner"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"weft")
    except OSError as error:
        return Finding(FAIL, what, f"'{folder}' cannot be written ({error.strerror})", remedy)
    return Finding(OK, what, f"'{folder}' can be written")


def check_parts(kit: Path) -> Finding:
    """List the files whose parts runs may name."""
    folder = kit / FOLDER
    if not folder.is_dir():
        return Finding(OK, "parts", f"none: runs may name no parts in files ('{folder}' is not there)")
    try:
        files = sorted(folder.glob("*.py"))
        digests = [f"{file.name} ({sha256_of(file)[:16]}...)" for file in files]
        os.listdir(folder)
    except OSError as error:
        return Finding(FAIL, "parts", f"'{folder}' cannot be read ({error.strerror})", "correct its owner and mode")
    return Finding(OK, "parts", ", ".join(digests) or f"none: '{folder}' is empty")


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
