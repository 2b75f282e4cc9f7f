"""Messages as a hostile site may send them: damaged bytes, and lies whose checksum is right."""

from __future__ import annotations

import json
import random

from weft.core import wire_format
from weft.runtimes.mailbox import UNKNOWN_RUN

ESCAPES = "\x1b[2J\x1b]0;owned\x07", "\u202egnp.exe\u2066", "two\nlines\r\n", "\x00\x9b31m", "\ud83d", "\u200b\ue000"
"""Words that move a terminal's cursor, turn text around, begin lines, or cannot be written."""
WRONG = (None, -1, 2**70, 1e308, float("nan"), float("inf"), True, 2**39, [[]], "x" * 50_000, *ESCAPES)
"""Values that no field of an honest message has."""


def deep(depth: int) -> object:
    """Return lists in lists."""
    value: object = []
    for _ in range(depth):
        value = [value]
    return value


def signed(fields: dict[str, object], header: dict[str, object], body: bytes) -> bytes:
    """Return a message whose checksum is right, whatever it says."""
    fields = {name: value for name, value in fields.items() if name != "digest"}
    fields["digest"] = wire_format.signature_of(fields, header, wire_format.digest_of([memoryview(body)]))
    raw = json.dumps(header | {"__metadata__": {"weft": json.dumps(fields)}}).encode()
    return len(raw).to_bytes(8, "little") + raw + body


def apart(raw: bytes) -> tuple[dict[str, object], dict[str, object], bytes]:
    """Return the fields, the header of the tensors, and the bytes of the tensors of a message."""
    header, body = wire_format.split_file(raw)
    fields = json.loads(header.pop("__metadata__")["weft"])
    return fields, header, bytes(body)


def damaged(raw: bytes, chance: random.Random) -> bytes:
    """Return bytes that were flipped, cut, put in or repeated."""
    made, at = bytearray(raw), chance.randrange(len(raw))
    kind = chance.randrange(5)
    if kind == 0:
        for _ in range(chance.choice((1, 1, 9))):
            made[chance.randrange(len(made))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del made[at:]
    elif kind == 2:
        made[at:at] = chance.choice((b"[" * 60_000, b'{"a":' * 9_000, b"\\ud800", b"9" * 5_000, b"\x00\xff", b"1e999"))
    elif kind == 3:
        del made[at : at + chance.randint(1, 40)]
    else:
        made = bytearray(chance.choice((b"", b"[" * 60_000, b"null", b"{}", UNKNOWN_RUN, b"\xff" * 64, made + made)))
    return bytes(made) if made != raw else damaged(raw, chance)


def lying(raw: bytes, chance: random.Random) -> bytes:
    """Return a message of the wire that says something else, with the right checksum."""
    fields, header, body = apart(raw)
    kind = chance.randrange(6)
    if kind == 0:
        fields[chance.choice([name for name in fields if name != "digest"])] = chance.choice(WRONG)
    elif kind == 1:
        fields |= chance.choice(
            ({"round": 3}, {"round": 5}, {"client": "good_0"}, {"client": "nobody"}, {"kind": "Task"}, {"run": "other"})
        )
    elif kind == 2:
        fields[chance.choice(("weight", "metrics", "parts", "names", "round"))] = deep(900)
    elif kind == 3 and header:
        name = chance.choice(list(header))
        shape = chance.choice(([2**52, 2**52, 0], [0, 2**40, 2**40], [2**39], [-1], [2**31] * 9, [2**53], "4", [1.5]))
        header[name] = header[name] | {"shape": shape}  # type: ignore[operator]
    elif kind == 4 and header:
        name = chance.choice(list(header))
        header[name] = header[name] | chance.choice(  # type: ignore[operator]
            ({"dtype": "F64"}, {"dtype": "O"}, {"dtype": 3}, {"data_offsets": [0, 2**52]}, {"data_offsets": [8, 4]})
        )
    elif header:
        number = chance.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\xff\xff\x7f\x7f"))
        body = number + body[4:]  # NaN, infinities, 3.4e38
    else:
        fields["metrics"] = {chance.choice(ESCAPES): 1.0}
    return signed(fields, header, body)


def miscoded(raw: bytes, chance: random.Random) -> bytes:
    """Return an encoded update whose bytes no codec writes, with the right checksum."""
    fields, header, body = apart(raw)
    (number, entry), kind = next(iter(header.items())), chance.randrange(7)
    assert isinstance(entry, dict)
    if kind == 0:
        body = body[: chance.randrange(len(body))]
    elif kind == 1:
        body += chance.randbytes(chance.choice((1, 2, 4096)))
    elif kind == 2:
        entry = entry | {"dtype": chance.choice(("I8", "BOOL"))}
    elif kind == 3:
        entry = entry | {"shape": [1, len(body)]}
    elif kind == 4:
        body = b"\xff" * len(body)
    elif kind == 5:
        fields["names"] = [["stream.delta", chance.choice(("x", "norm", *ESCAPES[:2]))]]
    else:
        # Frames of zstd that claim terabytes, or hold more than they claim.
        claim = b"\x28\xb5\x2f\xfd\xe0" + chance.choice((1 << 41, 1 << 62, 9)).to_bytes(8, "little")
        size = len(body)
        body = b"\x01" + claim + chance.randbytes(chance.randrange(40))
        body += b"x" * (len(body) == size)  # as many bytes as there should be stand for numbers
    if kind != 3:
        entry = entry | {"shape": [len(body)]}
    return signed(fields, {number: entry | {"data_offsets": [0, len(body)]}}, body)


def false_words(raw: bytes, chance: random.Random) -> bytes:
    """Return an answer to the handshake that says something else."""
    said = json.loads(raw)
    kind = chance.randrange(4)
    if kind == 0:
        said[chance.choice(("rows", "held", "least"))] = chance.choice((*WRONG, "9" * 5_000, 10**400))
    elif kind == 1:
        said["agreed"] = chance.choice(WRONG)
    elif kind == 2:
        said = chance.choice((*WRONG, deep(900), [said], {"refused": deep(900)}))
    else:
        said = {"refused": chance.choice((*WRONG, {}, "\x1b[31m" * 9_000))}
    return json.dumps(said).encode()
