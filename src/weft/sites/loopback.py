"""The ports of this machine on which a party's own processes talk to each other: open to its own user alone.

FLARE's parent process listens on a loopback port for the processes of jobs, without TLS. Whoever connects there speaks
for any party of a job, the server too, so another user of the machine could ask a site in the server's name.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from pathlib import Path

from nvflare.apis.fl_component import FLComponent
from nvflare.fuel.f3.drivers.tcp_driver import TcpStreamServer

log = logging.getLogger("weft.guard")
TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
"""The kernel's tables of connections (Linux), with the user of each end."""
Address = tuple[str, int]


def user_of(peer: Address, own: Address, tables: tuple[Path, ...] = TABLES) -> int | None:
    """Return the number of the user who opened a connection from this machine; None: it is in no table.

    Args:
        peer: IPv4 address and port of the other end.
        own: address and port of this end.
        tables: in the form of the kernel's.
    """
    wanted = [tuple(map(_hexadecimal, (peer, own)))]
    mapped = "0000000000000000FFFF0000"
    wanted.append(tuple(mapped + address for address in wanted[0]))
    for table in tables:
        if not table.exists():
            continue
        for line in table.read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if (fields[1], fields[2]) in wanted:
                return int(fields[7])
    return None


def _hexadecimal(address: Address) -> str:
    """Return an address as the kernel's table has it: its four bytes as a number of the machine, and the port."""
    number = int.from_bytes(socket.inet_aton(address[0]), sys.byteorder)
    return f"{number:08X}:{address[1]:04X}"


def is_own(server: TcpStreamServer, request: socket.socket, peer: Address) -> bool:
    """Say whether a listener may accept a connection: it has TLS, or the other end is of the same user."""
    if server.ssl_context is not None or not sys.platform.startswith("linux"):
        return True
    user = user_of(peer[:2], request.getsockname()[:2])
    if user != os.getuid():
        whose = "of nobody that is known" if user is None else f"of another user of this machine ({user})"
        log.warning("a connection %s was refused", whose)
        return False
    return True


class LoopbackGuard(FLComponent):  # type: ignore[misc]
    """A component of FLARE's parent process, at the server and at sites."""

    def __init__(self) -> None:
        super().__init__()
        TcpStreamServer.verify_request = is_own
