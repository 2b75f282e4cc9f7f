"""Where what a run is made from lies: paths are kept whole, so that a run is gone on with from any folder."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from weft import kinds
from weft.config import RunConfig, build
from weft.data.load import kind_of as kind_of_file
from weft.data.load import resolve_source
from weft.json_types import JsonObject

DATA = ("dataset_name", "eval_dataset_name", "public_data")
PATHS = (*DATA, "model_name_or_path", "tokenizer", "tokenizer_text")
"""Keys that name a file or a folder, or something of the hub."""
FOLDERS = ("output_dir", "local_data_dir", "token_cache", "availability")
"""Keys that always are paths."""


def kind_of(config: RunConfig) -> str:
    """Return what a run trains, which is also the name of the folder that it is written to."""
    return "adapter" if config.adapts else "model"


def absolute(values: JsonObject, *, absent: bool = True) -> JsonObject:
    """Return the keys of a run with its paths in full; names of the hub stay as they are.

    A run of sites keeps its words: paths are the sites' own, and they know the model by its name.

    Args:
        values: the keys.
        absent: also what is written as a path and is not there.
    """
    if values.get("runtime") == "nvflare":
        return values
    found = dict(values)
    for key in FOLDERS:
        if found.get(key):
            # OpenFedLLM joins the folder and the name as texts, so its last slash counts.
            found[key] = _whole(found[key]) + "/" * (key == "local_data_dir" and str(found[key]).endswith("/"))
    beside = found.get("local_data_dir")
    for key in PATHS:
        if found.get(key):
            found[key] = _source(found[key], beside if key in DATA else None, absent)
    if found.get("clients"):
        found["clients"] = [
            {**client, **{key: _source(client[key], beside, absent) for key in ("data", "eval") if client.get(key)}}
            for client in found["clients"]
        ]
    return kinds.with_files(found, lambda file: replace(file, path=_whole(file.path)))


def with_whole_paths(config: RunConfig, *, absent: bool = False) -> RunConfig:
    """Return the configuration with its paths in full, but for the run's own, which stays as it is written.

    What is not there stays as it is written too, so that it is refused by that name, unless `absent`.
    """
    return build(absolute(config.model_dump(), absent=absent) | {"output_dir": config.output_dir})


def _source(name: str, beside: str | None, absent: bool) -> str:
    """Return a name in full where it is a path: of what is there, or written as one."""
    if beside is not None and Path(resolve_source(name, beside)).expanduser().exists():
        return name
    written = name.startswith((".", "/", "~")) or kind_of_file(Path(name)) is not None
    return _whole(name) if Path(name).expanduser().exists() or (absent and written) else name


def _whole(path: str) -> str:
    """Return a path in full; links stay, for what they lead to may be exchanged."""
    return os.path.abspath(os.path.expanduser(path))
