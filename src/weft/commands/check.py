"""`weft server check KIT` and `weft client check KIT --site site.yaml`: what a machine lacks for its part."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from weft.arguments import Parser
from weft.json_types import JsonObject

if TYPE_CHECKING:
    from weft.sites.findings import Finding

CODES = "Exit codes: 0 nothing failed, 1 something failed, 2 wrong use."


def server(argv: list[str]) -> int:
    """Check the machine and the kit of a server."""
    parser = Parser(prog="weft server check", description=f"Check a server's machine. {CODES}", allow_abbrev=False)
    parser.add_argument("kit", metavar="KIT", help="the server's kit")
    parser.add_argument("--json", action="store_true", help="print the checks as one JSON object")
    arguments = parser.parse(argv)
    from weft.sites.findings import report
    from weft.sites.kit_files import read_kit

    kit = read_kit(Path(arguments.kit), "server")
    return report(_server_findings(kit.path), as_json=arguments.json)


def _server_findings(path: Path) -> Iterator[Finding]:
    """Yield the findings about a server's machine."""
    from weft.sites import check_machine, check_network
    from weft.sites.check_certificates import check_certificates
    from weft.sites.findings import examine
    from weft.sites.kit_files import read_kit

    kit = read_kit(path)
    yield from examine("versions", check_machine.check_versions)
    yield from examine("certificate", partial(check_certificates, kit))
    yield from examine("address", partial(check_network.check_address, kit))
    yield from examine("port", partial(check_network.check_port, kit))
    yield from examine("runs", partial(check_machine.check_writable, path / "runs", "runs"))
    yield from examine("parts", partial(check_machine.check_parts, path))
    yield from examine("disk", partial(check_machine.check_disk, path))
    yield from examine("memory", check_machine.check_memory)


def client(argv: list[str]) -> int:
    """Check the machine, the kit, the data and the policy of a site."""
    parser = Parser(prog="weft client check", description=f"Check a site's machine. {CODES}", allow_abbrev=False)
    parser.add_argument("kit", metavar="KIT", help="the site's kit")
    parser.add_argument("--site", metavar="FILE", required=True, help="site.yaml")
    parser.add_argument(
        "--run",
        nargs="+",
        metavar="RUN.yaml",
        help="also say whether the site would accept this run; a training verb may come first: --run dpo run.yaml",
    )
    parser.add_argument("--json", action="store_true", help="print the checks as one JSON object")
    arguments = parser.parse(argv)
    from weft.sites.findings import report
    from weft.sites.kit_files import read_kit

    kit = read_kit(Path(arguments.kit), "client")
    keys = _submitted(arguments.run) if arguments.run else None
    return report(_client_findings(kit.path, arguments.site, keys), as_json=arguments.json)


def _submitted(words: list[str]) -> JsonObject:
    """Return the keys of a run as `weft submit` would send them."""
    from weft.commands.submit import read_run
    from weft.sites.job import sent_keys
    from weft.sites.part_files import to_send

    _, config, name = read_run("submit", words)
    return sent_keys(to_send(config), name)


def _client_findings(path: Path, site: str, run: JsonObject | None) -> Iterator[Finding]:
    """Yield the findings about a site's machine; the quick ones first."""
    from weft.sites import check_machine, check_network, check_site
    from weft.sites.check_certificates import check_certificates
    from weft.sites.findings import examine
    from weft.sites.kit_files import read_kit
    from weft.sites.policy import read_policy

    kit, policy = read_kit(path), read_policy(site)
    yield from examine("versions", check_machine.check_versions)
    yield from examine("certificate", partial(check_certificates, kit))
    yield from examine("connection", partial(check_network.check_connection, kit))
    yield from examine("kit", partial(check_machine.check_writable, path / "weft", "kit"))
    yield from examine("disk", partial(check_machine.check_disk, path))
    yield from examine("memory", check_machine.check_memory)
    yield from examine("data", partial(check_site.check_data, policy.data))
    yield from examine("model", partial(check_site.check_models, policy.accept.models))
    yield from examine("policy", partial(check_site.check_policy, policy))
    yield from examine("key", partial(check_site.check_key, policy, path))
    if run is not None:
        yield from examine("run", partial(check_site.check_run, policy, path, kit.name, run))
