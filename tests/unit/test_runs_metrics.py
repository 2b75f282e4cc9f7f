import json
import math

import pytest

from weft.core.files import drop_unfinished_line, whole_lines
from weft.errors import DataError, RunError
from weft.runs.metrics import MetricsLog, read, to_frame


def test_lines_come_back_and_what_is_not_finite_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append({"event": "round", "round": 1, "train_loss": 0.1 + 0.2, "clients": ("a", "é\ud800")})
        log.append({"round": 2, "train_loss": math.nan, "deep": {"x": [math.inf, 1]}})
    assert read(path) == [
        {"event": "round", "round": 1, "train_loss": 0.1 + 0.2, "clients": ["a", "é\ud800"]},
        {"round": 2, "train_loss": None, "deep": {"x": [None, 1]}},
    ]


def test_cut_back_and_continued_it_is_the_same_file(tmp_path):
    records = [{"round": round, "loss": round / 3} for round in range(6)]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    with MetricsLog(whole) as log:
        for record in records:
            log.append(record)
    log = MetricsLog(resumed)
    for record in records[:3]:
        log.append(record)
    offset = log.commit()
    assert offset == resumed.stat().st_size
    log.append({"round": 3, "loss": "of a round that was never committed"})
    log.close()
    with MetricsLog(resumed) as log:
        log.truncate(offset)
        for record in records[3:]:
            log.append(record)
        assert log.commit() == whole.stat().st_size
    assert resumed.read_bytes() == whole.read_bytes()


def test_truncate_beyond_the_end_is_an_error(tmp_path):
    with MetricsLog(tmp_path / "log") as log, pytest.raises(RunError, match="0 bytes where 7"):
        log.truncate(7)


def test_read_of_missing_cut_and_broken_files(tmp_path):
    path = tmp_path / "log"
    assert read(path) == []
    path.write_text('{"round": 1}\n{"rou')
    assert read(path) == [{"round": 1}]
    path.write_text('{"round": 1}\n[1]\n{}\n')
    with pytest.raises(DataError, match="Line 2 of"):
        read(path)


def test_frame_has_one_row_a_round():
    records = [
        {"event": "eval", "round": 0, "loss": 3.0, "accuracy": None, "clients": {"a": {"loss": 3.0}}},
        {"event": "round", "round": 1, "train_loss": 2.0, "tokens": 7, "failures": {"b": "x"}},
        {"event": "round", "round": 2, "train_loss": 1.5, "tokens": 8, "failures": {}},
        {"event": "eval", "round": 2, "loss": 1.0, "accuracy": 0.5},
        {"round": 2, "seconds": 0.5},
    ]
    frame = to_frame(records)
    assert frame.index.tolist() == [0, 1, 2]
    assert frame.index.name == "round"
    assert frame["train_loss"].tolist()[1:] == [2.0, 1.5]
    assert frame.loc[2, "eval_loss"] == 1.0
    assert frame.loc[2, "eval_accuracy"] == 0.5
    assert frame.loc[2, "seconds"] == 0.5
    assert frame.loc[1, "failures"] == {"b": "x"}
    assert "eval_clients" not in frame
    assert len(to_frame([])) == 0
    json.dumps(frame["train_loss"].dropna().tolist())


def test_an_unfinished_line_counts_as_none_and_can_be_removed(tmp_path):
    path = tmp_path / "log"
    assert whole_lines(path) == []
    drop_unfinished_line(path)
    assert not path.exists()
    cases = ((b"", [], b""), (b"a\n\nb\n", [b"a", b"", b"b"], b"a\n\nb\n"), (b"a\nb", [b"a"], b"a\n"), (b"a", [], b""))
    for content, lines, left in cases:
        path.write_bytes(content)
        assert whole_lines(path) == lines
        assert path.read_bytes() == content
        drop_unfinished_line(path)
        assert path.read_bytes() == left
