"""A site's certificate as its word to other sites: what it publishes of a masked sum, no server can replace.

A proof is the site's certificate and its signature with the certificate's key. Another site believes it if the
federation's authority, whose certificate is in every kit, issued the certificate to the site of that name.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from weft.core.witness import LENGTH_BYTES, join_proof, split_proof
from weft.errors import ConfigError

AUTHORITY = Path("startup/rootCA.pem")
"""The certificate of the federation's authority, in every kit."""
MAX_CERTIFICATE = 1 << 13
HASH = hashes.SHA256()
PADDING = padding.PSS(padding.MGF1(HASH), padding.PSS.DIGEST_LENGTH)


class KitIdentity:
    """The identity in a site's kit, for one run: a proof of another run proves nothing in this one."""

    def __init__(self, kit: Path, run: str) -> None:
        """Read the key and the certificates.

        Args:
            kit: with startup/client.crt, client.key and rootCA.pem.
            run: identifies the run; all its sites say the same.

        Raises:
            OSError: the kit lacks one of them.
            ValueError: one of them cannot be read, or the key is of another kind than RSA and EC.
        """
        startup = kit / "startup"
        key = serialization.load_pem_private_key((startup / "client.key").read_bytes(), None)
        if not isinstance(key, (RSAPrivateKey, EllipticCurvePrivateKey)):
            raise ValueError("the key of the kit can sign nothing")
        self._key = key
        certificate = x509.load_pem_x509_certificate((startup / "client.crt").read_bytes())
        self._certificate = certificate.public_bytes(serialization.Encoding.DER)
        self._root = x509.load_pem_x509_certificate((startup / "rootCA.pem").read_bytes())
        self._run = run

    def sign(self, text: bytes) -> bytes:
        """Return the certificate and the signature of a text in this run."""
        content = said(self._run, text)
        if isinstance(self._key, RSAPrivateKey):
            signature = self._key.sign(content, PADDING, HASH)
        else:
            signature = self._key.sign(content, ECDSA(HASH))
        return join_proof(self._certificate, signature)

    def vouches(self, name: str, text: bytes, proof: bytes) -> bool:
        """Return whether a site of this name has signed a text in this run."""
        return vouched(self._root, self._run, name, text, proof)


def said(run: str, text: bytes) -> bytes:
    """Return what is signed for a text in a run."""
    name = run.encode()
    return b"weft site" + len(name).to_bytes(LENGTH_BYTES, "big") + name + text


def vouched(
    root: x509.Certificate, run: str, name: str, text: bytes, proof: bytes, *, expired_too: bool = False
) -> bool:
    """Return whether a proof shows that a site has signed a text in a run.

    Args:
        root: the certificate of the federation's authority.
        run: identifies the run.
        name: of the site.
        text: what was signed.
        proof: the site's certificate and its signature.
        expired_too: believe a certificate that has expired since, as of what was signed long ago.
    """
    try:
        encoded, signature = split_proof(proof)
        if len(encoded) > MAX_CERTIFICATE:
            return False
        certificate = x509.load_der_x509_certificate(encoded)
        certificate.verify_directly_issued_by(root)
        names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        now = datetime.now(UTC)
        is_valid = expired_too or certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
        if [one.value for one in names] != [name] or not is_valid:
            return False
        key = certificate.public_key()
        if isinstance(key, RSAPublicKey):
            key.verify(signature, said(run, text), PADDING, HASH)
        elif isinstance(key, EllipticCurvePublicKey):
            key.verify(signature, said(run, text), ECDSA(HASH))
        else:
            return False
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def identity_of(kit: Path, run: str) -> KitIdentity:
    """Return the identity in a kit for one run.

    Raises:
        ConfigError: the kit has no certificate that other sites could check.
    """
    try:
        return KitIdentity(kit, run)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The kit '{kit}' cannot sign for this site ({error}): masked sums take its certificate and key."
        ) from None
