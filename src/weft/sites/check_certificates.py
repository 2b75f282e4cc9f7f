"""The certificates of a start-up kit: their dates, their authority, their key, the name in them; and the clock."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from weft.sites.findings import FAIL, OK, WARN, Finding
from weft.sites.kit_files import Kit

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

SOON = timedelta(days=30)
"""A certificate that expires earlier is warned of."""
NEW_KIT = "ask the server's administrator for a new kit"


def check_certificates(kit: Kit, now: datetime | None = None) -> Iterator[Finding]:
    """Check dates, authority, key and name of a kit's certificate.

    Args:
        kit: of any kind.
        now: the time, with its zone; None: that of this machine.
    """
    from cryptography import x509

    now = now or datetime.now(UTC)
    try:
        own = x509.load_pem_x509_certificate(kit.certificate.read_bytes())
        root = x509.load_pem_x509_certificate(kit.authority.read_bytes())
    except ValueError:
        yield Finding(FAIL, "certificate", "the kit's certificates cannot be read", "unpack the kit again")
        return
    yield _clock(own, now)
    yield _dates("certificate", own, now)
    yield _dates("authority", root, now)
    yield _signed(own, root)
    yield _key(kit)
    if kit.kind == "server":
        yield _host(kit, own)
    mode = kit.key.stat().st_mode & 0o077
    if mode:
        remedy = f"run `chmod 600 {kit.key}`"
        yield Finding(WARN, "key", "others on this machine can read the kit's private key", remedy)


def _clock(own: Certificate, now: datetime) -> Finding:
    """Check that the clock does not show a time before the kit was made."""
    if now < own.not_valid_before_utc:
        return Finding(
            FAIL,
            "clock",
            f"this machine's clock shows {now:%Y-%m-%d %H:%M} UTC, before the kit's certificate begins",
            "set the clock, for example by NTP",
        )
    return Finding(OK, "clock", f"{now:%Y-%m-%d %H:%M:%S} UTC: compare it with the other machines of the federation")


def _dates(what: str, certificate: Certificate, now: datetime) -> Finding:
    """Check how long a certificate is valid."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        return Finding(FAIL, what, f"it is valid from {begin:%Y-%m-%d %H:%M} UTC on only", "set this machine's clock")
    if now > end:
        return Finding(FAIL, what, f"it expired on {end:%Y-%m-%d}", NEW_KIT)
    days = (end - now).days
    if end - now < SOON:
        return Finding(WARN, what, f"it expires in {days} days, on {end:%Y-%m-%d}", f"{NEW_KIT} before that")
    return Finding(OK, what, f"valid until {end:%Y-%m-%d}, {days} days more")


def _signed(own: Certificate, root: Certificate) -> Finding:
    """Check that the kit's certificate is of the kit's authority."""
    from cryptography.exceptions import InvalidSignature

    try:
        own.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return Finding(
            FAIL, "authority", "the kit's certificate is of another authority than the kit's rootCA.pem", NEW_KIT
        )
    return Finding(OK, "authority", "it signed the kit's certificate")


def _key(kit: Kit) -> Finding:
    """Check that the private key belongs to the certificate."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(kit.certificate, kit.key, password="")
    except ssl.SSLError as error:
        mismatch = "MISMATCH" in str(error.reason)
        text = "the private key is not that of the certificate" if mismatch else "the private key cannot be read"
        return Finding(FAIL, "key", text, "unpack the kit again")
    return Finding(OK, "key", "it is that of the certificate")


def _host(kit: Kit, own: Certificate) -> Finding:
    """Check that the server's certificate is for the name that the kits lead to."""
    names = _names(own)
    if kit.host in names:
        return Finding(OK, "name", f"the certificate is for '{kit.host}'")
    remedy = f"make kits with `weft server init --host {kit.host}`"
    return Finding(FAIL, "name", f"the certificate is for {', '.join(sorted(names))}, not for '{kit.host}'", remedy)


def _names(certificate: Certificate) -> set[str]:
    """Return the names and addresses that a certificate is for."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    names = {str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)}
    try:
        others = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return names
    names |= set(others.get_values_for_type(x509.DNSName))
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = [
        address
        for address in others.get_values_for_type(x509.IPAddress)
        if isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address)
    ]
    return names | {str(address) for address in addresses}
