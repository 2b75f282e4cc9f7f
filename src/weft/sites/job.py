"""The NVIDIA FLARE job that is submitted for a run, and the command that a running job answers."""

from __future__ import annotations

import json
import re
from pathlib import Path

from weft.config import RunConfig
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.runs.layout import path_component

STOP = "weft_stop"
"""FLARE app command: mark a run as stopped by the administrator."""
REPORT, ROUNDS = "weft_status", "weft_rounds"
"""Entries of a job's description: what its run last reported; how many rounds it is to have."""


TAKEN = re.compile(r".*\.(json|log)(\.\d+)?")
"""Names of files that lie beside the folders of runs: statuses and logs at a server, counts and logs at a site."""


def check_name(name: str) -> None:
    """Raise ConfigError for a name that a run cannot have; the run's folder has the same name."""
    if TAKEN.fullmatch(name):
        raise ConfigError(f"A run cannot be called '{name}', like files beside it: leave out .json and .log in --name.")
    if path_component(name) != name or name.startswith("."):
        raise ConfigError(f"A run cannot be called '{name}': write lower-case letters, digits, - and _ after --name.")


def sent_keys(config: RunConfig, name: str) -> JsonObject:
    """Return the keys of a run as they are sent to its server and its sites."""
    # A prompt template is a file, and sites read only files that their own policy names.
    return config.model_dump(mode="json") | {"output_dir": name, "prompt_template": None}


def write_job(config: RunConfig, name: str, folder: Path) -> Path:
    """Write a FLARE job in `folder`: the names of two classes, and the run's keys; return the job's folder."""
    check_name(name)
    keys = sent_keys(config, name)
    collab: JsonObject = {"collab_obj_ids": [], "props": {}}
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
    executor: JsonObject = {
        "path": "nvflare.collab.runtime.executor.CollabExecutor",
        "args": {"client_obj_id": "_client"},
    }
    executor["args"] |= collab | threads
    client = {
        "executors": [{"tasks": ["*"], "executor": executor}],
        "components": [{"id": "_client", "path": "weft.sites.flare.SiteJob", "args": {}}],
    }
    filters: JsonObject = {"format_version": 2, "task_data_filters": [], "task_result_filters": []}
    least = max(1, config.min_clients)
    # @ALL: whatever sites are connected when the job starts.
    where = ["server", *config.sites] if config.sites else ["@ALL"]
    meta = {"name": name, "resource_spec": {}, "min_clients": least, "deploy_map": {"app": where}}
    meta[ROUNDS] = config.num_rounds
    job = folder / name
    (job / "app" / "config").mkdir(parents=True)
    for path, content in (
        (job / "meta.json", meta),
        (job / "app" / "config" / "config_fed_server.json", filters | server),
        (job / "app" / "config" / "config_fed_client.json", filters | client),
    ):
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return job
