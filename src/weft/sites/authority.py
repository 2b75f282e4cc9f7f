"""The authority of a federation: its root key, the certificates that it signs, and the list of them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import ConfigError, MissingExtra
from weft.json_types import JsonObject

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
    from cryptography.x509 import Certificate, CertificateSigningRequest

ROOT_DAYS, DAYS = 3650, 730
"""Days for which the root certificate, and those that it signs, are valid."""
SKEW = timedelta(days=1)
"""Certificates are valid from this long before they are signed, as clocks differ."""
ROUNDS = 600_000
"""Rounds of PBKDF2 between a passphrase and the key that encrypts the root key."""
BITS, MOST_BITS = 2048, 8192
"""Length of the keys that are made here, and of the longest that is signed."""
OPEN_KEY, SEALED_KEY, ISSUED = "root.key", "root.p12", "issued.json"


@dataclass(frozen=True)
class Identity:
    """What a certificate says of its owner."""

    name: str
    kind: str
    """"server", "client" or "admin"."""
    org: str = "weft"
    role: str | None = None
    """An administrator's role, which FLARE's authorization reads."""


@dataclass(frozen=True)
class Authority:
    """An authority whose root key is open."""

    folder: Path
    key: RSAPrivateKey
    root: Certificate

    def issue(self, identity: Identity, key: RSAPublicKey, host: str | None = None) -> Certificate:
        """Sign a certificate, and add it to the list of those that were issued.

        Args:
            identity: what the certificate says; nothing else gets into it.
            key: the owner's public key.
            host: the server's name or address, for its certificate.
        """
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID
        from nvflare.lighter import utils

        now = datetime.now(UTC)
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]  # a site's certificate cannot serve as a server's
        if identity.kind == "server":
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        certificate: Certificate = utils.generate_cert(
            subject=utils.Identity(identity.name, identity.org, identity.role),
            issuer=utils.Identity("weft"),
            signing_pri_key=self.key,
            subject_pub_key=key,
            server_default_host=host,
            not_valid_before=now - SKEW,
            not_valid_after=min(now + timedelta(days=DAYS), self.root.not_valid_after_utc),
            extra_extensions=[
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (_usage(), True),
                (x509.ExtendedKeyUsage(uses), False),
            ],
        )
        entry = {
            "name": identity.name,
            "kind": identity.kind,
            "certificate": fingerprint(certificate),
            "key": key_fingerprint(key),
            "until": certificate.not_valid_after_utc.isoformat(),
        }
        entries = json.dumps([*issued(self.folder), entry], indent=1) + "\n"
        write_private(self.folder / ISSUED, entries.encode())
        return certificate


def make_authority(folder: Path, passphrase: str | None) -> Authority:
    """Make a root key and its certificate in a new folder of mode 0700.

    Args:
        folder: where the authority is kept.
        passphrase: encrypts the root key; None: it lies open, readable for its owner only.
    """
    from nvflare.lighter import utils

    key, public = new_key()
    now = datetime.now(UTC)
    root: Certificate = utils.generate_cert(
        subject=utils.Identity("weft"),
        issuer=utils.Identity("weft"),
        signing_pri_key=key,
        subject_pub_key=public,
        ca=True,
        not_valid_before=now - SKEW,
        not_valid_after=now + timedelta(days=ROOT_DAYS),
    )
    folder.mkdir(parents=True, mode=0o700)
    write_private(folder / "root.crt", pem(root))
    if passphrase:
        write_private(folder / SEALED_KEY, _sealed(key, root, passphrase))
    else:
        write_private(folder / OPEN_KEY, key_pem(key))
    return Authority(folder, key, root)


def open_authority(folder: Path, passphrase: str | None) -> Authority:
    """Open the authority of a folder; ConfigError: it holds none, or the passphrase is missing or wrong."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12
    except ImportError:
        raise MissingExtra("nvflare", "nvflare", "A run of sites") from None
    try:
        root = x509.load_pem_x509_certificate((folder / "root.crt").read_bytes())
        sealed = is_sealed(folder)
        content = (folder / (SEALED_KEY if sealed else OPEN_KEY)).read_bytes()
    except (OSError, ValueError):
        raise ConfigError(f"'{folder}' holds no authority of this Weft: make kits with `weft server init`.") from None
    if not sealed:
        return Authority(folder, _rsa(load_pem_private_key(content, None)), root)
    if not passphrase:
        raise ConfigError(
            f"The root key in '{folder}' is encrypted: set WEFT_PASSPHRASE, or type the passphrase at a terminal."
        )
    try:
        key, _, _ = pkcs12.load_key_and_certificates(content, passphrase.encode())
    except ValueError:
        raise ConfigError(f"The passphrase does not open the root key in '{folder}': try again.") from None
    return Authority(folder, _rsa(key), root)


def is_sealed(folder: Path) -> bool:
    """Return whether the root key is encrypted with a passphrase."""
    return (folder / SEALED_KEY).is_file()


def issued(folder: Path) -> list[JsonObject]:
    """Return the certificates that an authority has issued, the oldest first."""
    try:
        return list(json.loads((folder / ISSUED).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return []


def new_key() -> tuple[RSAPrivateKey, RSAPublicKey]:
    """Return a new key pair."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=BITS)
    return key, key.public_key()


def key_pem(key: RSAPrivateKey) -> bytes:
    """Return a private key in the form that FLARE reads."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def pem(certificate: Certificate) -> bytes:
    """Return a certificate as text."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def fingerprint(certificate: Certificate) -> str:
    """Return the SHA-256 of a certificate, in hexadecimal."""
    from cryptography.hazmat.primitives.hashes import SHA256

    return certificate.fingerprint(SHA256()).hex()


def key_fingerprint(key: RSAPublicKey) -> str:
    """Return the SHA-256 of a public key, in hexadecimal."""
    import hashlib

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def name_in(signed: Certificate | CertificateSigningRequest) -> str:
    """Return the one common name in a certificate or a request; ValueError if there is none, or several."""
    from cryptography.x509.oid import NameOID

    (attribute,) = signed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attribute.value)


def rsa_key(signed: Certificate | CertificateSigningRequest) -> RSAPublicKey:
    """Return the public key in a certificate or a request; ValueError if it is of another kind."""
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    key = signed.public_key()
    if not isinstance(key, RSAPublicKey):
        raise ValueError("the key is no RSA key")
    return key


def spoken(fingerprint: str) -> str:
    """Return a fingerprint in groups of four, for reading it aloud."""
    return " ".join(fingerprint[place : place + 4] for place in range(0, len(fingerprint), 4))


def write_private(path: Path, content: bytes) -> None:
    """Write a file atomically; at no time can anybody but its owner read it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _rsa(key: object) -> RSAPrivateKey:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    assert isinstance(key, RSAPrivateKey)
    return key


def _sealed(key: RSAPrivateKey, root: Certificate, passphrase: str) -> bytes:
    """Return a key and its certificate as PKCS 12, encrypted."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import PrivateFormat, pkcs12

    cipher = (
        PrivateFormat.PKCS12.encryption_builder()
        .kdf_rounds(ROUNDS)
        .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
        .hmac_hash(SHA256())
        .build(passphrase.encode())
    )
    return pkcs12.serialize_key_and_certificates(b"weft", key, root, None, cipher)


def _usage() -> object:
    """Return the key usage of a party: it signs, and signs nothing for others."""
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=True,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
