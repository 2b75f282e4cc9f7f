"""Data sets of the `datasets` library: of the hub, or saved to a folder. Their rows stay on disk."""

from __future__ import annotations

from pathlib import Path

from weft.data import hub_columns, parts
from weft.data.parts import HubRows, Selection
from weft.errors import DataError


def saved_set(folder: Path) -> bool:
    """Return whether a folder is a data set that the `datasets` library saved."""
    return (folder / "dataset_dict.json").exists() or all(
        (folder / name).exists() for name in ("dataset_info.json", "state.json")
    )


def hub_set(name: str, selection: Selection, token: bool | None) -> HubRows:
    """Return the selected rows of a data set of the hub, or of one that was saved to a folder.

    Raises:
        DataError: it cannot be loaded, or has no such part.
    """
    return parts.part_of_set(_load_set(name, token), selection, name)


def _load_set(name: str, token: bool | None) -> HubRows | dict[str, HubRows]:
    import datasets

    path = Path(name).expanduser()
    try:
        if path.is_dir():
            rows: HubRows | dict[str, HubRows] = datasets.load_from_disk(str(path))
        else:
            columns = hub_columns.find(name)
            rows = datasets.load_dataset(name, columns.config if columns else None, token=token)
    except Exception as error:  # every kind of network, hub and file error comes out of this library
        raise DataError(
            f"'{name}' is no local file or folder, and could not be loaded as a data set "
            f"({first_line(error)}): check the name, the path or the network."
        ) from None
    return rows


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
