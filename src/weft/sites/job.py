"""A job of NVIDIA FLARE: what an administrator submits for a run, and what it may ask of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weft.config import RunConfig
from weft.errors import ConfigError
from weft.runs.layout import path_component

STATUS, STOP = "weft_status", "weft_stop"
"""What an administrator asks the server for, and tells it."""


def check_name(name: str) -> None:
    """Refuse a name that cannot be that of a run, which is a folder's too."""
    if path_component(name) != name or name.startswith("."):
        raise ConfigError(f"A run cannot be called '{name}': write lower-case letters, digits, - and _ after --name.")


def write_job(config: RunConfig, name: str, folder: Path) -> Path:
    """Write a job of FLARE: the names of two classes, and the run's keys; return its folder."""
    check_name(name)
    keys = config.model_dump(mode="json") | {"output_dir": name, "prompt_template": None}  # sites have their own
    collab: dict[str, Any] = {"collab_obj_ids": [], "props": {}}
    threads = {"max_inbound_call_threads": 32, "max_outbound_call_threads": 100}
    server = {
        "workflows": [
            {
                "id": "controller",
                "path": "nvflare.collab.runtime.controller.CollabController",
                "args": {"server_obj_id": "_server"} | collab | threads,
            }
        ],
        "components": [{"id": "_server", "path": "weft.sites.flare.ServerJob", "args": {"run": keys, "name": name}}],
    }
    executor: dict[str, Any] = {
        "path": "nvflare.collab.runtime.executor.CollabExecutor",
        "args": {"client_obj_id": "_client"},
    }
    executor["args"] |= collab | threads
    client = {
        "executors": [{"tasks": ["*"], "executor": executor}],
        "components": [{"id": "_client", "path": "weft.sites.flare.SiteJob", "args": {}}],
    }
    filters: dict[str, Any] = {"format_version": 2, "task_data_filters": [], "task_result_filters": []}
    least = max(1, config.min_clients)
    where = ["server", *config.sites] if config.sites else ["@ALL"]
    meta = {"name": name, "resource_spec": {}, "min_clients": least, "deploy_map": {"app": where}}
    job = folder / name
    (job / "app" / "config").mkdir(parents=True)
    for path, content in (
        (job / "meta.json", meta),
        (job / "app" / "config" / "config_fed_server.json", filters | server),
        (job / "app" / "config" / "config_fed_client.json", filters | client),
    ):
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return job
