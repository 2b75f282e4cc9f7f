"""`weft up RUN.yaml --clients 3`: a server, its sites and a run on this machine alone, in one terminal."""

from __future__ import annotations

import sys
from pathlib import Path

from weft.commands.submit import read_run
from weft.errors import ConfigError, RunError


def run(argv: list[str]) -> int:
    """Make kits, start a server and sites, submit the run, wait for its end, and end all processes."""
    words, count = _clients(argv)
    arguments, config, name = read_run("up", words)
    from weft.sites.local_federation import up
    from weft.sites.run_status import RunPrinter, require_result

    for word in arguments.site:
        if "=" not in word:
            raise ConfigError(f"A site is written NAME=site.yaml, not '{word}'.")
    policies = {word.partition("=")[0]: Path(word.partition("=")[2]) for word in arguments.site}
    work = Path(arguments.work or "weft-up")
    last = up(config, name, work, count=count, policies=policies, port=arguments.port, hear=RunPrinter())
    require_result(name, last)
    result = work / "kits" / "server" / "runs" / name
    if not (result / "summary.json").is_file():
        raise RunError(f"The run '{name}' is done, and its result is not in '{result}': {work} holds its logs.")
    print(result)
    print(f"weft: logs and kits are in {work}.", file=sys.stderr)
    return 0


def _clients(argv: list[str]) -> tuple[list[str], int | None]:
    """Return the words without `--clients N`, and N, a number of sites; the key `clients` of a run names files."""
    words = list(argv)
    for place, word in enumerate(words[:-1]):
        if word == "--clients" and words[place + 1].isdigit():
            return words[:place] + words[place + 2 :], int(words[place + 1])
    return words, None
