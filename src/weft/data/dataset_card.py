"""Data set cards: the `configs` in the head of a README.md assign files to parts, as on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from weft.data import hub_columns
from weft.errors import DataError
from weft.json_types import JsonObject


def card_parts(folder: Path, names: Iterable[str]) -> dict[str, list[str]] | None:
    """Return the files of each part that a folder's README.md declares, or None where it declares none.

    Args:
        folder: of the data set.
        names: of its data files, relative to it.

    Raises:
        DataError: the card declares several data sets and no default, or files that do not exist.
    """
    configs = [one for one in _configs(folder / "README.md") if one.get("data_files")]
    if not configs:
        return None
    config = _default_config(configs, folder)
    files = config["data_files"]
    entries = [files] if isinstance(files, str) else list(files)
    parts: dict[str, list[str]] = {}
    for entry in entries:
        split, paths = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        for path in [paths] if isinstance(paths, str) else list(paths or []):
            pattern = _pattern(f"{config['data_dir']}/{path}" if config.get("data_dir") else str(path))
            members = parts.setdefault(str(split), [])
            members += [name for name in names if pattern.fullmatch(name) and name not in members]
    present = {part: members for part, members in parts.items() if members}
    if not present:
        raise DataError(
            f"The README.md of '{folder}' names files of its parts, and none of them exists: copy them, or remove "
            "`configs` from its head."
        )
    return present


def front_matter(card: Path) -> JsonObject:
    """Return the YAML head of a README.md; empty if there is none that can be read."""
    try:
        text = card.read_text(encoding="utf-8")
        head = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else None
    except (OSError, UnicodeDecodeError, IndexError, yaml.YAMLError):
        return {}
    return head if isinstance(head, dict) else {}


def _configs(card: Path) -> list[JsonObject]:
    entries = front_matter(card).get("configs")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _default_config(configs: list[JsonObject], folder: Path) -> JsonObject:
    hub = hub_columns.find(str(folder))
    name = hub.config if hub else None
    defaults = [entry for entry in configs if entry.get("config_name") == name]
    defaults = defaults or [entry for entry in configs if entry.get("default")]
    defaults = defaults or [entry for entry in configs if entry.get("config_name") == "default"]
    if len(configs) > 1 and len(defaults) != 1:
        names = ", ".join(f"'{entry.get('config_name')}'" for entry in configs)
        raise DataError(
            f"'{folder}' holds several data sets ({names}) according to its README.md: name one of its "
            "files, or a folder with only one of them."
        )
    return defaults[0] if defaults else configs[0]


def _pattern(path: str) -> re.Pattern[str]:
    """Return a pattern for the files of a glob, where `*` stays within a folder and `**` does not."""
    tokens = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", path.removeprefix("./"))
    return re.compile("".join(tokens.get(piece, re.escape(piece)) for piece in pieces))
