"""A federation of sites on this machine alone, to try and to test: everything is real but the distance."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from weft import kinds, plugins
from weft.config import RunConfig, build
from weft.core.seeds import generator
from weft.data.load import resolve_source, whole_rows
from weft.data.parts import Selection
from weft.data.sources import selection_of, split_seed
from weft.errors import ConfigError, DataError, RunError
from weft.plugins import PartFile
from weft.sites import part_files
from weft.sites.admin import admin_session
from weft.sites.processes import command, end, start, start_supervisor
from weft.sites.provisioning import make_kits
from weft.sites.watcher import watch

OWN_KEYS = ("instruction_column", "response_column", "instruction_prefix")
"""Of a run's keys, those of its data, which sites set for themselves."""
READY = 60.0
"""Seconds that server and sites have to find each other."""


class LocalFederation:
    """Kits, and the processes that run by them."""

    def __init__(self, work: Path, policies: Mapping[str, Path], port: int | None = None) -> None:
        """Make kits for sites by these laws.

        Args:
            work: a folder for all of it; kits that were there are made anew.
            laws: each site's site.yaml.
            port: of the server; None: a free one.
        """
        self.work, self.policies = work, dict(policies)
        self.kits = work / "kits"
        self.port = port or free_port()
        kept = self.kits / "server" / "runs"
        if kept.is_dir():
            shutil.move(kept, work / "runs")
        shutil.rmtree(self.kits, ignore_errors=True)
        make_kits("localhost", list(self.policies), self.kits, self.port)
        if (work / "runs").is_dir():
            shutil.move(work / "runs", kept)
        self.parties: dict[str, subprocess.Popen[bytes]] = {}
        self.supervisor: subprocess.Popen[bytes] | None = None

    @property
    def admin(self) -> Path:
        """The administrator's kit."""
        return self.kits / "admin"

    def start(self, name: str) -> None:
        """Start the server, or a site."""
        kit = self.kits / name
        self.parties[name] = start(*command(kit, self.policies.get(name)), kit)
        if name == "server" and self.supervisor is None:
            self.supervisor = start_supervisor(kit)

    def stop(self, name: str) -> None:
        """End the server, or a site."""
        end(self.parties.pop(name))

    def begin(self) -> None:
        """Start everybody, and wait until the sites are connected; RunError where they are not in time."""
        for name in ("server", *self.policies):
            self.start(name)
        self.wait(set(self.policies))

    def wait(self, sites: set[str], patience: float = READY) -> None:
        """Wait until these sites are connected; RunError where they are not in time."""
        until, why = time.monotonic() + patience, "they did not connect"
        while time.monotonic() < until:
            try:
                with admin_session(self.admin, patience=5.0) as session:
                    while time.monotonic() < until:
                        if sites <= set(session.sites()):
                            return
                        time.sleep(0.2)
            except RunError as error:
                why = str(error)
            time.sleep(0.3)
        raise RunError(f"The sites were not there within {patience:g} s ({why}): see the console.log in {self.kits}.")

    def close(self) -> None:
        """End everybody: first who would begin runs again, then the sites."""
        if self.supervisor is not None:
            self.supervisor.kill()
            self.supervisor.wait()
            self.supervisor = None
        for name in [*(name for name in self.parties if name != "server"), "server"]:
            if name in self.parties:
                self.stop(name)


@contextmanager
def federation(work: Path, policies: Mapping[str, Path], port: int | None = None) -> Iterator[LocalFederation]:
    """Run a server and sites by these laws, and end them."""
    made = LocalFederation(work, policies, port)
    try:
        made.begin()
        yield made
    finally:
        made.close()


def up(
    config: RunConfig,
    name: str,
    work: Path,
    *,
    count: int | None,
    policies: Mapping[str, Path],
    port: int | None,
    hear: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Run a configuration by a server and sites on this machine; return the last status.

    Args:
        config: a run in one process: its clients become sites, or its rows are dealt to `count` of them.
        name: of the run.
        work: a folder for all of it.
        count: sites to deal the rows to, where no clients are named.
        laws: sites with a site.yaml of their own, instead of both.
        port: of the server; None: a free one.
        hear: told what the run says.

    Raises:
        ConfigError: no data, or a run that sites cannot have.
        RunError: the federation did not come up, or fell too often.
    """
    work.mkdir(parents=True, exist_ok=True)
    made = dict(policies) or _laws(config, work, count)
    left = {"dataset_name", "clients", "eval_dataset_name", "dataset_split", "eval_dataset_split", "runtime"}
    keys = {key: value for key, value in config.model_dump(mode="json").items() if key not in left}
    run = build(keys | {"runtime": "nvflare", "sites": config.sites or list(made)})
    sent = part_files.to_send(run)
    with federation(work, made, port) as parties:
        for _, file in kinds.files_of(run.model_dump()):
            source, folder = plugins.read(file), parties.kits / "server" / part_files.FOLDER
            folder.mkdir(exist_ok=True)
            (folder / f"{plugins.digest_of(source)[:16]}.py").write_bytes(source)
        return watch(parties.admin, sent, name, hear)


def _laws(config: RunConfig, work: Path, count: int | None) -> dict[str, Path]:
    """Write a site.yaml for every client of a run: it agrees to this model."""
    data: dict[str, dict[str, str | None]]
    if config.clients:
        splits = {"split": config.dataset_split, "eval_split": config.eval_dataset_split}
        data = {client.name: {"path": client.data, "eval": client.eval} | splits for client in config.clients}
    elif config.dataset_name:
        data = _dealt(config, work / "sites", count or config.num_clients)
    else:
        raise ConfigError("No data is named: write --dataset_name FILE, clients, or --site NAME=site.yaml.")
    files = [Path(file.path).expanduser().resolve() for _, file in kinds.files_of(config.model_dump())]
    parts = {str(path): plugins.digest_of(plugins.read(PartFile(str(path), ""))) for path in files}
    made = {}
    for site, own in data.items():
        columns = {key: getattr(config, key) for key in OWN_KEYS}
        if config.prompt_template is not None:
            columns["prompt_template"] = str(Path(config.prompt_template).expanduser().resolve())
        places = {key: str(Path(place).resolve()) for key in ("path", "eval") if (place := own.get(key))}
        own = {key: value for key, value in own.items() if value} | places | columns
        accept = {"models": [config.model_name_or_path], "parts": parts}
        policy = {"data": own, "accept": accept, "threads": config.threads}
        made[site] = work / "sites" / f"{site}.yaml"
        made[site].parent.mkdir(parents=True, exist_ok=True)
        made[site].write_text(yaml.safe_dump(policy, sort_keys=False), encoding="utf-8")
    return made


def _dealt(config: RunConfig, folder: Path, count: int) -> dict[str, dict[str, str | None]]:
    """Deal the rows of a run's source to files at random, one a site, and those to measure on where these are apart.

    Raises:
        DataError: they cannot be read, there are fewer than sites, or some are in both.
    """
    train, held = _rows(config, selection_of(config)), _rows(config, selection_of(config, held_out=True))
    both = set(train) & set(held)
    if both and config.held_out_overlap == "refuse":
        raise DataError(
            f"{len(both)} of the held-out rows are also among the rows to train on: name other rows with "
            "--eval_dataset_name or --eval_dataset_split, or write --held_out_overlap leave_out to train without them."
        )
    train = [row for row in train if row not in both]
    for rows in (train, held):
        if len(rows) < count and (rows or rows is train):
            raise DataError(f"There are {count} sites and {len(rows)} rows for them: write fewer --num_clients.")
    folder.mkdir(parents=True, exist_ok=True)
    sample = generator(split_seed(config), "sites").permutation(len(train))[: config.dataset_sample]
    made: dict[str, dict[str, str | None]] = {}
    for number in range(count):
        own = {"path": [train[int(row)] for row in sample[number::count]], "eval": held[number::count]}
        places = {"path": folder / f"site_{number}.jsonl", "eval": folder / f"site_{number}.eval.jsonl"}
        for key, rows in own.items():
            if rows:
                places[key].write_text("".join(row + "\n" for row in rows), encoding="utf-8")
        made[f"site_{number}"] = {key: str(places[key]) if rows else None for key, rows in own.items()}
    return made


def _rows(config: RunConfig, wanted: Selection) -> list[str]:
    """Return the rows to train on or to measure on, as lines of JSON; none to measure on where none are named."""
    name = config.dataset_name
    if wanted.held_out:
        name = config.eval_dataset_name or (name if config.eval_dataset_split else None)
    if name is None:
        return []
    rows = whole_rows(resolve_source(name, config.local_data_dir), wanted, token=config.token or None)
    return [json.dumps(row, default=str) for row in rows]


def free_port() -> int:
    """Return a port that nobody listens to now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
