"""`weft submit RUN.yaml` and `weft status | logs | stop`: an administrator's commands to the server of sites."""

from __future__ import annotations

import argparse
import importlib
import os
from pathlib import Path

from weft.arguments import Parser
from weft.config import RunConfig, gather, settle
from weft.errors import ConfigError
from weft.launch.prompt_texts import with_prompt_texts
from weft.verbs import Defaults, file_and_flags, print_notices
from weft.verbs import parser as verb_parser

VERBS = ("sft", "pretrain", "dpo", "grpo", "prompt")


def run(argv: list[str]) -> int:
    """Submit a run."""
    arguments, config, name = read_run("submit", argv)
    from weft.sites.admin import admin_session
    from weft.sites.part_files import to_send
    from weft.sites.run_status import RunPrinter, require_result
    from weft.sites.watcher import watch

    config, kit = to_send(config), Path(arguments.kit)
    if arguments.wait:
        try:
            require_result(name, watch(kit, config, name, RunPrinter()))
        except KeyboardInterrupt:
            print_notices(f"interrupted; the run '{name}' goes on at the server, and `weft stop {name}` ends it.")
            return 130
        return 0
    with admin_session(kit) as session:
        print(session.submit(config, name))
    return 0


def read_run(verb: str, argv: list[str]) -> tuple[argparse.Namespace, RunConfig, str]:
    """Return the parsed arguments, the run that they describe, and its name; ConfigError if it is no run for sites.

    Args:
        verb: "submit" or "up".
        argv: the words after the verb; the first may name the training verb, else it is sft.
    """
    training = argv[0] if argv and argv[0] in VERBS else "sft"
    words = argv[1:] if argv and argv[0] in VERBS else argv
    description = "Submit a run to the server of a federation of sites."
    if verb == "up":
        description = "A server, its sites and a run on this machine, in one terminal."
    parser = verb_parser(verb, description, trains=False)
    parser.usage = f"weft {verb} [{'|'.join(VERBS)}] RUN.yaml [--KEY VALUE ...]"
    parser.add_argument("--kit", default="kits/admin", help="the administrator's kit [kits/admin]")
    parser.add_argument("--name", help="of the run at the server [the file's]; the same name goes on with the same run")
    parser.add_argument("--wait", action="store_true", help="stay to its end, and print its rounds")
    if verb == "up":
        parser.add_argument("--site", action="append", default=[], metavar="NAME=FILE", help="a site's own site.yaml")
        parser.add_argument("--work", help="folder of kits and results [weft-up]")
        parser.add_argument("--port", type=int, help="of the server, on this machine alone [a free one]")
    arguments = parser.parse(words)
    values, flags = file_and_flags(arguments)
    if verb != "up":
        flags["runtime"] = "nvflare"
    module = importlib.import_module(f"weft.commands.{training}")
    defaults: Defaults = getattr(module, "defaults", lambda _: {})
    # `weft up` turns a run with its data in one place into a run of sites, which alone has these keys.
    exempt = ("sites", "silence_timeout") if verb == "up" else ()
    config, warning = settle(*gather(values, flags), defaults, exempt=exempt)
    print_notices(warning)
    name = arguments.name or Path(arguments.file or arguments.config or "run").stem.lower()
    config = with_prompt_texts(config)
    if config.trust_remote_code:
        raise ConfigError(
            "A run of sites carries no code: leave out --trust_remote_code, and name a model without any."
        )
    return arguments, config, name


def _simple(verb: str, description: str, argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog=f"weft {verb}", description=description, allow_abbrev=False)
    parser.add_argument("name", nargs="?", help="of the run, or the number of its job [the newest]")
    parser.add_argument("--kit", default="kits/admin", help="the administrator's kit [kits/admin]")
    if verb == "logs":
        parser.add_argument("--server", default="kits/server", help="the server's kit, on its machine [kits/server]")
    return parser.parse(argv)


def status(argv: list[str]) -> int:
    """Print the connected sites, and the newest job of each run, or all jobs of the run that is named."""
    from weft.core.texts import printable
    from weft.sites.admin import admin_session
    from weft.sites.run_status import WIDTH, lines_of
    from weft.sites.watcher import run_name

    arguments = _simple("status", "How the sites and the runs are.", argv)
    with admin_session(Path(arguments.kit)) as session:
        print(f"sites: {', '.join(sorted(map(printable, session.sites()))) or 'none'}")
        shown: dict[str, tuple[str, str]] = {}  # ids of jobs: names of runs and states
        for job in session.jobs():
            name, number = run_name(job), str(job["job_id"])
            is_older = name in {other for other, _ in shown.values()}  # jobs are listed newest first
            if arguments.name in (name, number) or (arguments.name is None and not is_older):
                shown[number] = name, str(job.get("status"))
        width = min(WIDTH, max((len(name) for name, _ in shown.values()), default=0))
        for number, (name, state) in shown.items():
            print(*lines_of(name, number, state, session.status(number), width), sep="\n")
    return 0


def logs(argv: list[str]) -> int:
    """Print a run's log, on the server's machine."""
    arguments = _simple("logs", "What a run said, on the server's machine.", argv)
    folder = Path(arguments.server) / "runs"
    files = sorted(folder.glob(f"{arguments.name or '*'}.log"), key=os.path.getmtime)
    if not files:
        raise ConfigError(f"There is no log of a run in '{folder}': give the server's kit by --server, on its machine.")
    print(files[-1].read_text(encoding="utf-8"), end="")
    return 0


def stop(argv: list[str]) -> int:
    """End a run; its committed rounds stay, and `weft submit` with the same name resumes it."""
    from weft.sites.admin import OVER, admin_session
    from weft.sites.watcher import run_name

    arguments = _simple("stop", "End a run; the rounds that are done are kept.", argv)
    with admin_session(Path(arguments.kit)) as session:
        jobs = [job for job in session.jobs() if arguments.name in (None, run_name(job), str(job["job_id"]))]
        for job in jobs:
            if not str(job.get("status")).startswith(OVER) and session.end(str(job["job_id"])):
                print(job["job_id"])
                return 0
        failed = bool(jobs) and "COMPLETED" not in str(jobs[0].get("status"))
        if arguments.name and failed:  # it waits to be resubmitted: the supervisor finds no job to copy
            for job in jobs:
                session.delete(str(job["job_id"]))
            print(f"The run '{arguments.name}' is not resubmitted any more.")
            return 0
    raise ConfigError(f"No run{f' {arguments.name!r}' if arguments.name else ''} is running.")
