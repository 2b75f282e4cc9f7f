"""The settings in a start-up kit: what FLARE's provisioning writes, made stricter.

The kits forbid what FLARE would allow and no run needs: sites and server load only the classes named here, jobs with
code are refused, no logs are streamed, nobody runs shell commands on the machine of another party. Each party's kit is
written by the Weft of whoever makes it; a site that asks for a certificate writes its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import ConfigError, MissingExtra
from weft.json_types import JsonObject
from weft.sites.authority import Authority, Identity, key_pem, new_key, pem, write_private

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

ADMIN, SUPERVISOR = "admin@weft.local", "supervisor@weft.local"
ADMIN_ROLE, SUPERVISOR_ROLE = "project_admin", "lead"
CLASSES = [
    "weft.sites.flare.ServerJob",
    "weft.sites.flare.SiteJob",
    "nvflare.collab.runtime.controller.CollabController",
    "nvflare.collab.runtime.executor.CollabExecutor",
]
GUARD, STORE = "weft.sites.guard.ServerGuard", "weft.sites.job_store.JobStore"
"""Classes that the server loads beside those of jobs."""
LOOPBACK = "weft.sites.loopback.LoopbackGuard"
"""A class that server and sites load."""
ADMIN_PERMISSIONS = {
    "submit_job": "any",
    "clone_job": "none",
    "manage_job": "any",
    "download_job": "none",
    "view": "any",
    "app_command": "any",
    "operate": "none",  # restarts, log levels: a party's own matter
    "configure_job_log": "none",
    "shell_commands": "none",
    "byoc": "none",
}
SUPERVISOR_PERMISSIONS = {
    "server": dict.fromkeys(("list_jobs", "get_job_meta", "check_status", "clone_job", "abort_job"), "any"),
    # Sites ask whether the submitter of a job, which repeats another, may submit it and end it.
    "client": dict.fromkeys(("submit_job", "abort_job"), "any"),
}
"""The commands that the supervisor may give; what is not named is denied."""
LOG_BYTES, LOG_FILES = 10 << 20, 5
"""Size at which a log starts a new file, and how many files are kept."""


def write_kits(project: JsonObject, kits: dict[Path, Identity]) -> None:
    """Write start-up kits without keys and certificates.

    Args:
        project: `host` and `port` of the server.
        kits: for each folder, which must not exist, whose kit it is.
    """
    try:
        from nvflare.lighter.prov_utils import prepare_builders
        from nvflare.lighter.provision import prepare_project
        from nvflare.lighter.provisioner import Provisioner
    except ImportError:
        raise MissingExtra("nvflare", "nvflare", "A run of sites") from None
    sites = [identity.name for identity in kits.values() if identity.kind == "client"]
    description = _flare_project(project, sites)
    with tempfile.TemporaryDirectory() as work:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            Provisioner(work, prepare_builders(description)).provision(prepare_project(description))
        output = max((Path(work) / "weft").glob("prod_*"))
        names = {"server": project["host"], "admin": ADMIN}
        for folder, identity in kits.items():
            shutil.copytree(output / names.get(identity.kind, identity.name), folder)
            _harden(folder, identity)


def write_identity(kit: Path, identity: Identity, authority: Authority, host: str) -> None:
    """Make a key for a kit and have its certificate signed; the key is in the kit alone."""
    key, public = new_key()
    install_identity(
        kit, authority.issue(identity, public, host if identity.kind == "server" else None), authority.root
    )
    write_private(kit / "startup" / f"{_stem(identity)}.key", key_pem(key))


def install_identity(kit: Path, certificate: Certificate, root: Certificate) -> None:
    """Write a certificate into a kit, and that of the authority."""
    stem = "server" if kind_of_kit(kit) == "server" else "client"
    write_private(kit / "startup" / f"{stem}.crt", pem(certificate))
    write_private(kit / "startup" / "rootCA.pem", pem(root))


def read_certificate(kit: Path) -> Certificate:
    """Return the certificate of a kit."""
    from cryptography import x509

    stem = "server" if kind_of_kit(kit) == "server" else "client"
    return x509.load_pem_x509_certificate((kit / "startup" / f"{stem}.crt").read_bytes())


def kind_of_kit(kit: Path) -> str:
    """Return "server", "client" or "admin"; ConfigError if the folder is no kit."""
    for kind in ("server", "client", "admin"):
        if (kit / "startup" / f"fed_{kind}.json").is_file():
            return kind
    raise ConfigError(f"'{kit}' is no start-up kit: give the folder that holds startup/ and local/.")


def _stem(identity: Identity) -> str:
    return "server" if identity.kind == "server" else "client"


def _flare_project(project: JsonObject, sites: list[str]) -> JsonObject:
    """Return a project in the form that FLARE's provisioning reads; it makes no keys."""
    host, port = project["host"], project["port"]
    server = {"name": host, "type": "server", "org": "weft", "fed_learn_port": port, "default_host": host}
    clients = [{"name": name, "type": "client", "org": organisation(name)} for name in sites]
    admin = {"name": ADMIN, "type": "admin", "org": "weft", "role": ADMIN_ROLE}
    path = "nvflare.lighter.impl"
    return {
        "api_version": 3,
        "name": "weft",
        "description": "Weft",
        "participants": [server, *clients, admin],
        "builders": [
            {"path": f"{path}.workspace.WorkspaceBuilder"},
            {"path": f"{path}.static_file.StaticFileBuilder", "args": {"config_folder": "config", "scheme": "tcp"}},
        ],
    }


def organisation(site: str) -> str:
    """Return a site's name as FLARE wants the name of its organisation."""
    return site.replace("-", "_")


def _harden(kit: Path, identity: Identity) -> None:
    """Forbid what no run needs, and make all files readable for their owner only."""
    local = kit / "local"
    if identity.kind == "admin":
        path = kit / "startup" / "fed_admin.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["admin"]["username"] = identity.name
        _write(path, settings)
    else:
        settings = json.loads((local / "resources.json.default").read_text(encoding="utf-8"))
        settings["class_list_enforcement_mode"] = "enforce"
        settings["class_allow_list"] = CLASSES
        settings["allow_log_streaming"] = False
        for server in settings.get("servers", []):
            server["heart_beat_timeout"] = 30
        streamers = ("site_log_streamer", "log_receiver")
        settings["components"] = [part for part in settings["components"] if part["id"] not in streamers]
        settings["components"].append({"id": "loopback", "path": LOOPBACK, "args": {}})
        if identity.kind == "server":
            for part in settings["components"]:
                if part["id"] == "job_manager":
                    part["path"] = STORE
            settings["components"].append({"id": "guard", "path": GUARD, "args": {}})
        _write(local / "resources.json", settings)
        roles = {ADMIN_ROLE: ADMIN_PERMISSIONS, SUPERVISOR_ROLE: SUPERVISOR_PERMISSIONS[identity.kind]}
        _write(local / "authorization.json", {"format_version": "1.0", "permissions": roles})
        _write(local / "log_config.json", _logging(local / "log_config.json.default"))
    for path in (kit, *kit.rglob("*")):
        path.chmod(0o700 if path.is_dir() or path.suffix == ".sh" else 0o600)


def _logging(default: Path) -> JsonObject:
    """Return FLARE's logging with one log of all and one of errors, each of bounded size."""
    settings: JsonObject = json.loads(default.read_text(encoding="utf-8"))
    kept = ["consoleHandler", "logFileHandler", "errorFileHandler"]  # the others repeat these in other forms
    settings["handlers"] = {name: settings["handlers"][name] for name in kept}
    for name in kept[1:]:
        settings["handlers"][name] |= {"maxBytes": LOG_BYTES, "backupCount": LOG_FILES}
    settings["loggers"]["root"]["handlers"] = kept
    return settings


def _write(path: Path, settings: JsonObject) -> None:
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
