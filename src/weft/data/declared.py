"""Data sets that say themselves which files are in which part: `configs` in the head of README.md, as on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from weft.data import known
from weft.errors import DataError


def declared_parts(folder: Path, names: Iterable[str]) -> dict[str, list[str]] | None:
    """Return the files of each part that a folder's README.md declares, or None where it declares none.

    Args:
        folder: of the data set.
        names: of its data files, relative to it.

    Raises:
        DataError: several data sets lie in the folder, and none is the usual one.
    """
    configs = [one for one in _configs(folder / "README.md") if one.get("data_files")]
    if not configs:
        return None
    config = _usual(configs, folder)
    files = config["data_files"]
    entries = [files] if isinstance(files, str) else list(files)
    parts: dict[str, list[str]] = {}
    for entry in entries:
        split, paths = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        for path in [paths] if isinstance(paths, str) else list(paths or []):
            pattern = _pattern(f"{config['data_dir']}/{path}" if config.get("data_dir") else str(path))
            own = parts.setdefault(str(split), [])
            own += [name for name in names if pattern.fullmatch(name) and name not in own]
    found = {part: own for part, own in parts.items() if own}
    if not found:
        raise DataError(
            f"The README.md of '{folder}' names files of its parts, and none of them is there: copy them, or remove "
            "`configs` from its head."
        )
    return found


def front_matter(card: Path) -> dict[str, Any]:
    """Return what the head of a README.md says; nothing where it has none that can be read."""
    try:
        text = card.read_text(encoding="utf-8")
        found = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, UnicodeDecodeError, IndexError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _configs(card: Path) -> list[dict[str, Any]]:
    found = front_matter(card).get("configs")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _usual(configs: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    columns = known.find(str(folder))
    wanted = columns.config if columns else None
    usual = [one for one in configs if one.get("config_name") == wanted]
    usual = usual or [one for one in configs if one.get("default")]
    usual = usual or [one for one in configs if one.get("config_name") == "default"]
    if len(configs) > 1 and len(usual) != 1:
        names = ", ".join(f"'{one.get('config_name')}'" for one in configs)
        raise DataError(
            f"'{folder}' holds several data sets ({names}) by its README.md: name one of its files, or a folder that "
            "has one of them alone."
        )
    return usual[0] if usual else configs[0]


def _pattern(path: str) -> re.Pattern[str]:
    """Return what matches the files of a glob, where `*` stays within a folder and `**` does not."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", path.removeprefix("./"))
    return re.compile("".join(tokens.get(piece, re.escape(piece)) for piece in pieces))
