"""Whether a server can listen to its port, and whether a site reaches its server: each way to fail is told apart."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import socket
import ssl
from pathlib import Path

from weft.sites.findings import FAIL, OK, Finding
from weft.sites.kit_files import Kit

PATIENCE = 5.0
"""Seconds to wait for a connection, and again for a TLS handshake."""
VERDICT = 1.0
"""Seconds in which a server says that it refuses a certificate: with TLS 1.3 it does so after the handshake."""


def listening_problem(host: str, port: int) -> str | None:
    """Return why nothing can listen to a port of this machine, in one clause with its remedy; None: it can."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    except socket.gaierror:
        return f"the name '{host}' has no address here: correct the DNS or /etc/hosts"
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return (
                f"port {port} of '{host}' is in use, perhaps by a server that already runs: end that process, or make "
                "kits with another --port"
            )
        if error.errno == errno.EADDRNOTAVAIL:
            return (
                f"'{host}' is not an address of this machine: start the server on the machine with that address, or "
                "let the name lead to an address of this one in /etc/hosts"
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            return f"port {port} is for the administrator of this machine only: make kits with a --port above 1023"
        return f"port {port} of '{host}' cannot be listened to ({error.strerror})"
    return None


def check_port(kit: Kit) -> Finding:
    """Check that the server's port is free, or that the server of this kit listens to it."""
    why = listening_problem(kit.host, kit.port)
    if why is None:
        return Finding(OK, "port", f"port {kit.port} of '{kit.host}' is free")
    reason, _, remedy = why.partition(": ")
    if "in use" in reason:
        try:
            if _presented(kit) == hashlib.sha256(_der(kit.certificate)).hexdigest():
                return Finding(OK, "port", f"the server of this kit listens to port {kit.port} of '{kit.host}'")
        except (OSError, ValueError):
            pass
        reason = f"port {kit.port} of '{kit.host}' is in use by another program"
    return Finding(FAIL, "port", reason, remedy)


def check_address(kit: Kit) -> Finding:
    """Check that the server's name has an address."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(kit.host, kit.port, socket.AF_INET)}
    except OSError:
        remedy = "correct the DNS or /etc/hosts, or ask for kits with another --host"
        return Finding(FAIL, "address", f"the name '{kit.host}' has no address (IPv4) here", remedy)
    return Finding(OK, "address", f"'{kit.host}' is {', '.join(sorted(found))}")


def check_connection(kit: Kit, patience: float = PATIENCE) -> Finding:
    """Check that a TLS handshake with the server succeeds, with the certificates of a kit.

    Args:
        kit: a site's or an administrator's.
        patience: seconds to wait for each of the connection and the handshake.
    """

    def failed(what: str, remedy: str) -> Finding:
        return Finding(FAIL, "connection", what, remedy)

    place = f"{kit.host}:{kit.port}"
    try:
        context = _context(kit, ssl.CERT_REQUIRED)
    except (OSError, ValueError) as error:
        return failed(f"the kit's certificate cannot be used ({_reason(error)})", "unpack the kit again")
    try:
        plain = socket.create_connection((kit.host, kit.port), timeout=patience)
    except socket.gaierror:
        return failed(f"the name '{kit.host}' has no address here", "correct the DNS or /etc/hosts")
    except TimeoutError:
        return failed(
            f"{place} does not answer within {patience:g} s",
            "open outgoing TCP to it in your firewall, and ask whether the server's firewall lets you in",
        )
    except ConnectionRefusedError:
        return failed(f"{place} refuses connections", "ask whether `weft server start` runs there, on this port")
    except OSError as error:
        return failed(f"{place} cannot be reached ({error.strerror})", "check this machine's network and routes")
    try:
        with plain, context.wrap_socket(plain, server_hostname=kit.host) as connection:
            connection.settimeout(min(patience, VERDICT))
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1):
                    return failed(
                        f"{place} refuses this kit's certificate, as it does if the certificate was revoked",
                        "ask the server's administrator: the server's console.log has the reason",
                    )
    except ssl.SSLCertVerificationError as error:
        return failed(*_unverified(place, error))
    except ssl.SSLError as error:
        return failed(*_refused(place, error))
    except TimeoutError:
        return failed(
            f"{place} accepts connections and does not speak TLS",
            "ask whether another program has this port, or whether a proxy or firewall holds connections back",
        )
    except OSError as error:
        return failed(
            f"{place} ends the connection during the handshake ({error.strerror})",
            "ask whether another program has this port, or whether a firewall ends TLS connections",
        )
    return Finding(OK, "connection", f"{place} and this kit accept each other's certificates over TLS")


def _unverified(place: str, error: ssl.SSLCertVerificationError) -> tuple[str, str]:
    """Return why this side refuses the server's certificate, and what to do."""
    # The numbers are OpenSSL's: X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED.
    if error.verify_code == 9:
        return f"the certificate of {place} is not valid yet", "set this machine's clock"
    if error.verify_code == 10:
        return f"the certificate of {place} has expired", "ask for new kits, or set this machine's clock"
    return (
        f"the certificate of {place} is of another authority than this kit ({error.verify_message})",
        "ask for a kit of this server's federation; if you have one, something between poses as the server",
    )


def _refused(place: str, error: ssl.SSLError) -> tuple[str, str]:
    """Return why the handshake failed on the server's side, and what to do."""
    reason = str(error.reason or "").upper()
    if "EXPIRED" in reason:
        return f"{place} refuses this kit's certificate: it has expired", "ask for a new kit"
    if "REVOKED" in reason:
        return f"{place} refuses this kit's certificate: it was revoked", "ask the server's administrator"
    if "ALERT" in reason:
        return (
            f"{place} refuses this kit's certificate ({reason.lower().replace('_', ' ')})",
            "ask for a kit of this server's federation",
        )
    return (
        f"{place} does not speak TLS ({reason.lower().replace('_', ' ') or 'the connection ended'})",
        "ask whether another program has this port",
    )


def _context(kit: Kit, verify: ssl.VerifyMode) -> ssl.SSLContext:
    """Return a client's TLS settings as FLARE makes them: it checks the authority, and no name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = verify
    context.load_verify_locations(kit.authority)
    context.load_cert_chain(kit.certificate, kit.key)
    return context


def _presented(kit: Kit) -> str:
    """Return the SHA-256 of the certificate that whoever listens to a kit's port presents; OSError if there is none."""
    context = _context(kit, ssl.CERT_NONE)
    with (
        socket.create_connection((kit.host, kit.port), timeout=PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname=kit.host) as connection,
    ):
        return hashlib.sha256(connection.getpeercert(binary_form=True) or b"").hexdigest()


def _der(certificate: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificate.read_text(encoding="ascii"))


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
    return str(reason).lower().replace("_", " ")
