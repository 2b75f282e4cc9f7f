"""A server and sites on this machine alone, for trials and tests; kits, processes and FLARE are the real ones."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from weft import kinds, plugins
from weft.config import RunConfig, build
from weft.core.seeds import generator
from weft.data.load import resolve_source, whole_rows
from weft.data.parts import Selection
from weft.data.sources import selection_of, split_seed
from weft.errors import ConfigError, DataError, RunError
from weft.json_types import JsonObject
from weft.launch.mixtures import named_domains
from weft.plugins import PartFile
from weft.sites import endpoints, part_files, run_limits
from weft.sites.admin import admin_session
from weft.sites.kit_key import make_key
from weft.sites.processes import command, end, private_files, start, start_supervisor
from weft.sites.provisioning import make_kits
from weft.sites.signals import as_interrupts, held_back
from weft.sites.watcher import watch
from weft.sites.work_folder import own_folder, renew_kits

DATA_KEYS = ("instruction_column", "response_column", "instruction_prefix")
"""Keys of a run that are about its data, which sites set for themselves."""
READY = 60.0
"""Seconds that the sites have to connect to the server."""


class LocalFederation:
    """A folder of kits, and the processes that run with them."""

    def __init__(self, work: Path, policies: Mapping[str, Path], port: int | None = None) -> None:
        """Make the kits.

        Args:
            work: folder of the federation; kits that were made there before are made anew, and their runs are kept.
            policies: path of each site's site.yaml.
            port: port of the server; None: a free one.

        Raises:
            ConfigError: there are kits that were made otherwise, or a name is not allowed.
        """
        self.work, self.policies = work, dict(policies)
        self.kits = work / "kits"
        self.port = port or free_port()
        with private_files():
            renew_kits(
                self.kits, list(self.policies), lambda out: make_kits("localhost", list(self.policies), out, self.port)
            )
        self.parties: dict[str, subprocess.Popen[bytes]] = {}
        self.supervisor: subprocess.Popen[bytes] | None = None

    @property
    def admin(self) -> Path:
        """The administrator's kit."""
        return self.kits / "admin"

    def start(self, name: str) -> None:
        """Start the server (with its supervisor), or a site."""
        kit = self.kits / name
        self.parties[name] = start(*command(kit, self.policies.get(name)), kit)
        if name == "server" and self.supervisor is None:
            self.supervisor = start_supervisor(kit)

    def stop(self, name: str) -> None:
        """End the server, or a site."""
        end(self.parties.pop(name))

    def begin(self) -> None:
        """Start server and sites, and wait until the sites are connected; RunError if they are not in time."""
        for name in ("server", *self.policies):
            self.start(name)
        self.wait(set(self.policies))

    def wait(self, sites: set[str], patience: float = READY) -> None:
        """Wait until these sites are connected; RunError if they are not after `patience` seconds."""
        until, why = time.monotonic() + patience, "the server does not list them"
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
        raise RunError(
            f"The sites did not connect within {patience:g} s ({why}): see the console.log of each kit in {self.kits}."
        )

    def close(self) -> None:
        """End all processes: first the supervisor, which would resubmit runs, then the sites, then the server."""
        if self.supervisor is not None:
            self.supervisor.kill()
            self.supervisor.wait()
            self.supervisor = None
        for name in [*(name for name in self.parties if name != "server"), "server"]:
            if name in self.parties:
                self.stop(name)


@contextmanager
def federation(work: Path, policies: Mapping[str, Path], port: int | None = None) -> Iterator[LocalFederation]:
    """Run a server and sites with these policies, and end them: also on Ctrl-C, SIGTERM, or a terminal that closes.

    Their processes are in sessions of their own, so that none ends by itself with this one.
    """
    parties = LocalFederation(work, policies, port)
    with as_interrupts():
        try:
            parties.begin()
            yield parties
        finally:
            with held_back():
                parties.close()


def up(
    config: RunConfig,
    name: str,
    work: Path,
    *,
    count: int | None,
    policies: Mapping[str, Path],
    port: int | None,
    hear: Callable[[JsonObject], None],
) -> JsonObject:
    """Run a configuration with a server and sites on this machine; return the last status.

    Args:
        config: a run in one process: its clients become sites, or its rows are dealt to `count` sites.
        name: name of the run.
        work: folder of the federation.
        count: number of sites to deal the rows to, if the run names no clients.
        policies: path of each site's site.yaml; if there are any, the run's data is not used.
        port: port of the server; None: a free one.
        hear: called with the run's status whenever it changes.

    Raises:
        ConfigError: the run names no data, or is no run for sites.
        RunError: the federation did not start, or the run ended early and was not resubmitted.
    """
    names = list(policies) or _site_names(config, count)
    at_sites = {"dataset_name", "clients", "eval_dataset_name", "dataset_split", "eval_dataset_split", "runtime"}
    keys = {key: value for key, value in config.model_dump(mode="json").items() if key not in at_sites}
    # Before rows are written: what is refused leaves nothing behind.
    run = build(keys | {"runtime": "nvflare", "sites": config.sites or names})
    with private_files(), own_folder(work):
        return _run(run, name, work, dict(policies) or _write_policies(config, work, names), port, hear)


def _run(
    run: RunConfig,
    name: str,
    work: Path,
    policies: Mapping[str, Path],
    port: int | None,
    hear: Callable[[JsonObject], None],
) -> JsonObject:
    """Submit a run to a federation of its own; return the last status, and raise as `up`."""
    submission = part_files.to_send(run)
    with federation(work, policies, port) as parties:
        # As an administrator would: the server loads parts only from this folder.
        for _, file in kinds.files_of(run.model_dump()):
            source, folder = plugins.read(file), parties.kits / "server" / part_files.FOLDER
            folder.mkdir(exist_ok=True)
            (folder / f"{plugins.digest_of(source)[:16]}.py").write_bytes(source)
        if getattr(kinds.load_part("protection", run.protection), "shares_key", False):
            make_key(parties.kits)
        if run.endpoint is not None:
            endpoints.write(parties.kits / "server" / endpoints.FILE, run.endpoint, run.endpoint_key)
        return watch(parties.admin, submission, name, hear)


def _site_names(config: RunConfig, count: int | None) -> list[str]:
    """Return the names of a run's clients, or those of sites that its rows are dealt to; ConfigError without data."""
    if config.clients:
        return [client.name for client in config.clients]
    if config.dataset_name:
        return [f"site_{number}" for number in range(count or config.num_clients)]
    raise ConfigError("No data is named: write --dataset_name FILE, clients, or --site NAME=site.yaml.")


def _write_policies(config: RunConfig, work: Path, names: Sequence[str]) -> dict[str, Path]:
    """Write a site.yaml for every client of a run, which accepts the run's model and parts; return their paths."""
    data: dict[str, dict[str, str | None]]
    if config.clients:
        splits = {"split": config.dataset_split, "eval_split": config.eval_dataset_split}
        data = {client.name: {"path": client.data, "eval": client.eval} | splits for client in config.clients}
    else:
        data = _deal_rows(config, work / "sites", names)
    files = [Path(file.path).expanduser().resolve() for _, file in kinds.files_of(config.model_dump())]
    parts = {str(path): plugins.digest_of(plugins.read(PartFile(str(path), ""))) for path in files}
    policies = {}
    for site, source in data.items():
        columns = {key: getattr(config, key) for key in DATA_KEYS}
        if config.prompt_template is not None:
            columns["prompt_template"] = str(Path(config.prompt_template).expanduser().resolve())
        paths = {key: str(Path(path).resolve()) for key in ("path", "eval") if (path := source.get(key))}
        rows = {key: value for key, value in source.items() if value} | paths | columns
        models = [config.model_name_or_path, *filter(None, [config.endpoint_model])]
        limits = run_limits.beyond(config.model_dump())
        # All rows lie on this machine already, so that there is nobody to keep a report on few of them from.
        told = {"min_report_rows": 1, "statistics": config.data_statistics}
        told["partly_encrypted"] = bool(config.encrypt)
        domains = {"domains": list(mixed)} if (mixed := named_domains(config)) else {}
        accept = {"models": models, "parts": parts, "limits": limits} | told | domains
        endpoint = {"endpoint": config.endpoint, "endpoint_key": config.endpoint_key} if config.endpoint else {}
        folders = [str(Path(folder).expanduser().resolve()) for folder in config.task_data]
        tested = {"task_data": folders} if config.contamination and folders else {}
        policy = {"data": rows, "accept": accept, "threads": config.threads} | endpoint | tested
        policies[site] = work / "sites" / f"{site}.yaml"
        policies[site].parent.mkdir(parents=True, exist_ok=True)
        policies[site].write_text(yaml.safe_dump(policy, sort_keys=False), encoding="utf-8")
    return policies


def _deal_rows(config: RunConfig, folder: Path, names: Sequence[str]) -> dict[str, dict[str, str | None]]:
    """Deal the rows of a run's data set to files at random, one for each site, and its held-out rows if it has any.

    Returns:
        For each site the paths of its files: `path`, and `eval` or None.

    Raises:
        DataError: the rows cannot be read, are fewer than the sites, or some are also held out.
    """
    train, held_out = _rows(config, selection_of(config)), _rows(config, selection_of(config, held_out=True))
    both = set(train) & set(held_out)
    if both and config.held_out_overlap == "refuse":
        raise DataError(
            f"{len(both)} of the held-out rows are also among the rows to train on: name other rows with "
            "--eval_dataset_name or --eval_dataset_split, or write --held_out_overlap leave_out to train without them."
        )
    train, count = [row for row in train if row not in both], len(names)
    for rows in (train, held_out):
        if len(rows) < count and (rows or rows is train):
            raise DataError(f"There are {count} sites and {len(rows)} rows for them: write fewer --num_clients.")
    folder.mkdir(parents=True, exist_ok=True)
    sample = generator(split_seed(config), "sites").permutation(len(train))[: config.dataset_sample]
    paths: dict[str, dict[str, str | None]] = {}
    for number, name in enumerate(names):
        share = {"path": [train[int(row)] for row in sample[number::count]], "eval": held_out[number::count]}
        files = {"path": folder / f"{name}.jsonl", "eval": folder / f"{name}.eval.jsonl"}
        for key, rows in share.items():
            if rows:
                files[key].write_text("".join(row + "\n" for row in rows), encoding="utf-8")
        paths[name] = {key: str(files[key]) if rows else None for key, rows in share.items()}
    return paths


def _rows(config: RunConfig, source: Selection) -> list[str]:
    """Return the rows to train on, or the held-out rows, as lines of JSON; no held-out rows if the run names none."""
    name = config.dataset_name
    if source.held_out:
        name = config.eval_dataset_name or (name if config.eval_dataset_split else None)
    if name is None:
        return []
    rows = whole_rows(resolve_source(name, config.local_data_dir), source, token=config.token or None)
    return [json.dumps(row, default=str) for row in rows]


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
