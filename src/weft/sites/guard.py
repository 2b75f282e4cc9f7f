"""What the server's process does beside FLARE: it refuses revoked certificates, and keeps its audit log readable.

FLARE loads the class from the server's settings (`weft.sites.kit_settings`). FLARE 2.9 can disable a site by its name,
for registration alone, and no administrator. This guard works below, where connections begin: at the handshake of TLS.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import ssl
import threading
import time
import weakref
from collections import deque
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.sec.audit import Auditor, AuditService

from weft.sites.revocation import Revocations

log = logging.getLogger("weft.guard")
HANDSHAKE = 5.0
"""Seconds that a party has for the handshake of TLS; FLARE does one at a time."""
EVERY = 1.0
"""Seconds between two looks at the connections."""
POLLED = ("list_jobs", "get_job_meta", "check_status")
"""Commands that watchers repeat each second. They only read."""
WINDOW, MANY = 120, 8
"""Seconds in which a site connects so often only if something is wrong; each of its jobs has a connection too."""
REPEATED = 3600.0
"""Seconds in which the audit log has one line for each user and polled command."""


class Gate:
    """The connections of this process, with the certificates of those who opened them."""

    def __init__(self, kit: Path) -> None:
        self.revocations = Revocations(kit)
        self._open: weakref.WeakKeyDictionary[ssl.SSLSocket, str] = weakref.WeakKeyDictionary()
        self._opened: dict[str, deque[tuple[float, str]]] = {}
        self._lock = threading.Lock()

    def admit(self, connection: ssl.SSLSocket) -> None:
        """Accept a connection; raise ssl.SSLError if its certificate is refused."""
        certificate = connection.getpeercert(binary_form=True)
        if certificate is None:
            raise ssl.SSLError("the peer has no certificate")
        digest = hashlib.sha256(certificate).hexdigest()
        if (why := self._refusal(digest)) is not None:
            log.warning("a connection was refused: %s", why)
            raise ssl.SSLError(why)
        with self._lock:
            self._open[connection] = digest
            self._count(connection)

    def sweep(self) -> None:
        """Cut the connections whose certificates are refused by now."""
        with self._lock:
            connections = list(self._open.items())
        for connection, digest in connections:
            if (why := self._refusal(digest)) is None:
                continue
            with self._lock:
                self._open.pop(connection, None)
            try:
                # Not SSLSocket.shutdown, which takes TLS away from the thread that reads.
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            except OSError:
                continue  # it was closed meanwhile
            log.warning("a connection was cut: %s", why)

    def _count(self, connection: ssl.SSLSocket) -> None:
        """Say so when a site connects again and again: of two processes with one kit, each ends the other's."""
        name, is_person = _subject(connection)
        if is_person:  # administrators may have several sessions
            return
        now = time.monotonic()
        times = self._opened.setdefault(name, deque())
        times.append((now, str(connection.getpeername()[0])))
        while times[0][0] < now - WINDOW:
            times.popleft()
        if len(times) < MANY:
            return
        places = " and ".join(sorted({place for _, place in times}))
        log.warning(
            "the site '%s' has connected %d times in %d seconds, from %s: either two processes use its kit, each of "
            "which ends the other's connection, so that one has to be ended, or its network breaks off.",
            name,
            len(times),
            WINDOW,
            places,
        )
        times.clear()

    def _refusal(self, digest: str) -> str | None:
        try:
            owner = self.revocations.owner(digest)
        except (OSError, ValueError) as error:
            return f"the list of refused certificates cannot be read ({error})"
        return None if owner is None else f"the certificate of '{owner}' is revoked"


def _subject(connection: ssl.SSLSocket) -> tuple[str, bool]:
    """Return the name in a peer's certificate, and whether it is an administrator's, which alone has a role."""
    certificate = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    roles = certificate.subject.get_attributes_for_oid(NameOID.UNSTRUCTURED_NAME)
    return str(names[0].value) if names else "", bool(roles)


def checked(gate: Gate) -> type[ssl.SSLSocket]:
    """Return a class of sockets that ask the gate when a handshake has succeeded at the server's side."""

    class CheckedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            if not self.server_side:
                super().do_handshake(block)
                return
            before = self.gettimeout()
            self.settimeout(HANDSHAKE)
            super().do_handshake(block)
            self.settimeout(before)
            gate.admit(self)

    return CheckedSocket


class SparseAuditor(Auditor):  # type: ignore[misc]
    """An audit log of what people did: commands that are polled have one line an hour."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._last: dict[tuple[str, str], float] = {}

    def add_event(self, user: str, action: str, ref: str = "", msg: str = "") -> str:
        """Write a line, and return its id; "" for none."""
        command = action.split(maxsplit=1)[0] if action.strip() else action
        if command in POLLED:
            now, key = time.monotonic(), (user, command)
            if now - self._last.get(key, -REPEATED) < REPEATED:
                return ""
            self._last[key] = now
        return str(super().add_event(user, action, ref, msg))


class ServerGuard(FLComponent):  # type: ignore[misc]
    """A component of FLARE's server; it begins before the server listens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate(Path(os.environ["WEFT_KIT"]))
        ssl.SSLContext.sslsocket_class = checked(self.gate)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Begin with the server; FLARE fires this event in its own process only, not in those of jobs."""
        if event_type == EventType.SYSTEM_BOOTSTRAP:
            path = AuditService.get_auditor().audit_file.name
            AuditService.close()
            AuditService.the_auditor = SparseAuditor(path)
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.gate.sweep()
            time.sleep(EVERY)
