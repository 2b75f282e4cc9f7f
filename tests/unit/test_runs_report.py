import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import weft
from weft.cli import main
from weft.errors import ConfigError
from weft.runs.layout import RunDir
from weft.runs.metrics import MetricsLog
from weft.runs.report import write_report

HOSTILE = "<script>alert('x')</script>&\ud800"
VOID = {"meta", "br", "img", "input", "link", "hr"}


def make_run(path: Path, *, rounds: int = 20, clients: int = 3, finished: bool = True) -> Path:
    config = {
        "fed_alg": "fedavg",
        "model_name_or_path": "tiny/<b>llama",
        "dataset_name": "notes & questions",
        "num_clients": clients,
        "num_rounds": rounds,
        "learning_rate": 1e-4,
        "clients": None,
    }
    names = [HOSTILE, *(f"client_{i}" for i in range(1, clients))]
    scores = {"loss": 1.25, "perplexity": 3.49, "accuracy": 0.75, "macro_f1": None}
    with RunDir.create(path, config, resume=False, overwrite=False, volatile=frozenset()) as run:
        with MetricsLog(run.metrics_file) as log, MetricsLog(run.timing_file) as timing:
            for round in range(1, rounds + 1):
                loss = 1 + 2 / round**0.5
                log.append(
                    {
                        "event": "round",
                        "round": round,
                        "clients": names[:2],
                        "train_loss": loss,
                        "tokens": 12345,
                        "examples": 160,
                        "bytes_up": 10**6,
                        "bytes_down": 10**6,
                        "learning_rate": 1e-4,
                        "failures": {HOSTILE: "the loss is <NaN>"} if round % 7 == 0 else {},
                    }
                )
                timing.append({"round": round, "seconds": 1.5, "tokens_per_second": 8230.0})
                if round % 5 == 0:
                    log.append(
                        {
                            "event": "eval",
                            "round": round,
                            **scores,
                            "loss": loss + 0.1,
                            "accuracy": 1 - 1 / round,
                            "rows": 40,
                            "clients": {name: scores | {"rows": 10} for name in names},
                        }
                    )
        if finished:
            summary = {
                "rounds": rounds,
                "seconds": 205.0,
                "tokens": 246_900,
                "bytes_up": 20_000_000,
                "bytes_down": 20_000_000,
                "peak_memory_bytes": 1_234_000_000,
                "train_loss": 1.447,
                "eval": scores,
                "clients": {name: scores | {"rows": 10} for name in names},
                "failures": {},
            }
            run.summary_file.write_text(json.dumps(summary))
    return path


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_whole_escaped_and_needs_nothing_from_outside(tmp_path):
    path = write_report(make_run(tmp_path / "run"))
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "b"} & set(page.seen)
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#)", text)
    assert "@import" not in text
    for words in (
        "fedavg",
        "tiny/&lt;b&gt;llama",
        "20 of 20",
        "3 min 25 s",
        "1.2 GB",
        "75.0%",
        "client_2",
        "246,900",
        "the loss is &lt;NaN&gt;",
        "&lt;script&gt;",
        "learning_rate: 0.0001",
        "evaluation accuracy",
    ):
        assert words in text, words
    assert page.seen.count("svg") == 1
    assert "currentColor" in text


def test_the_same_run_makes_the_same_report(tmp_path):
    run = make_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_the_report_says_that_a_run_is_unfinished_and_shortens_many_clients(tmp_path):
    text = write_report(make_run(tmp_path / "run", rounds=6, clients=250, finished=False)).read_text()
    assert "6 of 6, not finished" in text
    assert "and 50 more" in text
    assert "6.0 MB" in text


def test_the_report_of_a_run_without_rounds_has_no_charts(tmp_path):
    text = write_report(make_run(tmp_path / "run", rounds=0, finished=False)).read_text()
    assert "<svg" not in text
    assert "Configuration" in text


def test_a_report_where_there_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="There is no run"):
        write_report(tmp_path)


def test_a_run_without_its_report_keeps_none_of_an_earlier_start_and_the_verb_writes_it(keys, capsys):
    page = Path(str(keys["output_dir"])) / "report.html"
    weft.train(keys | {"num_rounds": 1, "report": True})
    assert page.exists()
    weft.train(keys | {"num_rounds": 2}, resume=True)
    assert not page.exists()
    capsys.readouterr()
    assert main(["report", str(keys["output_dir"])]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert "2 of 2" in page.read_text(encoding="utf-8")
    assert main(["report", str(keys["output_dir"]), "nowhere"]) == 2
    assert "no run" in capsys.readouterr().err
