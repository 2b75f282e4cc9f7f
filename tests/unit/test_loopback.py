"""The loopback port of a party's own processes: another user of the machine is not let in."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("nvflare")

from weft.sites import loopback
from weft.sites.loopback import is_own, user_of
from weft.sites.provisioning import make_kits

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LINE = "   0: {} {} 01 00000000:00000000 00:00000000 00000000 {:5d}        0 1 1 0 20 4 30 10 -1\n"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the kernel's table of connections")


class Listener:
    """What FLARE's listener has."""

    def __init__(self, ssl_context: object = None) -> None:
        self.ssl_context = ssl_context


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a connection on this machine: accepted, and opened."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as opened:
        accepted, _ = server.accept()
        with accepted:
            yield accepted, opened


def test_a_connection_of_the_same_user_is_accepted(pair: tuple[socket.socket, socket.socket]):
    accepted, opened = pair
    assert user_of(accepted.getpeername(), accepted.getsockname()) == os.getuid()
    assert is_own(Listener(), accepted, opened.getsockname())


@pytest.mark.parametrize("mapped", ["", "0000000000000000FFFF0000"])
def test_a_connection_of_another_user_or_of_nobody_is_refused(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: str
):
    """The table is written as the kernel does for a listener of IPv4 and of IPv6."""
    accepted, opened = pair
    ends = [f"{mapped}0100007F:{port:04X}" for _, port in (opened.getsockname(), accepted.getsockname())]
    other = os.getuid() + 1
    table = tmp_path / "tcp"
    table.write_text(HEAD + LINE.format(*reversed(ends), os.getuid()) + LINE.format(*ends, other))
    assert user_of(opened.getsockname(), accepted.getsockname(), (table,)) == other
    own = loopback.user_of
    monkeypatch.setattr(loopback, "user_of", lambda peer, end: own(peer, end, (table,)))
    assert not is_own(Listener(), accepted, opened.getsockname())
    table.write_text(HEAD)
    assert not is_own(Listener(), accepted, opened.getsockname())
    assert is_own(Listener(ssl_context=object()), accepted, opened.getsockname()), "with TLS, certificates decide"


def test_server_and_sites_load_the_guard(tmp_path: Path):
    make_kits("localhost", ["a"], tmp_path / "kits")
    for name in ("server", "a"):
        settings = json.loads((tmp_path / "kits" / name / "local" / "resources.json").read_text())
        assert loopback.LoopbackGuard.__module__ + ".LoopbackGuard" in [one["path"] for one in settings["components"]]
