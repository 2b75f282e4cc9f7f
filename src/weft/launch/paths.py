"""Absolute paths of what a run reads and writes, so that it can be resumed from any working directory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from weft import kinds
from weft.config import RunConfig, build
from weft.data.load import kind_of as kind_of_file
from weft.data.load import resolve_source
from weft.json_types import JsonObject

DATA = ("dataset_name", "eval_dataset_name", "public_data", "post_alignment", "adversarial_prompts")
PATHS = (*DATA, "model_name_or_path", "tokenizer", "tokenizer_text")
"""Keys that name a file or a folder, or something of the hub."""
FOLDERS = ("output_dir", "local_data_dir", "token_cache", "availability")
"""Keys that always are paths."""
LISTS = ("task_data", "include_path")
"""Keys that are lists of folders."""


def kind_of(config: RunConfig) -> str:
    """Return what a run trains, which is also the name of the folder that it is written to."""
    return "adapter" if config.adapts else "model"


def absolute(values: JsonObject, *, absent_too: bool = True) -> JsonObject:
    """Return the keys of a run with its paths in full; names of the hub stay as they are.

    A run of sites keeps its words: paths are the sites' own, and they know the model by its name.

    Args:
        values: the keys.
        absent_too: also what is written as a path and is not there.
    """
    if values.get("runtime") == "nvflare":
        return values
    result = dict(values)
    for key in FOLDERS:
        if result.get(key):
            # OpenFedLLM joins the folder and the name as texts, so its last slash counts.
            result[key] = _whole(result[key]) + "/" * (key == "local_data_dir" and str(result[key]).endswith("/"))
    for key in LISTS:
        result |= {key: [_whole(folder) for folder in result[key]]} if result.get(key) else {}
    for key in ("eval_tasks", "contamination"):
        if result.get(key):
            result[key] = [_whole(name) if is_task_file(name) else name for name in result[key]]
    for key in [key for key in result.get("clean_args") or {} if key.endswith((".against", ".key"))]:
        files = [_whole(file) for file in str(result["clean_args"][key]).split("+")]
        result["clean_args"] = result["clean_args"] | {key: "+".join(files)}
    for name in ("forbidden", "canaries"):
        if (result.get("leave_when") or {}).get(name):
            result["leave_when"] = result["leave_when"] | {name: _whole(str(result["leave_when"][name]))}
    if result.get("mixture_reference") and "=" not in result["mixture_reference"]:
        result["mixture_reference"] = _whole(result["mixture_reference"])
    data_folder = result.get("local_data_dir")
    for key in PATHS:
        if result.get(key):
            result[key] = _source(result[key], data_folder if key in DATA else None, absent_too)
    if result.get("clients"):
        result["clients"] = [
            {
                **client,
                **{key: _source(client[key], data_folder, absent_too) for key in ("data", "eval") if client.get(key)},
            }
            for client in result["clients"]
        ]
    return kinds.with_files(result, lambda file: replace(file, path=_whole(file.path)))


def with_whole_paths(config: RunConfig, *, absent_too: bool = False) -> RunConfig:
    """Return the configuration with its paths in full, but for the run's own, which stays as it is written.

    What is not there stays as it is written too, so that it is refused by that name, unless `absent_too`.
    """
    return build(absolute(config.model_dump(), absent_too=absent_too) | {"output_dir": config.output_dir})


def _source(name: str, data_folder: str | None, absent_too: bool) -> str:
    """Return a name in full where it is a path: of what is there, or written as one."""
    if data_folder is not None and Path(resolve_source(name, data_folder)).expanduser().exists():
        return name
    looks_like_path = name.startswith((".", "/", "~")) or kind_of_file(Path(name)) is not None
    return _whole(name) if Path(name).expanduser().exists() or (absent_too and looks_like_path) else name


def is_task_file(name: str) -> bool:
    """Return whether the name of a task is that of a file, and no task of a catalogue."""
    return name.endswith((".yaml", ".yml"))


def _whole(path: str) -> str:
    """Return a path in full; links stay, for what they lead to may be exchanged."""
    return os.path.abspath(os.path.expanduser(path))
