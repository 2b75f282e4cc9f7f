"""The bytes of a message, read with suspicion: nothing is allocated for what a header claims and does not hold."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from mmap import mmap
from typing import NoReturn, TypeGuard

import numpy as np
import torch
import xxhash

from weft.core.types import Metrics, Streams, Tensors
from weft.errors import BadUpdate
from weft.json_types import JsonObject

Raw = bytes | mmap | memoryview
"""A message: bytes, a mapped file, or memory that another process wrote."""
EMPTY = torch.empty(0)
FORMATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I8": torch.int8,
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
MAX_PROOF = 1 << 15
"""Longest proof in hexadecimal digits."""


def split_file(raw: Raw) -> tuple[JsonObject, memoryview]:
    """Return the header of a file, and the bytes of its tensors."""
    size = int.from_bytes(raw[:8], "little")
    return json.loads(bytes(raw[8 : 8 + size]), object_pairs_hook=_once), memoryview(raw)[8 + size :]


def joined(pieces: Sequence[bytes | memoryview]) -> memoryview:
    """Return bytes in pieces as one read-only memory.

    numpy asks for huge pages, so that this is three times as fast as joining to bytes.
    """
    whole = np.empty(sum(map(len, pieces)), dtype=np.uint8).data
    end = 0
    for piece in pieces:
        begin, end = end, end + len(piece)
        whole[begin:end] = piece
    return whole.toreadonly()


def digest_of(pieces: Iterable[memoryview]) -> str:
    """Return the xxh3 digest of bytes in pieces, as hexadecimal digits."""
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def signature_of(fields: JsonObject, header: JsonObject, body: str) -> str:
    """Return a checksum of a message: it detects damage, not forgery, for it has no key."""
    tensors = {name: value for name, value in header.items() if name != "__metadata__"}
    content = {name: value for name, value in fields.items() if name != "digest"}
    return hashlib.sha256(json.dumps([content, tensors, body], sort_keys=True).encode()).hexdigest()


def read_header(raw: Raw, max_tensors: int) -> tuple[JsonObject, list[torch.Tensor]]:
    """Check the header, and return the message's fields and its tensors in the order of their numbers."""
    if len(raw) < 8:
        refuse("too few bytes")
    size = int.from_bytes(raw[:8], "little")
    if size > min(len(raw) - 8, MAX_HEADER + MAX_HEADER_PER_TENSOR * max_tensors):
        refuse("a header that exceeds the message or the limit")
    try:
        header, body = split_file(raw)
        fields = json.loads(header.pop("__metadata__")["weft"], object_pairs_hook=_once)
        signature = signature_of(fields, header, digest_of([body])) if isinstance(fields, dict) else ""
    except BadUpdate:
        raise
    # json raises RecursionError for deep nesting: a few kilobytes suffice.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        refuse("a header that cannot be read")
    if not isinstance(fields, dict) or len(header) > max_tensors:
        refuse("too many tensors, or a header without fields")
    if fields.get("digest") != signature:
        refuse("a message with a wrong checksum")
    return fields, _tensors(header, body)


def _tensors(header: JsonObject, body: memoryview) -> list[torch.Tensor]:
    """Return the tensors in the order of their numbers; they must fill the body without gaps or overlaps."""
    spans = []
    for number in range(len(header)):
        value = header.get(str(number))
        if not isinstance(value, dict):
            refuse("tensors that are not numbered")
        shape, span = value.get("shape"), value.get("data_offsets")
        format = FORMATS.get(str(value.get("dtype")))
        if format is None or not _counts(shape, 8) or not _counts(span, 2) or len(span) != 2:
            refuse("a tensor with an invalid dtype, shape or span")
        begin, stop = span
        # Python integers do not overflow, whatever sizes the shape claims.
        if math.prod(shape) * format.itemsize != stop - begin:
            refuse("a tensor whose size does not match its shape")
        spans.append((begin, stop, number, shape, format))
    end, tensors = 0, [torch.empty(0)] * len(spans)
    body = _writable(body)
    for begin, stop, number, shape, format in sorted(spans, key=lambda one: one[:3]):
        if begin != end or stop > len(body):
            refuse("tensors that overlap or lie outside the message")
        end = stop
        # frombuffer refuses empty buffers.
        piece = bytearray(body[begin:stop]) if begin % format.itemsize else body[begin:stop]  # aligned
        flat = torch.frombuffer(piece, dtype=format) if stop > begin else EMPTY
        tensors[number] = flat.to(format).reshape(shape)
    if end != len(body):
        refuse("bytes that belong to no tensor")
    return tensors


def _writable(body: memoryview) -> memoryview:
    """Return the body, or a copy of it where it is read-only.

    One copy of all tensors: numpy asks for huge pages, which makes it four times as fast as copies of each.
    """
    return np.frombuffer(body, dtype=np.uint8).copy().data if body.readonly else body


def read_parts(fields: JsonObject, values: list[torch.Tensor]) -> Streams:
    """Return the tensors by their parts and names."""
    parts, names = fields.get("parts"), fields.get("names")
    if not isinstance(parts, list) or not isinstance(names, list) or len(names) != len(values):
        refuse("names that do not match the tensors")
    if not all(isinstance(part, str) and len(part) <= MAX_NAME for part in parts):
        refuse("a part without a valid name")
    streams: Streams = {part: Tensors() for part in parts}
    for pair, value in zip(names, values, strict=True):
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, str) and len(n) <= MAX_NAME for n in pair)
        ):
            refuse("a tensor without a valid name")
        part, name = pair
        if part not in streams or name in streams[part]:
            refuse("a tensor with a repeated name, or of an unknown part")
        streams[part][name] = value
    return streams


def read_metrics(fields: JsonObject) -> Metrics:
    """Return the metrics of a message; raise BadUpdate for too many, or for what is no number."""
    metrics = fields.get("metrics", {})
    if not isinstance(metrics, dict) or len(metrics) > MAX_METRICS:
        refuse("invalid metrics, or too many")
    if any(len(name) > MAX_NAME for name in metrics):
        refuse("metrics with too long names")
    return {name: read_float(value) for name, value in metrics.items()}


def read_proof(fields: JsonObject) -> bytes:
    """Return the proof of a message, empty where it has none; raise BadUpdate for what is none."""
    text = fields.get("proof", "")
    if not isinstance(text, str) or len(text) > MAX_PROOF or not re.fullmatch(r"(?:[0-9a-f]{2})*", text):
        refuse("a proof that cannot be read")
    return bytes.fromhex(text)


def read_float(value: object) -> float:
    """Return a number as a float; raise BadUpdate for anything else."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        refuse("a value that is not a number")
    try:
        return float(value)
    except OverflowError:
        refuse("a number that is too large")


def read_count(fields: JsonObject, name: str) -> int:
    """Return a field that is a whole number from 0; raise BadUpdate for anything else."""
    value = fields.get(name)
    if not is_count(value):
        refuse(f"no valid {name}")
    assert isinstance(value, int)
    return value


def is_count(value: object) -> bool:
    """Say whether a value is a whole number from 0 that a float64 holds exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _counts(value: object, max_length: int) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) <= max_length and all(is_count(one) for one in value)


def _once(pairs: list[tuple[str, object]]) -> JsonObject:
    """Refuse an object with a repeated name: JSON readers differ in which value they take."""
    values = dict(pairs)
    if len(values) < len(pairs):
        refuse("a repeated name")
    return values


def refuse(content: str) -> NoReturn:
    """Raise BadUpdate."""
    raise BadUpdate(f"sent {content}")
