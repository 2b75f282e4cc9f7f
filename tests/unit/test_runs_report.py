"""report.html: one file that loads nothing, says all it has without a script, and is broken by no name."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import weft
from support.run_files import HOSTILE, lay_run
from weft.cli import main
from weft.errors import ConfigError
from weft.pages.html import MOST_ROWS
from weft.pages.report import write_report

VOID = {"meta", "br", "img", "input", "link", "hr"}
LIMIT = 1_500_000


class Page(HTMLParser):
    """What a page consists of; fails where its tags are not balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words += data


def whole(path: Path) -> Page:
    """Return a page that is one file: it is balanced, loads nothing, and its one script is its own."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not {"link", "img", "iframe", "object", "embed", "image", "use", "b"} & set(page.seen)
    assert page.seen.count("script") == 1
    names = {name for name, _ in page.attributes}
    assert not {"src", "href", "xlink:href", "srcset", "action"} & names
    assert not [name for name in names if name.startswith("on")]
    assert not [one for one in re.findall(r"https?://[^\"' <]+", text) if one != "http://www.w3.org/2000/svg"]
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text
    assert path.stat().st_size < LIMIT
    return page


def test_the_report_is_whole_escaped_and_needs_nothing_from_outside(tmp_path):
    path = write_report(lay_run(tmp_path / "run"))
    page = whole(path)
    text = path.read_text(encoding="utf-8")
    for words in (
        "fedavg",
        "tiny/&lt;b&gt;llama",
        "20 of 20",
        "3 min 25 s",
        "1.2 GB",
        "client_2",
        "246,900",
        "the loss is &lt;NaN&gt;",
        "&lt;script&gt;",
        "learning_rate: 0.0001",
        "evaluation accuracy",
        "&lt;img src=x&gt;",
        "&lt;i&gt;perhaps",
        "weft sft ",
        "2.13.0",
    ):
        assert words in text, words
    assert text.count('<svg class="plot"') == 5  # loss, score, product error, epsilon, tokens/s
    assert HOSTILE[:-1] in page.words
    assert "before training" in page.words


def test_each_part_of_a_page_says_what_it_is_there_for(tmp_path):
    """All numbers are those that `lay_run` writes down."""
    text = write_report(lay_run(tmp_path / "run", names=["a", "b", "c"])).read_text(encoding="utf-8")
    found = re.findall(r"<section><h2>(.*?)</h2>(.*?)</section>", text, re.S)
    parts = {name: Page(content).words for name, content in found}
    wanted = {
        "What was trained": ["LoRA, rank 8", "fedavg", "20 of 20"],
        "Curves": ["loss", "product error", "epsilon", "tokens/s", "(shaded: range of clients)", "values"],
        "Numbers": ["3 min 25 s", "246,900", "20.0 MB", "1.2 GB", "1.2k"],
        "Who took part": ["A strip runs from round 1 to round 20."],
        "Discarded updates": ["the loss is <NaN>"],
        "Answers to the server's prompts": ["before training", "<img src=x>", "after round 20", "blue"],
        "Data": ["split dirichlet; 3 clients, 30 to 50 rows each; sizes Gini 0.210; labels JS 0.050 (max 0.200)"],
        "Settings": ["weft sft ", "torch", "2.13.0", "learning_rate: 0.0001"],
    }
    for name, said in wanted.items():
        for one in said:
            assert one in parts[name], (name, one)


def test_the_result_stands_first_with_an_interval_that_is_worked_out_by_hand(tmp_path):
    """Accuracies of three clients after round 20: 1 - (1, 1.1, 1.2) / (1 + 20/3); t(0.975, 2) = 4.302653."""
    page = whole(write_report(lay_run(tmp_path / "run")))
    scores = [1 - ratio / (1 + 20 / 3) for ratio in (1, 1.1, 1.2)]
    mean = sum(scores) / 3
    half = 4.302653 * (sum((one - mean) ** 2 for one in scores) / 2 / 3) ** 0.5
    assert f"Mean over 3 clients {mean:.1%}, 95 % interval {mean - half:.1%} to {mean + half:.1%}." in page.words
    words = page.words
    assert (
        words.index("95 % interval") < words.index("What was trained") < words.index("Curves") < words.index("Settings")
    )


def test_values_of_a_chart_are_in_the_table_below_it_without_a_script(tmp_path):
    text = write_report(lay_run(tmp_path / "run", names=["a", "b"])).read_text(encoding="utf-8")
    text = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    figure = text[text.index("<figcaption>loss<") :]
    figure = figure[: figure.index("</figure>")]
    cells = re.findall(r"<tr><td>5</td>(.*?)</tr>", figure)[0]
    loss = 1 + 2 / 5**0.5
    # The training loss, the mean of two clients (0.1 and 0.15 above it), and their range.
    wanted = [f"{loss:.6g}", f"{loss + 0.125:.6g}", f"{loss + 0.1:.6g} to {loss + 0.15:.6g}"]
    assert re.findall(r"<td>(.*?)</td>", cells) == wanted
    assert f"<title>evaluation: 5, {loss + 0.125:.6g}</title>" in figure


def test_the_result_stands_beside_each_client_alone_and_the_pooled_data(tmp_path, capsys):
    names = ["a", "b", "c"]
    run = lay_run(tmp_path / "fed", names=names)
    local = lay_run(tmp_path / "alone", names=names, level=1.5, fed_alg="local")
    other = lay_run(tmp_path / "other", names=names, fed_alg="central", dataset_name="another")
    assert main(["report", str(run), "--against", str(local), str(other), "--metric", "loss"]) == 0
    page = whole(Path(capsys.readouterr().out.strip()))
    assert "each client alone (alone)" in page.words
    # The same three clients lose 0.5 each: a difference without a spread.
    assert "-0.5000 (-0.5000 to -0.5000)" in page.words
    assert "better" in page.words
    assert "No difference from the pooled data (other): it was not measured on the same rows" in page.words
    assert "dataset_name differs" in page.words


def test_a_metric_that_no_run_has_is_refused(tmp_path, capsys):
    run = lay_run(tmp_path / "run", rounds=5)
    assert main(["report", str(run), "--metric", "bleu"]) == 2
    said = capsys.readouterr().err
    assert "No run here has the metric 'bleu'" in said
    assert "accuracy" in said
    assert not (run / "report.html").exists()


def test_who_took_part_when(tmp_path):
    """Of 20 rounds of two of four clients, two each; a client whose update was refused did not take part."""
    page = whole(write_report(lay_run(tmp_path / "run", names=["a", "b", "c", "d"])))
    took = dict(re.findall(r"([abcd])\s*(\d+) of 20", page.words.replace("\n", " ")))
    rounds = range(1, 21)
    wanted = {
        name: sum(
            place in ((round * 7) % 4, (round * 7 + 1) % 4) and not (round % 7 == 0 and place == (round * 7) % 4)
            for round in rounds
        )
        for place, name in enumerate("abcd")
    }
    assert {name: int(count) for name, count in took.items()} == wanted


def test_a_run_of_1000_rounds_and_100_clients_stays_small(tmp_path):
    page = whole(write_report(lay_run(tmp_path / "run", rounds=1000, clients=100)))
    assert page.words.count("249 of 1000") > 20
    assert "client_99" in page.words


def test_the_same_run_makes_the_same_report(tmp_path):
    run = lay_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_the_report_says_that_a_run_is_unfinished_and_shortens_many_clients(tmp_path):
    path = write_report(lay_run(tmp_path / "run", rounds=6, clients=250, finished=False))
    page = whole(path)
    assert "6 of 6, not finished" in page.words
    assert f"and {250 - MOST_ROWS} more" in page.words
    assert "6.0 MB" in page.words


def test_the_report_of_a_run_without_rounds_has_no_charts(tmp_path):
    page = whole(write_report(lay_run(tmp_path / "run", rounds=0, finished=False)))
    assert "svg" not in page.seen[: page.seen.index("pre")] or "Curves" not in page.words
    assert "Settings" in page.words
    assert "Nothing was measured on held-out rows." in page.words


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
