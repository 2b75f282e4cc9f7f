"""Messages and replies as bytes: a safetensors file with a JSON header; nothing in it is executed.

Bytes from another party are checked before anything is allocated: their number, the size of the header, the number of
tensors, that offsets, shapes and number formats agree, and that the tensors fill the rest of the bytes exactly.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from mmap import mmap
from typing import NoReturn, TypeGuard

import torch
import xxhash

from weft.core.types import (
    Failure,
    Message,
    Metrics,
    Probe,
    ProtectionReply,
    ProtectionRequest,
    Reply,
    Score,
    Streams,
    Task,
    Tensors,
    Undo,
    Update,
)
from weft.errors import BadUpdate
from weft.json_types import JsonObject

Raw = bytes | mmap | memoryview
"""A message: bytes, a mapped file, or memory that another process wrote."""
VERSION = 2
EMPTY = torch.empty(0)
FORMATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {format: name for name, format in FORMATS.items()}
MAX_HEADER = 1 << 20
"""Largest header in bytes; it grows by the next constant for each expected tensor."""
MAX_HEADER_PER_TENSOR = 1 << 10
MAX_METRICS = 512
MAX_NAME = 300
"""Longest name in characters."""


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
    return Body(list(parts), names, header, pieces, _digest(pieces))


class Packer:
    """Packs the messages of one exchange; tensors that several messages share are hashed once."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._lock = threading.Lock()
        self._bodies: dict[tuple[object, ...], tuple[Message, Body]] = {}

    def pack(self, message: Message) -> bytes:
        """Return a message as bytes."""
        if not isinstance(message, (Task, Probe)):
            return pack(message, self.run)
        key = (id(message.params), *((name, id(values)) for name, values in message.extra.items()))
        with self._lock:
            if key not in self._bodies:
                # The message is kept with its body: were it freed, other tensors could get the same id.
                self._bodies[key] = message, body_of(message)
            body = self._bodies[key][1]
        return pack(message, self.run, body)


def pack(message: Message | Reply, run: str = "", body: Body | None = None) -> bytes:
    """Return a message or a reply of a run as bytes; `body`: its tensors, if `body_of` was called already."""
    kind = type(message).__name__
    fields: JsonObject = {"v": VERSION, "kind": kind, "run": run, "client": message.client, "round": message.round}
    if isinstance(message, Task):
        fields |= {"base_version": message.base_version, "attempt": message.attempt}
    elif isinstance(message, Probe):
        fields |= {"own": message.personal, "keep": message.export}
    elif isinstance(message, Update):
        fields |= {"base_version": message.base_version, "attempt": message.attempt, "weight": message.weight}
        fields |= {"metrics": message.metrics}
    elif isinstance(message, ProtectionRequest):
        fields |= {"phase": message.phase, "attempt": message.attempt}
    elif isinstance(message, ProtectionReply):
        fields |= {"phase": message.phase}
    elif isinstance(message, Score):
        fields |= {"metrics": message.metrics}
    elif isinstance(message, Failure):
        fields |= {"reason": message.reason}
    body = body or body_of(message)
    fields |= {"parts": body.parts, "names": body.names}
    metadata = json.dumps(fields | {"digest": _signature(fields, body.header, body.digest)})
    text = json.dumps({"__metadata__": {"weft": metadata}} | body.header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *body.pieces])


def _split(raw: Raw) -> tuple[JsonObject, memoryview]:
    """Return the header of a file, and the bytes of its tensors."""
    size = int.from_bytes(raw[:8], "little")
    return json.loads(bytes(raw[8 : 8 + size]), object_pairs_hook=_once), memoryview(raw)[8 + size :]


def _digest(pieces: Iterable[memoryview]) -> str:
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _signature(fields: JsonObject, header: JsonObject, body: str) -> str:
    """Return a checksum of a message: it detects damage, not forgery, for it has no key."""
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    content = {name: value for name, value in fields.items() if name != "digest"}
    return hashlib.sha256(json.dumps([content, tensors, body], sort_keys=True).encode()).hexdigest()


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
        _bad(f"{len(raw)} bytes, more than the limit of {max_bytes}")
    fields, values = _header(raw, max_tensors)
    if fields.get("v") != VERSION or fields.get("run") != run:
        _bad("a message of another version or run")
    kind, client, round = fields.get("kind"), fields.get("client"), fields.get("round")
    if not isinstance(client, str) or not 0 < len(client) <= MAX_NAME or not _whole(round):
        _bad("no valid client or round")
    assert isinstance(round, int)
    parts = _parts(fields, values)
    if kind in ("Task", "Probe"):
        params = parts.pop("params", {})
        extra = {stream.removeprefix("extra."): values for stream, values in parts.items()}
        if kind == "Probe":
            return Probe(client, round, params, extra, bool(fields.get("own", True)), bool(fields.get("keep", False)))
        return Task(client, round, _number(fields, "base_version"), params, extra, _number(fields, "attempt"))
    if kind == "Update":
        streams = {stream.removeprefix("stream."): values for stream, values in parts.items()}
        version, attempt = _number(fields, "base_version"), _number(fields, "attempt")
        return Update(client, round, version, streams, _float(fields.get("weight")), _metrics(fields), attempt)
    if kind in ("ProtectionRequest", "ProtectionReply"):
        streams = {stream.removeprefix("stream."): values for stream, values in parts.items()}
        phase = str(fields.get("phase", ""))[:MAX_NAME]
        if kind == "ProtectionReply":
            return ProtectionReply(client, round, phase, streams)
        return ProtectionRequest(client, round, phase, streams, _number(fields, "attempt"))
    if kind == "Score":
        return Score(client, round, _metrics(fields))
    if kind == "Failure":
        return Failure(client, round, str(fields.get("reason", ""))[:MAX_NAME])
    if kind != "Undo":
        _bad("a message of unknown kind")
    return Undo(client, round)


def _header(raw: Raw, max_tensors: int) -> tuple[JsonObject, list[torch.Tensor]]:
    """Check the header, and return the message's fields and its tensors in the order of their numbers."""
    if len(raw) < 8:
        _bad("too few bytes")
    size = int.from_bytes(raw[:8], "little")
    if size > min(len(raw) - 8, MAX_HEADER + MAX_HEADER_PER_TENSOR * max_tensors):
        _bad("a header that exceeds the message or the limit")
    try:
        header, body = _split(raw)
        fields = json.loads(header.pop("__metadata__")["weft"], object_pairs_hook=_once)
    except BadUpdate:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        _bad("a header that cannot be read")
    if not isinstance(fields, dict) or len(header) > max_tensors:
        _bad("too many tensors, or a header without fields")
    if fields.get("digest") != _signature(fields, header, _digest([body])):
        _bad("a message with a wrong checksum")
    return fields, _tensors(header, body)


def _tensors(header: JsonObject, body: memoryview) -> list[torch.Tensor]:
    """Return the tensors in the order of their numbers; they must fill the body without gaps or overlaps."""
    spans = []
    for number in range(len(header)):
        value = header.get(str(number))
        if not isinstance(value, dict):
            _bad("tensors that are not numbered")
        shape, span = value.get("shape"), value.get("data_offsets")
        format = FORMATS.get(str(value.get("dtype")))
        if format is None or not _counts(shape, 8) or not _counts(span, 2) or len(span) != 2:
            _bad("a tensor with an invalid dtype, shape or span")
        begin, stop = span
        if math.prod(shape) * format.itemsize != stop - begin:
            _bad("a tensor whose size does not match its shape")
        spans.append((begin, stop, number, shape, format))
    end, tensors = 0, [torch.empty(0)] * len(spans)
    for begin, stop, number, shape, format in sorted(spans, key=lambda one: one[:3]):
        if begin != end or stop > len(body):
            _bad("tensors that overlap or lie outside the message")
        end = stop
        flat = torch.frombuffer(_writable(body[begin:stop], begin, format), dtype=format) if stop > begin else EMPTY
        tensors[number] = flat.to(format).reshape(shape)
    if end != len(body):
        _bad("bytes that belong to no tensor")
    return tensors


def _writable(piece: memoryview, begin: int, format: torch.dtype) -> memoryview | bytearray:
    """Return memory for a tensor: the piece itself, or a copy where it is read-only or not aligned."""
    return bytearray(piece) if piece.readonly or begin % format.itemsize else piece


def _parts(fields: JsonObject, values: list[torch.Tensor]) -> Streams:
    """Return the tensors by their parts and names."""
    parts, names = fields.get("parts"), fields.get("names")
    if not isinstance(parts, list) or not isinstance(names, list) or len(names) != len(values):
        _bad("names that do not match the tensors")
    if not all(isinstance(part, str) and len(part) <= MAX_NAME for part in parts):
        _bad("a part without a valid name")
    streams: Streams = {part: Tensors() for part in parts}
    for pair, value in zip(names, values, strict=True):
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, str) and len(n) <= MAX_NAME for n in pair)
        ):
            _bad("a tensor without a valid name")
        part, name = pair
        if part not in streams or name in streams[part]:
            _bad("a tensor with a repeated name, or of an unknown part")
        streams[part][name] = value
    return streams


def _metrics(fields: JsonObject) -> Metrics:
    metrics = fields.get("metrics", {})
    if not isinstance(metrics, dict) or len(metrics) > MAX_METRICS:
        _bad("invalid metrics, or too many")
    if any(len(name) > MAX_NAME for name in metrics):
        _bad("metrics with too long names")
    return {name: _float(value) for name, value in metrics.items()}


def _float(value: object) -> float:
    try:
        return (
            float(value)
            if isinstance(value, (int, float)) and not isinstance(value, bool)
            else _bad("a value that is not a number")
        )
    except OverflowError:
        _bad("a number that is too large")


def _number(fields: JsonObject, name: str) -> int:
    value = fields.get(name)
    if not _whole(value):
        _bad(f"no valid {name}")
    assert isinstance(value, int)
    return value


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _counts(value: object, max_length: int) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) <= max_length and all(_whole(one) for one in value)


def _once(pairs: list[tuple[str, object]]) -> JsonObject:
    """Refuse an object with a repeated name: JSON readers differ in which value they take."""
    values = dict(pairs)
    if len(values) < len(pairs):
        _bad("a repeated name")
    return values


def _bad(content: str) -> NoReturn:
    raise BadUpdate(f"sent {content}")
