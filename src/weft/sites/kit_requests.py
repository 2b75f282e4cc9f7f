"""Keys that are made where they are used: a party asks for a certificate, and the authority never has its key.

The answer holds no settings but the server's address: a party's own Weft writes its kit, so that nothing that the
authority sends can loosen it.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import ConfigError, MissingExtra
from weft.json_types import JsonObject
from weft.sites.authority import (
    BITS,
    MOST_BITS,
    Authority,
    fingerprint,
    issued,
    key_fingerprint,
    key_pem,
    name_in,
    new_key,
    pem,
    rsa_key,
    write_private,
)
from weft.sites.kit_settings import install_identity, read_certificate, write_kits
from weft.sites.provisioning import check_party, identity_of, read_project, register
from weft.sites.revocation import revoked_keys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

MOST_BYTES = 1 << 16
"""Longest request or answer that is read."""
REQUEST, KEY = "request.csr", "client.key"
HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")
FORM = "weft certificate 1"
"""First entry of an answer."""


@dataclass(frozen=True)
class Signed:
    """What the authority answers to a request."""

    name: str
    kind: str
    """"client" or "admin"."""
    answer: Path
    key: str
    """Fingerprint of the party's key."""
    root: str
    """Fingerprint of the authority's certificate."""


def make_request(name: str, kit: Path) -> tuple[Path, str]:
    """Make a key in a new folder, and a signing request for it.

    Args:
        name: the party's name: a site's, or NAME@PLACE for an administrator.
        kit: folder of the kit to be; of mode 0700. A second call with the same folder uses the same key.

    Returns:
        The file of the request, which is for the authority, and the fingerprint of the key.

    Raises:
        ConfigError: the name is not allowed, or the folder holds something else.
        MissingExtra: FLARE is not installed.
    """
    check_party(name, {})
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.x509.oid import NameOID
    except ImportError:
        raise MissingExtra("nvflare", "nvflare", "A run of sites") from None
    path, request = kit / KEY, kit / REQUEST
    if (kit / "startup" / KEY).is_file():
        path = kit / "startup" / KEY  # the certificate of this kit is to be renewed
        owner = name_in(read_certificate(kit))
        if owner != name:
            raise ConfigError(f"'{kit}' is the kit of '{owner}', not of '{name}': give another folder by --out.")
    elif kit.exists() and not path.is_file() and any(kit.iterdir()):
        raise ConfigError(f"'{kit}' is not empty: give a new folder by --out.")
    kit.mkdir(parents=True, mode=0o700, exist_ok=True)
    kit.chmod(0o700)
    key = _read_key(path) if path.is_file() else new_key()[0]
    if not path.is_file():
        write_private(path, key_pem(key))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    content = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, SHA256())
    from cryptography.hazmat.primitives.serialization import Encoding

    write_private(request, content.public_bytes(Encoding.PEM))
    return request, key_fingerprint(key.public_key())


def sign(kits: Path, request: Path, authority: Authority, out: Path | None = None, *, admin: bool = False) -> Signed:
    """Sign a request; of it, only the name and the public key get into the certificate.

    Args:
        kits: the folder of the kits.
        request: the file of the request.
        authority: the open authority of the kits.
        out: file of the answer; None: beside the request.
        admin: whether an administrator may be made; without, only sites are.

    Raises:
        ConfigError: the request is damaged, its name is not allowed or taken, or its key is too weak or was shut out.
    """
    name, key = read_request(request)
    project = read_project(kits)
    mine = [entry for entry in issued(kits / "authority") if entry["name"] == name]
    renews = bool(mine) and mine[-1]["key"] == key_fingerprint(key)
    if key_fingerprint(key) in revoked_keys(kits):
        raise ConfigError(
            f"The key in '{request}' was shut out: '{name}' has to make another, with `weft client request` in a new "
            "folder."
        )
    kind = check_party(name, project, taken=not renews)
    if kind == "admin" and not admin:
        raise ConfigError(f"'{name}' is an administrator's name: write --admin if this person may end and submit runs.")
    out = out or request.with_name(f"{name}.answer.json")
    if out.exists() and not renews:
        raise ConfigError(f"'{out}' is there already: give another file by --out.")
    certificate = authority.issue(identity_of(name, kind), key)
    answer = {
        "form": FORM,
        "name": name,
        "host": project["host"],
        "port": project["port"],
        "certificate": pem(certificate).decode(),
        "root": pem(authority.root).decode(),
    }
    write_private(out, (json.dumps(answer, indent=1) + "\n").encode())
    register(kits, name)
    return Signed(name, kind, out, key_fingerprint(key), fingerprint(authority.root))


def install(answer: Path, kit: Path) -> tuple[str, str]:
    """Make the kit of a party from the answer to its request and the key in the folder.

    Returns:
        The party's name, and the fingerprint of the authority's certificate.

    Raises:
        ConfigError: the answer is damaged, is for another key, or comes from the authority of another federation.
    """
    from cryptography import x509

    content = _read_answer(answer)
    path = kit / "startup" / KEY if (kit / "startup" / KEY).is_file() else kit / KEY
    if not path.is_file():
        raise ConfigError(f"'{kit}' holds no key: give the folder that `weft client request` made.")
    try:
        certificate = x509.load_pem_x509_certificate(content["certificate"].encode())
        root = x509.load_pem_x509_certificate(content["root"].encode())
        certificate.verify_directly_issued_by(root)
    except Exception:
        raise ConfigError(
            f"'{answer}' holds no certificate of the authority that it names: ask for it again."
        ) from None
    name = content["name"]
    key = _read_key(path)
    if key_fingerprint(rsa_key(certificate)) != key_fingerprint(key.public_key()) or name_in(certificate) != name:
        raise ConfigError(f"The certificate in '{answer}' is for another key than the one in '{kit}': see its name.")
    if (kit / "startup").is_dir():
        before = x509.load_pem_x509_certificate((kit / "startup" / "rootCA.pem").read_bytes())
        if before != root:
            raise ConfigError(f"'{answer}' comes from another federation than the kit '{kit}': use a new folder.")
    else:
        _write_kit(content, kit, path)
    install_identity(kit, certificate, root)
    (kit / REQUEST).unlink(missing_ok=True)
    return name, fingerprint(root)


def read_request(path: Path) -> tuple[str, RSAPublicKey]:
    """Return the name and the public key of a request; ConfigError if it is damaged or its key is too weak."""
    from cryptography import x509

    content = _read(path)
    try:
        request = x509.load_pem_x509_csr(content)
        valid, name = request.is_signature_valid, name_in(request)
    except Exception:
        raise ConfigError(f"'{path}' is no signing request: make one with `weft client request`.") from None
    if not valid:
        raise ConfigError(f"The request '{path}' is not signed with the key that it holds: ask for it again.")
    try:
        key = rsa_key(request)
    except ValueError:
        key = None
    if key is None or not BITS <= key.key_size <= MOST_BITS or key.public_numbers().e != 65537:
        raise ConfigError(f"The request '{path}' has a key of another kind: make one with `weft client request`.")
    return name, key


def _write_kit(content: JsonObject, kit: Path, key: Path) -> None:
    """Write the settings of a kit beside the key, and move the key into it; nothing is left of half a kit."""
    name, kind = content["name"], check_party(content["name"], content)
    made = kit / "new"
    shutil.rmtree(made, ignore_errors=True)
    try:
        write_kits(content, {made: identity_of(name, kind)})
        key.rename(made / "startup" / KEY)
        for path in made.iterdir():
            path.rename(kit / path.name)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _read_answer(path: Path) -> JsonObject:
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError):
        content = None
    texts = ("form", "name", "host", "certificate", "root")
    if (
        not isinstance(content, dict)
        or any(not isinstance(content.get(key), str) for key in texts)
        or content["form"] != FORM
    ):
        raise ConfigError(f"'{path}' is no answer of `weft server sign`: give the file that it wrote.")
    port = content.get("port")
    if not HOST.fullmatch(content["host"]) or type(port) is not int or not 0 < port < 65536:
        raise ConfigError(f"'{path}' names no server that can be reached: ask for it again.")
    return {key: content[key] for key in (*texts, "port")}  # whatever else there is, nothing here reads


def _read(path: Path) -> bytes:
    """Return the content of a short file; ConfigError if it cannot be read or is long."""
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be read ({error.strerror}).") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(f"'{path}' is too long for a request or an answer.")
    return content


def _read_key(path: Path) -> RSAPrivateKey:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, RSAPrivateKey)
    return key
