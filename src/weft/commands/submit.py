"""`weft submit RUN.yaml`, and `weft status | logs | stop`: what an administrator does with the server of sites."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from weft.arguments import Parser
from weft.config import RunConfig, gather, settle
from weft.core.declarations import TRAIN_LOSS
from weft.errors import ConfigError, RunError
from weft.launch.prompt_texts import with_prompt_texts
from weft.verbs import file_and_flags, print_notices
from weft.verbs import parser as verb_parser

VERBS = ("sft", "pretrain", "dpo", "grpo", "prompt")


def run(argv: list[str]) -> int:
    """Hand a run in."""
    arguments, config, name = read_run("submit", argv)
    from weft.sites.admin import admin_session
    from weft.sites.part_files import to_send
    from weft.sites.watcher import watch

    config, kit = to_send(config), Path(arguments.kit)
    if arguments.wait:
        last = watch(kit, config, name, tell)
        if last.get("state") == "stopped":
            raise RunError(f"The run '{name}' was stopped: `weft submit` goes on with it.")
        if last.get("state") != "done":
            raise RunError(f"The run '{name}' failed: {last.get('error', 'its log at the server says more')}")
        return 0
    with admin_session(kit) as session:
        print(session.submit(config, name))
    return 0


def read_run(verb: str, argv: list[str]) -> tuple[argparse.Namespace, RunConfig, str]:
    """Return the arguments, the run that they describe, and its name; ConfigError for one that cannot be."""
    which = argv[0] if argv and argv[0] in VERBS else "sft"
    words = argv[1:] if argv and argv[0] in VERBS else argv
    here = "A server, its sites and a run on this machine, in one terminal."
    what = here if verb == "up" else "Hand a run to the server of a federation of sites."
    made = verb_parser(verb, what, trains=False)
    made.usage = f"weft {verb} [{'|'.join(VERBS)}] RUN.yaml [--KEY VALUE ...]"
    made.add_argument("--kit", default="kits/admin", help="the administrator's kit [kits/admin]")
    made.add_argument("--name", help="of the run at the server [the file's]; the same name goes on with the same run")
    made.add_argument("--wait", action="store_true", help="stay to its end, and print its rounds")
    if verb == "up":
        made.add_argument("--site", action="append", default=[], metavar="NAME=FILE", help="a site's own site.yaml")
        made.add_argument("--work", help="folder of kits and results [weft-up]")
        made.add_argument("--port", type=int, help="of the server, on this machine alone [a free one]")
    arguments = made.parse(words)
    values, flags = file_and_flags(arguments)
    if verb != "up":
        flags["runtime"] = "nvflare"
    module = importlib.import_module(f"weft.commands.{which}")
    defaults: Any = getattr(module, "defaults", lambda _: {})
    # `weft up` makes sites of a run that has its data at one place.
    config, said = settle(*gather(values, flags), defaults, exempt=("sites", "silence_timeout") if verb == "up" else ())
    print_notices(said)
    name = arguments.name or Path(arguments.file or arguments.config or "run").stem.lower()
    config = with_prompt_texts(config)
    if config.trust_remote_code:
        raise ConfigError(
            "A run of sites carries no code: leave out --trust_remote_code, and name a model without any."
        )
    return arguments, config, name


def tell(said: dict[str, Any]) -> None:
    """Print what is new of a run's status."""
    rounds = said.get("rounds") or []
    if said.get("refused"):
        for site, why in said["refused"].items():
            print(f"weft: the site '{site}' takes no part: {why}.", file=sys.stderr)
    last = rounds[-1] if rounds else {}
    print(json.dumps({"state": said.get("state")} | last, default=str), flush=True)


def _simple(verb: str, description: str, argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog=f"weft {verb}", description=description, allow_abbrev=False)
    parser.add_argument("name", nargs="?", help="of the run, or the number of its job [the newest]")
    parser.add_argument("--kit", default="kits/admin", help="the administrator's kit [kits/admin]")
    if verb == "logs":
        parser.add_argument("--server", default="kits/server", help="the server's kit, on its machine [kits/server]")
    return parser.parse(argv)


def status(argv: list[str]) -> int:
    """Print the sites that are there, and how runs are: the last job of each, or all of the one that is named."""
    from weft.sites.admin import admin_session
    from weft.sites.watcher import named

    arguments = _simple("status", "How the sites and the runs are.", argv)
    with admin_session(Path(arguments.kit)) as session:
        print(f"sites: {', '.join(sorted(session.sites())) or 'none'}")
        seen: set[str] = set()
        for job in session.jobs():
            name, number = named(job), str(job["job_id"])
            if arguments.name not in (None, name, number) or (arguments.name is None and name in seen):
                continue  # a run may have had many jobs
            seen.add(name)
            said = session.status(number) if "RUNNING" in str(job.get("status")) else None
            print(f"{name}  {number}  {job.get('status')}  {_short(said)}".rstrip())
            for site, why in (said or {}).get("refused", {}).items():
                print(f"  {site} takes no part: {why}")
    return 0


def _short(said: dict[str, Any] | None) -> str:
    rounds = [one["round"] for one in (said or {}).get("rounds", []) if "round" in one]
    if not rounds:
        return str((said or {}).get("state", ""))
    last = rounds[-1]
    loss = last.get(TRAIN_LOSS.name)
    return f"round {last['round']}" + ("" if loss is None else f", {TRAIN_LOSS.on_line(loss)}")


def logs(argv: list[str]) -> int:
    """Print a run's log, on the server's machine."""
    arguments = _simple("logs", "What a run said, on the server's machine.", argv)
    folder = Path(arguments.server) / "runs"
    found = sorted(folder.glob(f"{arguments.name or '*'}.log"), key=os.path.getmtime)
    if not found:
        raise ConfigError(f"There is no log of a run in '{folder}': give the server's kit by --server, on its machine.")
    print(found[-1].read_text(encoding="utf-8"), end="")
    return 0


def stop(argv: list[str]) -> int:
    """End a run; what it has committed stays, and the same name goes on with it."""
    from weft.sites.admin import OVER, admin_session
    from weft.sites.watcher import named

    arguments = _simple("stop", "End a run; the rounds that are done are kept.", argv)
    with admin_session(Path(arguments.kit)) as session:
        jobs = [job for job in session.jobs() if arguments.name in (None, named(job), str(job["job_id"]))]
        for job in jobs:
            if not str(job.get("status")).startswith(OVER) and session.end(str(job["job_id"])):
                print(job["job_id"])
                return 0
        fell = bool(jobs) and "COMPLETED" not in str(jobs[0].get("status"))
        if arguments.name and fell:  # it waits to be handed in again
            for job in jobs:
                session.forget(str(job["job_id"]))
            print(f"'{arguments.name}' is not handed in again.")
            return 0
    raise ConfigError(f"No run{f' {arguments.name!r}' if arguments.name else ''} is under way.")
