"""Digests of what clients send and of what the server keeps, for the record of a run.

SHA-256 over names, number formats and bytes, not over a file or a message: so that a digest is the same in every
runtime, and after a checkpoint was read back.
"""

from __future__ import annotations

import hashlib
import json

from weft.core.tensors import soak
from weft.core.types import Failure, ProtectionReply, Reply, Score, ServerState, Update
from weft.json_types import JsonObject

LENGTH_BYTES = 4
"""Of the length of the certificate at the start of a proof."""


def reply_digest(reply: Reply) -> str:
    """Return the digest of a reply as it was received, without the proof that its client adds; 64 digits."""
    fields: JsonObject = {"kind": type(reply).__name__, "client": reply.client, "round": reply.round}
    if isinstance(reply, Update):
        fields |= {"version": reply.base_version, "attempt": reply.attempt, "weight": float(reply.weight)}
    if isinstance(reply, Update | Score):
        # A whole number may come out of JSON as a float, or as it was.
        fields["metrics"] = {name: float(value) for name, value in reply.metrics.items()}
    if isinstance(reply, ProtectionReply):
        fields["phase"] = reply.phase
    if isinstance(reply, Failure):
        fields["reason"] = reply.reason
    streams = reply.streams if isinstance(reply, Update | ProtectionReply) else {}
    fields["streams"] = sorted(streams)
    sponge = hashlib.sha256(json.dumps(fields, sort_keys=True).encode() + b"\n")
    soak(sponge.update, streams)
    return sponge.hexdigest()


def state_digest(state: ServerState) -> str:
    """Return the digest of the server's parameters and memory; 64 digits.

    The count of attempts is left out: rounds that are repeated change nothing else.
    """
    sponge = hashlib.sha256(json.dumps([state.round, sorted(state.memory)]).encode() + b"\n")
    soak(sponge.update, {"params": state.params})
    sponge.update(b"memory\n")
    soak(sponge.update, state.memory)
    return sponge.hexdigest()


def join_proof(certificate: bytes, signature: bytes) -> bytes:
    """Return a proof: the length of a certificate, the certificate (DER), and a signature by its key."""
    return len(certificate).to_bytes(LENGTH_BYTES, "big") + certificate + signature


def split_proof(proof: bytes) -> tuple[bytes, bytes]:
    """Return the certificate and the signature of a proof; ValueError where it has no whole certificate."""
    size = int.from_bytes(proof[:LENGTH_BYTES], "big")
    if not 0 < size <= len(proof) - LENGTH_BYTES:
        raise ValueError("a proof without a certificate")
    return proof[LENGTH_BYTES : LENGTH_BYTES + size], proof[LENGTH_BYTES + size :]
