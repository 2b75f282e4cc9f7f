"""A ledger counts what was released, whatever happens to the process, and shows what was changed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from support.kills import in_a_child
from weft.errors import ConfigError
from weft.privacy.ledger import Ledger


def test_a_kill_at_any_point_never_loses_what_was_released(tmp_path: Path):
    killed = 0
    for kill_at in range(1, 60):
        file, released = tmp_path / f"{kill_at}.jsonl", tmp_path / f"{kill_at}.released"

        def work(file=file, released=released) -> None:
            for number in range(3):
                Ledger(file).append({"round": number})
                with open(released, "a") as out:
                    out.write(f"{number}\n")

        code = in_a_child(work, kill_at=kill_at)
        assert code in (0, 9)
        killed += code == 9
        seen = len(released.read_text().split()) if released.exists() else 0
        ledger = Ledger(file)
        assert seen <= len(ledger.entries) <= seen + 1
        # It goes on from there.
        ledger.append({"round": 99})
        assert [entry["round"] for entry in Ledger(file).entries][-1] == 99
        if code == 0:
            break
    assert killed > 15
    assert code == 0


def test_a_line_that_was_cut_anywhere_was_never_released(tmp_path: Path):
    file = tmp_path / "ledger.jsonl"
    ledger = Ledger(file)
    ledger.append({"round": 1})
    head, before = ledger.head.read_bytes(), file.read_bytes()
    ledger.append({"round": 2})
    whole = file.read_bytes()
    for cut in range(len(before), len(whole)):
        file.write_bytes(whole[:cut])
        ledger.head.write_bytes(head)
        again = Ledger(file)
        assert again.entries == [{"round": 1}]
        assert file.read_bytes() == before
    # The whole line, and the head of the one before: the process ended between both.
    file.write_bytes(whole)
    assert Ledger(file).entries == [{"round": 1}, {"round": 2}]


CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a smaller number": lambda lines: [lines[0].replace(b"8.0", b"0.8"), *lines[1:]],
    "a line less in the middle": lambda lines: [lines[0], *lines[2:]],
    "the last line left out": lambda lines: lines[:-2],
    "nothing": lambda lines: [],
    "two lines exchanged": lambda lines: [lines[1], lines[0], *lines[2:]],
    "a line of somebody's own": lambda lines: [*lines, b'{"epsilon": 0.0, "chain": "0"}\n'],
    "no JSON": lambda lines: [b"[]\n", *lines],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_was_changed_by_hand_is_refused(tmp_path: Path, change):
    file = tmp_path / "ledger.jsonl"
    ledger = Ledger(file)
    for number in range(4):
        ledger.append({"round": number, "epsilon": 8.0})
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    with pytest.raises(ConfigError, match="was changed by hand"):
        Ledger(file)


def test_a_head_that_is_gone_is_a_change_too(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for number in range(2):
        ledger.append({"round": number})
    ledger.head.unlink()
    with pytest.raises(ConfigError, match=r"'\.head'"):
        Ledger(ledger.file)


def test_the_lines_are_json_and_say_what_was_spent(tmp_path: Path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append({"round": 1, "epsilon": 0.5})
    (line,) = (json.loads(line) for line in ledger.file.read_text().splitlines())
    assert line.pop("chain") == ledger.head.read_text().strip()
    assert line == {"round": 1, "epsilon": 0.5}
