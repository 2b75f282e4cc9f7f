"""Messages and replies as bytes: a safetensors file whose header says what it is; nothing in it can run.

What comes from elsewhere is checked before anything is allocated: its size, the size of its header, the number of its
tensors, that offsets, shapes and number formats agree and that the tensors fill the rest of the bytes exactly.
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
"""What came: bytes, a file of them, or memory that another process wrote."""
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
HEADER = 1 << 20
"""Bytes that a header has at most, and what each tensor that is expected may add."""
EACH = 1 << 10
MOST_METRICS = 512
LONGEST = 300
"""Characters of a name."""


@dataclass(frozen=True)
class Body:
    """The tensors of a message as bytes: several messages may have the same."""

    parts: list[str]
    names: list[list[str]]
    header: JsonObject
    pieces: list[memoryview]
    digest: str


def body_of(message: Message | Reply) -> Body:
    """Return what a message holds of tensors; the bytes are the tensors' own."""
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
    """Packs messages of one exchange: tensors that several of them have are read once."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._lock = threading.Lock()
        self._known: dict[tuple[object, ...], tuple[Message, Body]] = {}

    def pack(self, message: Message) -> bytes:
        """Return a message as bytes."""
        if not isinstance(message, (Task, Probe)):
            return pack(message, self.run)
        key = (id(message.params), *((name, id(values)) for name, values in message.extra.items()))
        with self._lock:
            if key not in self._known:
                # The message stays with its body, so that no other tensors can come to have the same id.
                self._known[key] = message, body_of(message)
            body = self._known[key][1]
        return pack(message, self.run, body)


def pack(message: Message | Reply, run: str = "", body: Body | None = None) -> bytes:
    """Return a message or a reply of a run as bytes; `body`, where its tensors have been read already."""
    kind = type(message).__name__
    said: JsonObject = {"v": VERSION, "kind": kind, "run": run, "client": message.client, "round": message.round}
    if isinstance(message, Task):
        said |= {"base_version": message.base_version, "attempt": message.attempt}
    elif isinstance(message, Probe):
        said |= {"own": message.own, "keep": message.keep}
    elif isinstance(message, Update):
        said |= {"base_version": message.base_version, "attempt": message.attempt, "weight": message.weight}
        said |= {"metrics": message.metrics}
    elif isinstance(message, ProtectionRequest):
        said |= {"phase": message.phase, "attempt": message.attempt}
    elif isinstance(message, ProtectionReply):
        said |= {"phase": message.phase}
    elif isinstance(message, Score):
        said |= {"metrics": message.metrics}
    elif isinstance(message, Failure):
        said |= {"reason": message.reason}
    body = body or body_of(message)
    said |= {"parts": body.parts, "names": body.names}
    words = json.dumps(said | {"digest": _signature(said, body.header, body.digest)})
    text = json.dumps({"__metadata__": {"weft": words}} | body.header, separators=(",", ":")).encode()
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


def _signature(said: JsonObject, header: JsonObject, body: str) -> str:
    """Return what changes with any bit of a message: it finds what was damaged, not what was forged."""
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    words = {name: value for name, value in said.items() if name != "digest"}
    return hashlib.sha256(json.dumps([words, tensors, body], sort_keys=True).encode()).hexdigest()


def unpack(raw: Raw, *, run: str = "", most: int | None = None, tensors: int = 1 << 14) -> Message | Reply:
    """Return what bytes hold.

    Args:
        raw: what came; tensors lie in it where it can be written to, otherwise in copies.
        run: the run that it must be of.
        most: bytes that it may have.
        tensors: tensors that it may have.

    Raises:
        BadUpdate: it is too large, damaged, or of another run or version.
    """
    if most is not None and len(raw) > most:
        _bad(f"{len(raw)} bytes, and {most} are the most that can be")
    said, found = _header(raw, tensors)
    if said.get("v") != VERSION or said.get("run") != run:
        _bad("a message of another version or run")
    kind, client, round = said.get("kind"), said.get("client"), said.get("round")
    if not isinstance(client, str) or not 0 < len(client) <= LONGEST or not _whole(round):
        _bad("no client or no round")
    assert isinstance(round, int)
    parts = _parts(said, found)
    if kind in ("Task", "Probe"):
        params = parts.pop("params", {})
        extra = {stream.removeprefix("extra."): values for stream, values in parts.items()}
        if kind == "Probe":
            return Probe(client, round, params, extra, bool(said.get("own", True)), bool(said.get("keep", False)))
        return Task(client, round, _number(said, "base_version"), params, extra, _number(said, "attempt"))
    if kind == "Update":
        streams = {stream.removeprefix("stream."): values for stream, values in parts.items()}
        version, attempt = _number(said, "base_version"), _number(said, "attempt")
        return Update(client, round, version, streams, _float(said.get("weight")), _metrics(said), attempt)
    if kind in ("ProtectionRequest", "ProtectionReply"):
        streams = {stream.removeprefix("stream."): values for stream, values in parts.items()}
        phase = str(said.get("phase", ""))[:LONGEST]
        if kind == "ProtectionReply":
            return ProtectionReply(client, round, phase, streams)
        return ProtectionRequest(client, round, phase, streams, _number(said, "attempt"))
    if kind == "Score":
        return Score(client, round, _metrics(said))
    if kind == "Failure":
        return Failure(client, round, str(said.get("reason", ""))[:LONGEST])
    if kind != "Undo":
        _bad("a message of no known kind")
    return Undo(client, round)


def _header(raw: Raw, most: int) -> tuple[JsonObject, list[torch.Tensor]]:
    """Check a file's header, and return what it says and its tensors in the order of their numbers."""
    if len(raw) < 8:
        _bad("too few bytes")
    size = int.from_bytes(raw[:8], "little")
    if size > min(len(raw) - 8, HEADER + EACH * most):
        _bad("a header that is longer than what there is, or than it may be")
    try:
        header, body = _split(raw)
        said = json.loads(header.pop("__metadata__")["weft"], object_pairs_hook=_once)
    except BadUpdate:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        _bad("a header that cannot be read")
    if not isinstance(said, dict) or len(header) > most:
        _bad("more tensors than can be, or a header that says nothing")
    if said.get("digest") != _signature(said, header, _digest([body])):
        _bad("a message that was damaged on its way")
    return said, _tensors(header, body)


def _tensors(header: JsonObject, body: memoryview) -> list[torch.Tensor]:
    """Return the tensors in the order of their numbers; they must fill the bytes one after the other."""
    spans = []
    for number in range(len(header)):
        value = header.get(str(number))
        if not isinstance(value, dict):
            _bad("tensors without numbers")
        shape, span = value.get("shape"), value.get("data_offsets")
        format = FORMATS.get(str(value.get("dtype")))
        if format is None or not _counts(shape, 8) or not _counts(span, 2) or len(span) != 2:
            _bad("a tensor of no known form")
        begin, stop = span
        if math.prod(shape) * format.itemsize != stop - begin:
            _bad("a tensor whose size is not what its shape says")
        spans.append((begin, stop, number, shape, format))
    end, found = 0, [torch.empty(0)] * len(spans)
    for begin, stop, number, shape, format in sorted(spans, key=lambda one: one[:3]):
        if begin != end or stop > len(body):
            _bad("tensors that overlap, or are not there")
        end = stop
        flat = torch.frombuffer(_writable(body[begin:stop], begin, format), dtype=format) if stop > begin else EMPTY
        found[number] = flat.to(format).reshape(shape)
    if end != len(body):
        _bad("bytes that belong to no tensor")
    return found


def _writable(piece: memoryview, begin: int, format: torch.dtype) -> memoryview | bytearray:
    """Return bytes that a tensor can lie in: these, or a copy."""
    return bytearray(piece) if piece.readonly or begin % format.itemsize else piece


def _parts(said: JsonObject, found: list[torch.Tensor]) -> Streams:
    """Return the tensors by their parts and names."""
    parts, names = said.get("parts"), said.get("names")
    if not isinstance(parts, list) or not isinstance(names, list) or len(names) != len(found):
        _bad("names that do not fit its tensors")
    if not all(isinstance(part, str) and len(part) <= LONGEST for part in parts):
        _bad("a part of no name")
    made: Streams = {part: Tensors() for part in parts}
    for pair, value in zip(names, found, strict=True):
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, str) and len(n) <= LONGEST for n in pair)
        ):
            _bad("a tensor of no name")
        part, name = pair
        if part not in made or name in made[part]:
            _bad("a tensor that is named twice, or of no part")
        made[part][name] = value
    return made


def _metrics(said: JsonObject) -> Metrics:
    metrics = said.get("metrics", {})
    if not isinstance(metrics, dict) or len(metrics) > MOST_METRICS:
        _bad("no metrics, or too many")
    if any(len(name) > LONGEST for name in metrics):
        _bad("metrics of endless names")
    return {name: _float(value) for name, value in metrics.items()}


def _float(value: object) -> float:
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else _bad("no number")
    except OverflowError:
        _bad("a number that is too large")


def _number(said: JsonObject, name: str) -> int:
    value = said.get(name)
    if not _whole(value):
        _bad(f"no {name}")
    assert isinstance(value, int)
    return value


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _counts(value: object, most: int) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) <= most and all(_whole(one) for one in value)


def _once(pairs: list[tuple[str, object]]) -> JsonObject:
    """Refuse a name that is given twice, of which readers would see different ones."""
    made = dict(pairs)
    if len(made) < len(pairs):
        _bad("a name that is given twice")
    return made


def _bad(what: str) -> NoReturn:
    raise BadUpdate(f"sent {what}")
