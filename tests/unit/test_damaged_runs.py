"""Runs whose files somebody damaged or forged: a page that says so, or one sentence, and never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from support.run_files import lay_run
from weft.cli import main
from weft.errors import WeftError
from weft.launch.run import Run
from weft.runs.chain import ChainLog

MARK = "<script>alert(1)</script>"
Damage = Callable[[Path], None]


def summary(**values: Any) -> Damage:
    return lambda run: _write(run / "summary.json", json.loads((run / "summary.json").read_text()) | values)


def split(name: str, value: Any) -> Damage:
    def damage(run: Path) -> None:
        found = json.loads((run / "split.json").read_text())
        found["clients"]["a"][name] = value
        _write(run / "split.json", found)

    return damage


def lines(file: str, **values: Any) -> Damage:
    def damage(run: Path) -> None:
        found = [json.loads(line) | values for line in (run / file).read_text().splitlines()]
        (run / file).write_text("".join(json.dumps(line) + "\n" for line in found))

    return damage


def raw(file: str, content: bytes) -> Damage:
    return lambda run: (run / file).write_bytes(content) and None


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value))


WRONG = {
    "text for scores": summary(eval="x"),
    "number for models": summary(models=7),
    "text for seconds": summary(seconds=MARK),
    "list for clients": summary(clients=[1]),
    "no summary": raw("summary.json", b""),
    "summary that is a number": raw("summary.json", b"7"),
    "bytes": raw("summary.json", b"\xff\xfe"),
    "deep": raw("summary.json", b"[" * 100_000),
    "number for lengths": split("tokens", 1e308),
    "text for labels": split("labels", [MARK, MARK, MARK]),
    "list for rows": split("rows", [1]),
    "no round": lines("metrics.jsonl", round=None),
    "text for a round": lines("timing.jsonl", round=MARK),
    "endless round": lines("timing.jsonl", round=float("inf")),
    "number for clients of a round": lines("metrics.jsonl", clients=10**400),
}
HARMLESS = {
    "huge": summary(tokens=1e308, bytes_up=1e308),
    "huge loss": lines("metrics.jsonl", train_loss=1e308),
    "negative": summary(seconds=-5),
    "far rounds": lines("metrics.jsonl", round=10**12),
    "a name": summary(failures={MARK: 3}),
}


def commands(run: Path, other: Path) -> list[list[str]]:
    page = str(run.parent / "page.html")
    compare = ["compare", str(run), str(other)]
    return [
        ["report", str(run)],
        compare,
        [*compare, "--json"],
        [*compare, "--csv"],
        [*compare, "--html", page],
        ["verify", str(run)],
    ]


@pytest.mark.parametrize("name", [*WRONG, *HARMLESS])
def test_a_damaged_file_is_said_in_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, other = lay_run(tmp_path / "run", names=["a", "b"]), lay_run(tmp_path / "other", names=["a", "b"])
    (WRONG | HARMLESS)[name](run)
    codes = []
    for words in commands(run, other):
        capsys.readouterr()
        codes.append(main(words))  # any other error than Weft's own ends the test
        said = capsys.readouterr().err
        if codes[-1] == 2:
            assert said.count("\n") == 1
            assert said.startswith("weft: ")
    assert (2 in codes) is (name in WRONG)
    for page in (run / "report.html", tmp_path / "page.html"):
        assert not page.exists() or MARK not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", WRONG)
def test_a_notebook_gets_one_sentence_too(name: str, tmp_path: Path):
    paths = [lay_run(tmp_path / folder, names=["a", "b"]) for folder in ("run", "other")]
    run, other = map(Run, paths)
    WRONG[name](paths[0])
    said = []
    for ask in (run.report, run.plot, lambda: other.report(paths[0])):
        with suppress(WeftError):  # any other error ends the test
            ask()
            continue
        said.append(name)
    assert said


def test_the_run_that_was_changed_is_named_with_what_was_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good, bad = lay_run(tmp_path / "good", names=["a", "b"]), lay_run(tmp_path / "bad", names=["a", "b"])
    summary(eval="x")(bad)
    (good / "chain.jsonl").unlink()  # of an old Weft: nothing is known of it
    (bad / "chain.jsonl").write_bytes(b"{}\n")
    assert main(["compare", str(bad), str(good)]) == 2
    said = capsys.readouterr().err
    assert f"A file in '{bad}' holds what Weft does not write (AttributeError" in said
    assert "`weft verify` says: chain.jsonl" in said


def test_a_page_says_which_rounds_its_log_has_lost(tmp_path: Path):
    run = lay_run(tmp_path / "run", names=["a", "b"])
    assert main(["report", str(run)]) == 0
    assert "has no line of round" not in (run / "report.html").read_text(encoding="utf-8")
    file = run / "metrics.jsonl"
    kept = [line for line in file.read_text().splitlines() if json.loads(line)["round"] not in (3, 7, 8)]
    file.write_text("".join(f"{line}\n" for line in kept))
    assert main(["report", str(run)]) == 0
    assert "metrics.jsonl has no line of round 3, 7 to 8: the log was changed." in (run / "report.html").read_text(
        encoding="utf-8"
    )


def test_names_in_a_record_do_not_write_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """`weft verify` is what one runs on a run that one does not trust: it printed names of fields as they were."""
    run, evil = lay_run(tmp_path / "run", names=["a", "b"]), "\x1b]0;owned\x07\x1b[2J"
    lines("metrics.jsonl", **{f"loss{evil}": 1.0})(run)
    (run / "chain.jsonl").unlink()
    with ChainLog(run / "chain.jsonl") as chain:
        chain.append({"event": "begin"})
        chain.append({"event": "end", "rounds": 20, "files": {f"gone{evil}": "0"}})
    assert main(["verify", str(run)]) == 1
    said = capsys.readouterr()
    assert "gone" in said.out
    assert "\x1b" not in said.out + said.err
    assert "\x07" not in said.out + said.err
