import io
import json

from rich.console import Console

from weft.runs.progress import Progress
from weft.runs.text import human_bytes, human_duration, human_number

ROUND = {
    "round": 3,
    "clients": ["a", "b"],
    "train_loss": 1.23456,
    "tokens_per_second": 12_345.6,
    "bytes_up": 2_000_000,
    "bytes_down": 2_500_000,
    "failures": {},
}
EVAL = {"round": 3, "loss": 1.5, "perplexity": 4.48, "accuracy": 0.875, "macro_f1": None}
SUMMARY = {
    "rounds": 5,
    "seconds": 200.0,
    "train_loss": 1.0,
    "bytes_up": 1,
    "bytes_down": 2,
    "eval": EVAL,
    "odd": float("nan"),
}


def drive(progress: Progress) -> None:
    with progress:
        progress.round(ROUND)
        progress.note("[bold]two of 3 rows were dropped")
        progress.note("[bold]two of 3 rows were dropped")
        progress.evaluation(EVAL)
        progress.round(ROUND | {"round": 4, "failures": {"[red]c": "NaN"}, "train_loss": None})
        progress.finish(SUMMARY)


def test_on_a_terminal_progress_is_a_live_line(capsys):
    out = io.StringIO()
    drive(Progress(5, quiet=False, as_json=False, console=Console(file=out, force_terminal=True, width=120)))
    text = out.getvalue()
    assert "round 3/5  2 clients  loss 1.2346  12.3k tokens/s  4.5 MB sent  0.0 s left" in text
    assert "round 4/5  2 clients  1 dropped  12.3k tokens/s" in text
    assert "round 3/5 evaluation  loss 1.5000  perplexity 4.48  accuracy 87.5%\n" in text
    assert "5 rounds in 3 min 20 s" in text
    assert capsys.readouterr().err == "weft: [bold]two of 3 rows were dropped\n"


def test_with_quiet_only_warnings_are_shown(capsys):
    out = io.StringIO()
    drive(Progress(5, quiet=True, as_json=False, console=Console(file=out, force_terminal=True)))
    drive(Progress(5, quiet=True, as_json=False))
    captured = capsys.readouterr()
    assert out.getvalue() + captured.out == ""
    assert captured.err.count("dropped") == 2


def test_json_is_one_object_a_line(capsys):
    drive(Progress(5, quiet=True, as_json=True))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["round", "eval", "round", "done"]
    assert events[0] == {"event": "round"} | ROUND
    assert events[3]["odd"] is None


def test_bytes_are_written_in_readable_units():
    assert [human_bytes(n) for n in (0, 999, 1500, 999_999, 2.5e9, 3e18)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "1.0 MB",
        "2.5 GB",
        "3000.0 PB",
    ]
    assert [human_number(n) for n in (0.12345, 12, 950, 12_345, 1_200_000)] == ["0.1235", "12", "950", "12.3k", "1.2M"]
    assert [human_duration(s) for s in (0.44, 42, 60, 200, 7500, 273_600)] == [
        "0.4 s",
        "42 s",
        "1 min 0 s",
        "3 min 20 s",
        "2 h 5 min",
        "3 d 4 h",
    ]
