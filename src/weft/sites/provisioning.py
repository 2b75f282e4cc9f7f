"""Provisioning: start-up kits with certificates and settings, one folder for each party, by NVIDIA FLARE.

The kits forbid what FLARE would allow and no run needs: sites and server load only the classes named here, jobs with
code are refused, no logs are streamed, nobody runs shell commands on the machine of another party.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from weft.errors import ConfigError, MissingExtra
from weft.json_types import JsonObject

ADMIN, SUPERVISOR = "admin@weft.local", "supervisor@weft.local"
CLASSES = [
    "weft.sites.flare.ServerJob",
    "weft.sites.flare.SiteJob",
    "nvflare.collab.runtime.controller.CollabController",
    "nvflare.collab.runtime.executor.CollabExecutor",
]
PERMISSIONS = {
    "submit_job": "any",
    "clone_job": "none",
    "manage_job": "any",
    "download_job": "none",
    "view": "any",
    "app_command": "any",
    "operate": "any",
    "shell_commands": "none",
    "byoc": "none",
}
REPEAT = {"server": {"submit_job": "none", "clone_job": "any"}, "client": {}}
"""Permissions of the supervisor at the server and at sites: it may repeat a job, and never submit one."""
NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")


def make_kits(host: str, clients: Sequence[str], out: Path, port: int = 8002) -> None:
    """Write a kit for the server, each site and the administrator, and the certificate authority that signs them.

    Args:
        host: name or address at which sites and administrator reach the server.
        clients: names of the sites.
        out: a folder that does not exist, or is empty.
        port: the port that the server listens to.

    Raises:
        ConfigError: a name is not allowed, or the folder is not empty.
        MissingExtra: FLARE is not installed.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"'{out}' is not empty: give a new folder, or add a site with `weft server add`.")
    if not clients:
        raise ConfigError("No site is named: write --clients hospital_a,hospital_b.")
    _provision(out, {"host": host, "port": port, "clients": list(clients)}, list(clients), first=True)


def add_kit(kits: Path, client: str) -> Path:
    """Write the kit of one more site, signed by the same authority; ConfigError if a site has this name."""
    project = read_project(kits)
    if client in project["clients"]:
        raise ConfigError(f"There is a site '{client}' already: its kit is '{kits / client}'.")
    _provision(kits, project | {"clients": [*project["clients"], client]}, [client], first=False)
    return kits / client


def read_project(kits: Path) -> JsonObject:
    """Return host, port and sites of a folder of kits; ConfigError if it holds no kits."""
    try:
        project = json.loads((kits / "authority" / "project.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"'{kits}' holds no kits with their authority: make them with `weft server init`.") from None
    return dict(project)


def kind_of_kit(kit: Path) -> str:
    """Return "server", "client" or "admin"; ConfigError if the folder is no kit."""
    for kind in ("server", "client", "admin"):
        if (kit / "startup" / f"fed_{kind}.json").is_file():
            return kind
    raise ConfigError(f"'{kit}' is no start-up kit: give the folder that holds startup/ and local/.")


def _provision(out: Path, project: JsonObject, clients: list[str], *, first: bool) -> None:
    """Let FLARE make the kits of a project, and move some of them to `out`.

    Args:
        out: folder of the kits.
        project: host, port and names of all sites.
        clients: the sites whose kits are new.
        first: whether the kits of the server, the supervisor and the administrator are new too.
    """
    for name in project["clients"]:
        if not NAME.fullmatch(name) or name in ("server", "admin", "authority", project["host"]):
            raise ConfigError(f"A site cannot be called '{name}': write lower-case letters, digits, - and _.")
    try:
        from nvflare.lighter.prov_utils import prepare_builders
        from nvflare.lighter.provision import prepare_project
        from nvflare.lighter.provisioner import Provisioner
    except ImportError:
        raise MissingExtra("nvflare", "nvflare", "A run of sites") from None
    description = _flare_project(project)
    work = out / "authority"
    work.mkdir(parents=True, exist_ok=True)
    work.chmod(0o700)  # whoever reads the authority's key can make kits
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        Provisioner(str(work), prepare_builders(description)).provision(prepare_project(description))
    output = max((work / "weft").glob("prod_*"))  # FLARE numbers its outputs and never overwrites one
    names = {"server": project["host"], "server/supervisor": SUPERVISOR, "admin": ADMIN} if first else {}
    for name, source in (names | {client: client for client in clients}).items():
        shutil.move(str(output / source), str(out / name))
        _harden(out / name, project)
    shutil.rmtree(output)
    (work / "project.json").write_text(json.dumps(project, indent=1) + "\n", encoding="utf-8")


def _flare_project(project: JsonObject) -> JsonObject:
    """Return a project in the form that FLARE's provisioning reads."""
    host, port = project["host"], project["port"]
    server = {"name": host, "type": "server", "org": "weft", "fed_learn_port": port, "default_host": host}
    clients = [{"name": name, "type": "client", "org": name.replace("-", "_")} for name in project["clients"]]
    admin = {"name": ADMIN, "type": "admin", "org": "weft", "role": "project_admin"}
    supervisor = {"name": SUPERVISOR, "type": "admin", "org": "weft", "role": "lead"}
    path = "nvflare.lighter.impl"
    return {
        "api_version": 3,
        "name": "weft",
        "description": "Weft",
        "participants": [server, *clients, admin, supervisor],
        "builders": [
            {"path": f"{path}.workspace.WorkspaceBuilder"},
            {"path": f"{path}.static_file.StaticFileBuilder", "args": {"config_folder": "config", "scheme": "tcp"}},
            {"path": f"{path}.cert.CertBuilder"},
            {"path": f"{path}.signature.SignatureBuilder"},
        ],
    }


def _harden(kit: Path, project: JsonObject) -> None:
    """Forbid what no run needs, and make private keys readable for their owner only."""
    for key in kit.glob("startup/*.key"):
        key.chmod(0o600)
    local = kit / "local"
    settings = json.loads((local / "resources.json.default").read_text(encoding="utf-8"))
    kind = kind_of_kit(kit)
    if kind != "admin":
        settings["class_list_enforcement_mode"] = "enforce"
        settings["class_allow_list"] = CLASSES
        settings["allow_log_streaming"] = False
        for server in settings.get("servers", []):
            server["heart_beat_timeout"] = 30
        streamers = ("site_log_streamer", "log_receiver")
        settings["components"] = [part for part in settings["components"] if part["id"] not in streamers]
        (local / "resources.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        rules = {
            "format_version": "1.0",
            "permissions": {"project_admin": PERMISSIONS, "lead": PERMISSIONS | REPEAT[kind]},
        }
        (local / "authorization.json").write_text(json.dumps(rules, indent=1) + "\n", encoding="utf-8")


def settle(kit: Path) -> None:
    """Make a server store its jobs in its kit, wherever the kit is now."""
    path = kit / "local" / "resources.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    jobs = str(kit.resolve() / "jobs")
    settings["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = f"{jobs}/snapshots"
    for part in settings["components"]:
        if part["id"] == "job_manager":
            part["args"]["uri_root"] = f"{jobs}/store"
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
