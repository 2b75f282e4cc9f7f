"""Messages and replies as bytes: a safetensors file with a JSON header; nothing in it is executed.

`weft.core.wire_header` checks the header of bytes from another party.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass

import torch

from weft.core.types import (
    Failure,
    Message,
    Probe,
    ProtectionReply,
    ProtectionRequest,
    Reply,
    Score,
    Streams,
    Task,
    Undo,
    Update,
)
from weft.core.wire_format import (
    MAX_NAME,
    NAMES,
    Raw,
    digest_of,
    is_count,
    joined,
    read_count,
    read_float,
    read_header,
    read_metrics,
    read_parts,
    read_proof,
    refuse,
    signature_of,
)
from weft.json_types import JsonObject

VERSION = 2


@dataclass(frozen=True)
class Body:
    """The tensors of a message as bytes; several messages may share one body."""

    parts: list[str]
    names: list[list[str]]
    header: JsonObject
    pieces: list[memoryview]
    digest: str


def body_of(message: Message | Reply) -> Body:
    """Return the tensors of a message as views of their memory, without a copy."""
    parts: Streams = {}
    if isinstance(message, (Task, Probe)):
        parts = {"params": message.params} | {f"extra.{stream}": v for stream, v in message.extra.items()}
    elif isinstance(message, (Update, ProtectionRequest, ProtectionReply)):
        parts = {f"stream.{stream}": values for stream, values in message.streams.items()}
    header: JsonObject = {}
    names: list[list[str]] = []
    pieces: list[memoryview] = []
    end = 0
    for part, values in parts.items():
        for name, value in values.items():
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            span = [end, end + len(raw)]
            header[str(len(names))] = {"dtype": NAMES[value.dtype], "shape": list(value.shape), "data_offsets": span}
            names.append([part, name])
            pieces.append(raw)
            end += len(raw)
    return Body(list(parts), names, header, pieces, digest_of(pieces))


class Packer:
    """Packs the messages of one exchange; tensors that several messages share are hashed once."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._lock = threading.Lock()
        self._bodies: dict[tuple[object, ...], tuple[Message, Body]] = {}

    def pack(self, message: Message) -> memoryview:
        """Return a message as read-only memory."""
        if not isinstance(message, (Task, Probe)):
            return pack(message, self.run)
        key = (id(message.params), *((name, id(values)) for name, values in message.extra.items()))
        with self._lock:
            if key not in self._bodies:
                # The message is kept with its body: were it freed, other tensors could get the same id.
                self._bodies[key] = message, body_of(message)
            body = self._bodies[key][1]
        return pack(message, self.run, body)


def pack(message: Message | Reply, run: str = "", body: Body | None = None) -> memoryview:
    """Return a message or a reply of a run as read-only memory; `body`: its tensors, if `body_of` was called."""
    kind = type(message).__name__
    fields: JsonObject = {"v": VERSION, "kind": kind, "run": run, "client": message.client, "round": message.round}
    if isinstance(message, Task):
        fields |= {"base_version": message.base_version, "attempt": message.attempt}
    elif isinstance(message, Probe):
        fields |= {"own": message.personal, "keep": message.export, "attempt": message.attempt}
    elif isinstance(message, Update):
        fields |= {"base_version": message.base_version, "attempt": message.attempt, "weight": message.weight}
        fields |= {"metrics": message.metrics}
        fields |= {"proof": message.proof.hex()} if message.proof else {}
    elif isinstance(message, ProtectionRequest):
        fields |= {"phase": message.phase, "attempt": message.attempt}
        fields |= {"evaluation": True} if message.evaluation else {}
    elif isinstance(message, ProtectionReply):
        fields |= {"phase": message.phase}
    elif isinstance(message, Score):
        fields |= {"metrics": message.metrics}
    elif isinstance(message, Failure):
        marks = {"opened": message.opened, "left": message.left}
        fields |= {"reason": message.reason} | {name: True for name, value in marks.items() if value}
    body = body or body_of(message)
    fields |= {"parts": body.parts, "names": body.names}
    metadata = json.dumps(fields | {"digest": signature_of(fields, body.header, body.digest)})
    text = json.dumps({"__metadata__": {"weft": metadata}} | body.header, separators=(",", ":")).encode()
    # safetensors aligns the body to 8 bytes, so that tensors can be views of it.
    text += b" " * (-len(text) % 8)
    return joined([len(text).to_bytes(8, "little"), text, *body.pieces])


def unpack(raw: Raw, *, run: str = "", max_bytes: int | None = None, max_tensors: int = 1 << 14) -> Message | Reply:
    """Return the message or reply in bytes.

    Args:
        raw: the bytes; tensors are views of it where it is writable, otherwise copies.
        run: identifier that the message must carry.
        max_bytes: largest size; None: no limit.
        max_tensors: largest number of tensors.

    Raises:
        BadUpdate: the message is too large, damaged, or of another run or version.
    """
    if max_bytes is not None and len(raw) > max_bytes:
        refuse(f"{len(raw)} bytes, more than the limit of {max_bytes}")
    fields, values = read_header(raw, max_tensors)
    # The run identifier keeps replies of an earlier run with the same sites out of this one.
    if fields.get("v") != VERSION or fields.get("run") != run:
        refuse("a message of another version or run")
    kind, client, round = fields.get("kind"), fields.get("client"), fields.get("round")
    if not isinstance(client, str) or not 0 < len(client) <= MAX_NAME or not is_count(round):
        refuse("no valid client or round")
    assert isinstance(round, int)
    parts = read_parts(fields, values)
    if kind in ("Task", "Probe"):
        params = parts.pop("params", {})
        extra = {stream.removeprefix("extra."): values for stream, values in parts.items()}
        if kind == "Probe":
            own, keep, attempt = fields.get("own", True), fields.get("keep", False), read_count(fields, "attempt")
            return Probe(client, round, params, extra, bool(own), bool(keep), attempt)
        return Task(client, round, read_count(fields, "base_version"), params, extra, read_count(fields, "attempt"))
    if kind == "Update":
        streams = {stream.removeprefix("stream."): values for stream, values in parts.items()}
        version, attempt = read_count(fields, "base_version"), read_count(fields, "attempt")
        weight, proof = read_float(fields.get("weight")), read_proof(fields)
        return Update(client, round, version, streams, weight, read_metrics(fields), attempt, proof=proof)
    if kind in ("ProtectionRequest", "ProtectionReply"):
        streams = {stream.removeprefix("stream."): values for stream, values in parts.items()}
        phase = str(fields.get("phase", ""))[:MAX_NAME]
        if kind == "ProtectionReply":
            return ProtectionReply(client, round, phase, streams)
        scored = fields.get("evaluation") is True
        return ProtectionRequest(client, round, phase, streams, read_count(fields, "attempt"), scored)
    if kind == "Score":
        return Score(client, round, read_metrics(fields))
    if kind == "Failure":
        opened, left = (fields.get(mark) is True for mark in ("opened", "left"))
        return Failure(client, round, str(fields.get("reason", ""))[:MAX_NAME], opened=opened, left=left)
    if kind != "Undo":
        refuse("a message of unknown kind")
    return Undo(client, round)
