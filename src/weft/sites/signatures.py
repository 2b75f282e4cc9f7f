"""Signatures of updates: a site signs what it sends by its certificate, and the record keeps the signatures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from weft.core.party import Identity
from weft.core.types import Failure, Reply, Update
from weft.core.witness import join_proof, reply_digest
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.launch.verify import Finding
from weft.runs.chain import beginning
from weft.sites.identity import vouched

PURPOSE = b"update "
"""Before a digest in what is signed, so that it cannot pass for another text of the run."""


def signed(reply: Reply, identity: Identity | None) -> Reply:
    """Return a reply with the proof of its site, if it is an update and the site has a certificate."""
    if identity is None or not isinstance(reply, Update):
        return reply
    return replace(reply, proof=identity.sign(PURPOSE + reply_digest(reply).encode()))


def checker(authority: Path | None, run: str) -> Callable[[Reply], Reply]:
    """Return what the server does with a reply: an update whose proof is of other bytes, or of somebody else, fails.

    Args:
        authority: the file with the certificate of the federation's authority; None: nothing can be checked.
        run: the run as its sites name it when they sign.
    """
    if authority is None or not authority.is_file():
        return lambda reply: reply
    root = x509.load_pem_x509_certificate(authority.read_bytes())

    def check(reply: Reply) -> Reply:
        if not isinstance(reply, Update) or not reply.proof:
            return reply
        if vouched(root, run, reply.client, PURPOSE + reply_digest(reply).encode(), reply.proof):
            return reply
        return Failure(reply.client, reply.round, "sent an update that its certificate did not sign", bad=True)

    return check


class Signatures(NamedTuple):
    """The signatures in a record."""

    signed: int
    """Updates that their site signed."""
    unsigned: int
    """Updates that no site signed."""
    findings: list[Finding]


def check_record(entries: list[JsonObject], authority: Path) -> Signatures:
    """Check all signatures of a record; a certificate that has expired since still shows what it signed.

    Args:
        entries: the lines of the record.
        authority: the file with the certificate of the federation's authority.

    Raises:
        ConfigError: there is no certificate in the file.
    """
    try:
        root = x509.load_pem_x509_certificate(authority.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"'{authority}' holds no certificate of an authority ({error}): write --authority and the rootCA.pem of a "
            "start-up kit."
        ) from None
    run = str(beginning(entries).get("signed", {}).get("run", ""))
    certificates: dict[str, str] = {}
    valid, without, findings = 0, 0, []
    for entry in entries:
        certificates |= entry.get("certificates", {})  # one that is renewed holds from its line on
        signatures = entry.get("signatures", {})
        without += len(set(entry.get("clients", ())) - signatures.keys())
        for site, signature in signatures.items():
            certificate = bytes.fromhex(certificates.get(site, ""))
            proof = join_proof(certificate, bytes.fromhex(signature))
            texts = [PURPOSE + digest.encode() for digest in entry.get("received", {}).get(site, [])]
            if any(vouched(root, run, site, text, proof, expired_too=True) for text in texts):
                valid += 1
            else:
                what = f"the signature is not that of the site '{site}' for what was received"
                findings.append(Finding("chain.jsonl", what, entry["round"], "signatures"))
    return Signatures(valid, without, findings)
