"""Data files without some rows: what a run reads that never had them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

from weft.config import RunConfig
from weft.data.load import resolve_source
from weft.errors import ConfigError
from weft.json_types import JsonObject

KINDS = (".jsonl", ".json", ".csv")
OTHER_SOURCES = ("public_data", "eval_dataset_name", "post_alignment", "adversarial_prompts")
"""Keys of data that are nobody's."""


class Reduced(NamedTuple):
    """A run on data without some rows."""

    keys: JsonObject
    """Of the run, with the copies in place of the files that had the rows."""
    rows: int
    """Rows that were taken out."""
    clients: tuple[str, ...]
    """Those that had them; none of a run that deals one file."""
    files: dict[Path, bytes]
    """The copies."""
    missing: tuple[int, ...]
    """Places, counted from 1, of the rows that nobody has."""


def without_rows(config: RunConfig, keys: JsonObject, rows: Path, folder: Path) -> Reduced:
    """Return a run on copies of its data files without some rows; nothing is written.

    Args:
        config: the run that has the rows.
        keys: its keys as they were saved.
        rows: a file with the rows, as they stand in the data.
        folder: of the copies.

    Raises:
        ConfigError: the rows or the data cannot be read here, or nobody has such rows.
    """
    marks = [_mark(row) for row in _read(rows, "--rows")]
    gone, found = {*marks}, set[str]()
    if not gone:
        raise ConfigError(f"'{rows}' has no rows: write the rows to forget, as they stand in the data.")
    _check_other_sources(config, gone)
    files: dict[Path, bytes] = {}
    keys, count, affected = dict(keys), 0, []

    def copy(name: str) -> tuple[str, int]:
        source = Path(resolve_source(name, config.local_data_dir)).expanduser()
        if source.suffix not in KINDS or not source.is_file():
            raise ConfigError(
                f"Rows can be taken out of files in {', '.join(KINDS)}, and the data are '{name}': take them out "
                "there, and begin another run."
            )
        kept, dropped = _without(source, gone)
        if not dropped:
            return name, 0
        found.update(dropped)
        target = folder / f"{len(files)}-{source.name}"
        files[target] = kept
        return str(target.absolute()), len(dropped)

    if config.clients:
        clients = []
        for client in keys["clients"]:
            changed = dict(client)
            if client["name"] not in config.forgotten:
                taken = 0
                for key in ("data", "eval"):
                    if client.get(key):
                        changed[key], dropped = copy(client[key])
                        taken += dropped
                if taken:
                    affected.append(client["name"])
                    count += taken
            clients.append(changed)
        keys["clients"] = clients
    else:
        keys["dataset_name"], count = copy(str(config.dataset_name))
    if not count:
        raise ConfigError(f"No row of '{rows}' is among the rows of the run, as they stand there: check their columns.")
    missing = tuple(place for place, mark in enumerate(marks, 1) if mark not in found)
    return Reduced(keys, count, tuple(affected), files, missing)


def _check_other_sources(config: RunConfig, gone: set[str]) -> None:
    """Refuse where rows are also in a file that everybody learns from or is scored on: raise ConfigError."""
    for key in OTHER_SOURCES:
        name = getattr(config, key)
        source = Path(resolve_source(name, config.local_data_dir)).expanduser() if name else None
        if source is None or source.suffix not in KINDS or not source.is_file():
            continue
        try:
            found = len(_without(source, gone)[1])
        except ValueError:
            continue  # the file holds no rows of JSON, so none of these
        if found:
            raise ConfigError(
                f"{found} of the rows are in '{source}' ({key}), from which no client can be told: delete them there, "
                "and begin another run."
            )


def _mark(row: Any) -> str:
    return json.dumps(row, sort_keys=True)


def _read(path: Path, key: str) -> list[Any]:
    """Return the rows of a file of the kinds that are known."""
    if path.suffix not in KINDS or not path.is_file():
        raise ConfigError(f"{key} is '{path}': write the path of a file in {', '.join(KINDS)}.")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline="")))
        if path.suffix == ".json":
            rows = json.loads(text)
            return rows if isinstance(rows, list) else [rows]
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, OSError) as error:
        raise ConfigError(f"'{path}' cannot be read ({error}): check its format.") from None


def _without(path: Path, gone: set[str]) -> tuple[bytes, list[str]]:
    """Return a file's content without some rows, the others byte for byte where each is a line; and the marks of those.

    A mark comes as often as its row stood in the file.
    """
    dropped: list[str] = []

    def stays(row: Any) -> bool:
        if (mark := _mark(row)) in gone:
            dropped.append(mark)
            return False
        return True

    if path.suffix == ".jsonl":
        lines = path.read_bytes().splitlines(keepends=True)
        return b"".join(line for line in lines if not line.strip() or stays(json.loads(line))), dropped
    rows = _read(path, "the data")
    left = [row for row in rows if stays(row)]
    if path.suffix == ".json":
        return json.dumps(left, ensure_ascii=False, indent=1).encode(), dropped
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(left)
    return out.getvalue().encode(), dropped
