"""Start-up kits: certificates and settings, one folder for each party, made by NVIDIA FLARE's provisioning.

What FLARE would allow beyond what a run needs is taken away: sites and server load only the classes named here, jobs
with code are refused, no logs are streamed, nobody runs shell commands on another's machine.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weft.errors import ConfigError, MissingExtra

ADMIN, SUPERVISOR = "admin@weft.local", "supervisor@weft.local"
DAYS = 360
"""How long certificates are valid; FLARE's own."""
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
"""What the supervisor of a server may do there and at sites: repeat a job, never submit one."""
NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")


def make_kits(host: str, clients: Sequence[str], out: Path, port: int = 8002) -> None:
    """Write a kit for the server, each client and the administrator, and the authority that signed them.

    Args:
        host: name or address by which everybody reaches the server.
        clients: names of the sites.
        out: a folder that is not there, or empty.
        port: the one port that is listened to.

    Raises:
        ConfigError: a name that cannot be, or a folder that is in use.
        MissingExtra: FLARE is not installed.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"'{out}' is not empty: give a new folder, or add a site with `weft server add`.")
    if not clients:
        raise ConfigError("No site is named: write --clients hospital_a,hospital_b.")
    _provision(out, {"host": host, "port": port, "clients": list(clients)}, list(clients), first=True)


def add_kit(kits: Path, client: str) -> Path:
    """Write the kit of one more site, signed by the same authority; ConfigError for a name that is taken."""
    known = read_project(kits)
    if client in known["clients"]:
        raise ConfigError(f"There is a site '{client}' already: its kit is '{kits / client}'.")
    _provision(kits, known | {"clients": [*known["clients"], client]}, [client], first=False)
    return kits / client


def read_project(kits: Path) -> dict[str, Any]:
    """Return host, port and sites of a folder of kits; ConfigError where it is none."""
    try:
        found = json.loads((kits / "authority" / "project.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(f"'{kits}' holds no kits with their authority: make them with `weft server init`.") from None
    return dict(found)


def kind_of_kit(kit: Path) -> str:
    """Return "server", "client" or "admin"; ConfigError for what is no kit."""
    for kind in ("server", "client", "admin"):
        if (kit / "startup" / f"fed_{kind}.json").is_file():
            return kind
    raise ConfigError(f"'{kit}' is no start-up kit: give the folder that holds startup/ and local/.")


def _provision(out: Path, project: dict[str, Any], wanted: list[str], *, first: bool) -> None:
    for name in project["clients"]:
        if not NAME.fullmatch(name) or name in ("server", "admin", "authority", project["host"]):
            raise ConfigError(f"A site cannot be called '{name}': write lower-case letters, digits, - and _.")
    try:
        from nvflare.lighter.prov_utils import prepare_builders
        from nvflare.lighter.provision import prepare_project
        from nvflare.lighter.provisioner import Provisioner
    except ImportError:
        raise MissingExtra("nvflare", "nvflare", "A run of sites") from None
    words = _words(project)
    work = out / "authority"
    work.mkdir(parents=True, exist_ok=True)
    work.chmod(0o700)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        Provisioner(str(work), prepare_builders(words)).provision(prepare_project(words))
    made = max((work / "weft").glob("prod_*"))
    names = {"server": project["host"], "server/supervisor": SUPERVISOR, "admin": ADMIN} if first else {}
    for name, source in (names | {client: client for client in wanted}).items():
        shutil.move(str(made / source), str(out / name))
        _harden(out / name, project)
    shutil.rmtree(made)
    (work / "project.json").write_text(json.dumps(project, indent=1) + "\n", encoding="utf-8")


def _words(project: dict[str, Any]) -> dict[str, Any]:
    """Return FLARE's description of a project."""
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


def _harden(kit: Path, project: dict[str, Any]) -> None:
    """Take away what a run does not need, and keep keys to their owner."""
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
        left_out = ("site_log_streamer", "log_receiver")
        settings["components"] = [part for part in settings["components"] if part["id"] not in left_out]
        (local / "resources.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        rules = {
            "format_version": "1.0",
            "permissions": {"project_admin": PERMISSIONS, "lead": PERMISSIONS | REPEAT[kind]},
        }
        (local / "authorization.json").write_text(json.dumps(rules, indent=1) + "\n", encoding="utf-8")


def settle(kit: Path) -> None:
    """Let a server keep its jobs in its own kit, wherever that lies now."""
    path = kit / "local" / "resources.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    place = str(kit.resolve() / "jobs")
    settings["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = f"{place}/snapshots"
    for part in settings["components"]:
        if part["id"] == "job_manager":
            part["args"]["uri_root"] = f"{place}/store"
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
