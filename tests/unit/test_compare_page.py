"""`weft compare --html` and `weft.compare`: several runs on one page, in one frame; what cannot be compared is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import weft
from support.run_files import lay_run
from weft.cli import main
from weft.errors import ConfigError
from weft.pages.charts import Chart, Series
from weft.pages.record import folder_of_seeds, short_names

NAMES = ["a", "b", "c"]


def lay(folder: Path, name: str, **keys: object) -> str:
    return str(lay_run(folder / name, names=NAMES, **({"dataset_name": "d.jsonl", "output_dir": name} | keys)))  # type: ignore[arg-type]


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two algorithms with three seeds each: the second one's loss is 0.5 higher in every seed."""
    return [
        lay(tmp_path, f"{name}-{seed}", fed_alg=name, seed=seed, level=level + 0.1 * seed)
        for name, level in (("fedavg", 1.0), ("fedprox", 1.5))
        for seed in (1, 2, 3)
    ]


def written(*words: str) -> str:
    page = Path(words[-1])
    assert main(["compare", *words[:-1], "--html", words[-1]]) == 0
    return page.read_text(encoding="utf-8").replace("&#x27;", "'")


def test_a_page_has_every_row_its_difference_and_its_curves(runs: list[str], tmp_path: Path, capsys):
    page = tmp_path / "new" / "page.html"
    assert main(["compare", *runs, "--html", str(page), "--metric", "loss"]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text(encoding="utf-8")
    # Seeds 1 to 3 of a mean over clients of 1.1 to 1.3 + 2 / sqrt(20) + 0.15.
    assert f"{1.2 + 2 / 20**0.5 + 0.15:.4f} ± 0.1000" in text
    assert "+0.5000 (+0.5000 to +0.5000)</td><td>3 seeds</td><td>worse" in text
    for title in (
        "loss against bytes sent",
        "loss against time",
        "training loss",
        "evaluation loss",
        "evaluation accuracy",
    ):
        assert f"<figcaption>{title}</figcaption>" in text
    assert "shaded: range of seeds" in text
    assert "fed_alg=fedprox" in text


def test_runs_of_one_seed_are_paired_by_client(runs: list[str], tmp_path: Path):
    text = written(runs[0], runs[3], "--metric", "loss", str(tmp_path / "page.html"))
    assert "+0.5000 (+0.5000 to +0.5000)</td><td>3 clients</td><td>worse" in text


def test_runs_of_other_data_are_said_and_not_compared(runs: list[str], tmp_path: Path):
    other = lay(tmp_path, "other", dataset_name="e.jsonl", seed=9)
    text = written(runs[0], other, str(tmp_path / "page.html"))
    assert "other and fedavg-1 were not measured on the same rows (dataset_name differs): not compared." in text
    row = text[text.index('<td class="w">other</td>') :]
    assert row[: row.index("</tr>")].count("&ndash;") == 3


def test_a_metric_that_no_run_has_is_refused_and_nothing_is_written(runs: list[str], tmp_path: Path, capsys):
    page = tmp_path / "page.html"
    assert main(["compare", *runs[:2], "--html", str(page), "--metric", "bleu"]) == 2
    assert "No run here has the metric 'bleu': write --metric and one of" in capsys.readouterr().err
    assert not page.exists()
    assert main(["compare", *runs[:2], "--metric", "loss"]) == 2
    assert "add --html" in capsys.readouterr().err
    assert main(["compare", *runs[:2], "--html", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_runs_are_called_by_what_tells_their_paths_apart():
    assert short_names(["/x/a/run", "/x/b/run"]) == {"/x/a/run": "a", "/x/b/run": "b"}
    assert short_names(["/x/a/1", "/x/a/2", "/x/b/1"]) == {"/x/a/1": "a/1", "/x/a/2": "a/2", "/x/b/1": "b/1"}
    assert short_names(["/x/a", "/x/b"]) == {"/x/a": "a", "/x/b": "b"}
    assert short_names([]) == {}


def test_runs_of_a_study_are_called_by_the_folder_of_their_seeds():
    assert folder_of_seeds(["runs/fedavg/seed_1", "runs/fedavg/seed_2"]) == "runs/fedavg"
    assert folder_of_seeds(["runs/fedavg/seed_1"]) is None
    assert folder_of_seeds(["runs/a/seed_1", "runs/b/seed_2"]) is None
    assert folder_of_seeds(["runs/seed_1", "runs/seed_2_again"]) is None


def test_a_page_says_how_many_seeds_a_folder_has(tmp_path: Path):
    paths = [
        str(lay(tmp_path, f"{arm}/seed_{seed}", fed_alg=arm, seed=seed))
        for arm in ("fedavg", "fedprox")
        for seed in (1, 2)
    ]
    text = written(*paths, str(tmp_path / "page.html"))
    assert "<h1>fedavg, 2 seeds, fedprox, 2 seeds</h1>" in text


def test_a_frame_has_a_row_for_each_row_of_runs(runs: list[str], tmp_path: Path):
    opened = [weft.open_run(path) for path in runs]
    frame = weft.compare(*opened, html=tmp_path / "page.html")
    assert frame["fed_alg"].tolist() == ["fedavg", "fedprox"]
    assert frame["seeds"].tolist() == [[1, 2, 3]] * 2
    assert frame["loss"].diff().iloc[1] == pytest.approx(0.5)
    assert frame["loss_deviation"].tolist() == pytest.approx([0.1, 0.1])
    assert "macro_f1" not in frame
    assert (tmp_path / "page.html").exists()
    with pytest.raises(ConfigError, match="has the metric 'bleu'"):
        weft.compare(*opened, metric="bleu")
    with pytest.raises(ConfigError, match="no run"):
        weft.compare()


def test_a_run_shows_its_curves_and_its_report_in_a_notebook(runs: list[str], tmp_path: Path):
    first, second = weft.open_run(runs[0]), weft.open_run(runs[3])
    plot = first.plot("loss")
    assert plot.page.count(b'<svg class="plot"') == 1
    assert first.plot().page.count(b'<svg class="plot"') == 5
    with pytest.raises(ConfigError, match="no picture 'bleu'"):
        first.plot("bleu")
    report = first.report(second, metric="loss")
    assert b"-0.5000 (-0.5000 to -0.5000)" in report.page
    shown = report._repr_html_()
    assert shown.startswith('<iframe sandbox="allow-scripts"')
    assert shown.count("<") == 2  # all of the page stands in an attribute
    assert report.save(tmp_path / "saved.html").read_bytes() == report.page
    assert not (first.path / "report.html").exists()


def test_a_folder_of_runs_stands_for_its_finished_runs(runs: list[str], tmp_path: Path, capsys):
    lay(tmp_path, "broken", seed=9, finished=False)
    assert weft.compare(tmp_path)["seeds"].tolist() == [[1, 2, 3]] * 2
    assert "broken' is not finished; it is left out." in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="There is no run"):
        weft.compare(tmp_path / "empty")


def test_a_study_stands_for_its_runs_in_its_order(runs: list[str], tmp_path: Path, capsys):
    """Arms are lines, the first one the one that others are compared with; runs for the choice are not among them."""
    study = tmp_path / "moved" / "study"
    planned = []
    for seed in (1, 2):
        for arm, level in (("scaffold", 1.0), ("fedavg", 0.5)):
            for point, size in (("small", 2), ("large", 8)):
                own = f"runs/{arm}/{point}/seed_{seed}"
                lay(study, own, fed_alg=arm, batch_size=size, seed=seed, level=level)
                planned.append(own)
    lay(study, "choice/fedavg/small/setting_0/seed_7", seed=7)
    plan = {str(number): {"output_dir": f"/former/place/study/{own}"} for number, own in enumerate(planned)}
    (study / "study.json").write_text(json.dumps(plan), encoding="utf-8")
    frame = weft.compare(study)
    assert list(dict.fromkeys(frame.fed_alg)) == ["scaffold", "fedavg"]
    assert frame.seeds.tolist() == [[1, 2]] * len(frame)
    text = written(str(study), *runs[:1], str(tmp_path / "page.html"))
    places = [text.index(f">{label}, 2 seeds</td>") for label in ("scaffold/small", "scaffold/large", "fedavg/small")]
    assert places == sorted(places)
    assert "setting_0" not in text
    (study / "study.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"study\.json' is damaged"):
        weft.compare(study)


def test_a_picture_of_many_long_curves_stays_small():
    series = [
        Series(f"run {number}", [(round, number + 1 / round) for round in range(1, 1001)])._replace(
            band=[(round, number, number + 2 / round) for round in range(1, 1001)]
        )
        for number in range(12)
    ]
    figure = Chart("loss", series).html()
    assert len(figure) < 300_000
    assert "240 of 1000 rounds." in figure  # 6,000 cells in 25 columns
    assert "<td>1000</td>" in figure
