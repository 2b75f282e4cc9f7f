"""Paired differences of `weft compare`: between evaluations on the same items, and between runs over paired seeds."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from support.finished_runs import lay
from support.paths import DATA
from support.task_rows import INVENTED
from weft.cli import main
from weft.pages.measured import over_clients, shows
from weft.runs.comparison import ComparisonRow, Outcome
from weft.tasks.catalogue import catalogue
from weft.tasks.declaration import EvalTask, read_task
from weft.tasks.paired import compare, read_evaluation
from weft.tasks.paired_seeds import in_common, other_rows
from weft.tasks.requests import Record
from weft.tasks.results import results_json, write_results
from weft.tasks.rows import items_of, missing, rows_of
from weft.tasks.runner import records_of, result_of
from weft.tasks.statistics import difference, student_quantile
from weft.tasks.store import Store

COLOURS = """
name: colours
title: Colours of things
source: invented
license: CC0
data: {file: colours}
cluster: thing
prompt: "Which colour is {{ thing }}?"
choice: {choices: [red, green], answer: colour}
"""
SETTINGS = {"num_fewshot": 0, "seed": 0, "model": {"weights": "1"}}
Rng = random.Random


@pytest.fixture
def task(tmp_path: Path) -> EvalTask:
    (tmp_path / "colours.yaml").write_text(COLOURS)
    return read_task(tmp_path / "colours.yaml")


def record(number: int, hit: float, right: int = 0, **more: str) -> Record:
    scores = {"accuracy": hit, "right": float(right), "given": float(right if hit else 1 - right)}
    return Record(number, "", more.get("cluster", ""), scores, {}, {}, more.get("row", f"row{number}"))


def write(folder: Path, task: EvalTask, records: Sequence[Record], **settings: object) -> str:
    """Write an evaluation as `weft evaluate` does."""
    store = Store(folder, SETTINGS | settings)
    store.add(task, records)
    write_results(folder, results_json([result_of(task, records, len(records), 0)], "model", SETTINGS, "1"))
    return str(folder)


def test_no_text_breaks_a_file_of_records_into_lines_or_bytes_that_are_no_text(task: EvalTask, tmp_path: Path):
    text = 'a\u2028{"item": 7}\u2029b\x85c\ud83d\u202ed\r\ne \u4f60\u597d \U0001f600'
    store = Store(tmp_path / "one", SETTINGS)
    store.add(task, [Record(0, text, "", {"accuracy": 1.0}, {"text": text}, {"right": text}, "row")])
    whole = (tmp_path / "one" / "items" / "colours.jsonl").read_text(encoding="utf-8")
    assert len(whole.splitlines()) == 2
    assert all(line.isprintable() for line in whole.split("\n"))
    assert "\u4f60\u597d \U0001f600" in whole  # what can be read stays as it is
    (found,) = store.records(task).values()
    assert (found.group, found.reply["text"], found.notes["right"]) == (text, text, text)


def test_items_that_agree_do_not_show_that_all_others_do():
    none, every = dict.fromkeys(range(10), 0.0), dict.fromkeys(range(10), 1.0)
    third = dict.fromkeys(range(10), 0.3)
    share = (0.0, 1.0)
    assert difference(third, third, bounds=share).interval == pytest.approx((-0.3, 0.3))
    assert difference(none, third, bounds=share).interval == pytest.approx((0.0, 0.6))
    assert not difference(none, third, bounds=share).shown
    assert difference(none, every, bounds=share).interval == pytest.approx((0.7, 1.0))
    assert difference(none, every, bounds=share).shown
    by_two = {number: str(number // 5) for number in range(10)}
    assert difference(third, third, by_two, share).interval == pytest.approx((-1.0, 1.0))  # two documents
    assert difference(third, third).interval == pytest.approx((0.0, 0.0))  # of unknown size: the pairs are equal


def test_hand_worked_differences():
    # Differences 1, 0, 1, 1, 0: mean 0.6, variance 0.3, error sqrt(0.3 / 5); Student's 2.776 of 4 degrees.
    found = difference(dict.fromkeys(range(5), 0.0), {0: 1.0, 1: 0.0, 2: 1.0, 3: 1.0, 4: 0.0})
    assert (found.value, found.error) == pytest.approx((0.6, 0.2449490))
    assert found.interval == pytest.approx((0.6 - 2.7764451 * 0.2449490, 0.6 + 2.7764451 * 0.2449490))
    assert not found.shown
    assert found.smallest_visible == pytest.approx((2.7764451 + 0.9409646) * 0.2449490)


def test_intervals_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for degrees in (1, 2, 3, 7, 30, 200, 201, 5000):
        for probability in (0.8, 0.975):
            assert student_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-9)
    rng = np.random.default_rng(0)
    first, second = rng.normal(0, 1, 24), rng.normal(0.3, 1, 24)
    found = difference(dict(enumerate(first)), dict(enumerate(second)))
    expected = stats.ttest_rel(second, first).confidence_interval()
    assert found.interval == pytest.approx((expected.low, expected.high))
    # Clusters of one size: the paired test on the clusters' means.
    clustered = difference(dict(enumerate(first)), dict(enumerate(second)), {n: str(n // 4) for n in range(24)})
    means = (values.reshape(6, 4).mean(axis=1) for values in (second, first))
    expected = stats.ttest_rel(*means).confidence_interval()
    assert clustered.interval == pytest.approx((expected.low, expected.high))


def test_what_is_called_visible_is_seen_in_four_of_five():
    rng = np.random.default_rng(3)
    first = dict.fromkeys(range(40), 0.0)
    draws = [difference(first, dict(enumerate(rng.normal(0, 1, 40)))) for _ in range(300)]
    least = float(np.mean([draw.smallest_visible for draw in draws if draw.smallest_visible]))
    seen = sum(difference(first, dict(enumerate(rng.normal(least, 1, 40)))).shown for _ in range(1000))
    assert 0.75 < seen / 1000 < 0.85
    assert 0.02 < sum(draw.shown for draw in draws) / 300 < 0.09  # the control: equal models


@pytest.mark.parametrize("name", ["tfns", "fpb_generate", "gsm8k", "medqa", "conala", "drop", "crass", "hh_helpful"])
def test_values_add_up_to_the_scores(name: str, tmp_path: Path):
    """A metric is the mean of its values, with the same standard error, and its change is that of one item less."""
    task = catalogue()[name]
    if task.metric == "bleu":
        pytest.importorskip("sacrebleu")
    if rows := INVENTED.get(task.data.file):
        (tmp_path / f"{task.data.file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folders = [tmp_path, DATA / "eval", DATA / "instruct", DATA / "preference"]
    if missing(task, folders) is not None:
        pytest.skip(f"no data of {name}")
    items = items_of(task, rows_of(task, folders, 0), 0, 40)
    rng = Rng(1)
    replies = [task.scorer.perfect(items[rng.choice([n, n, rng.randrange(len(items))])]) for n in range(len(items))]
    records = records_of(task, items, replies)
    values, measures = task.scorer.values(records), task.scorer.measures(records)
    assert task.metric in values
    for metric, own in values.items():
        assert np.mean(list(own.values())) == pytest.approx(measures[metric].value, abs=1e-9)
    if len(records) >= 20 and "macro_f1" in values:
        for number in (0, 5):
            rest = [record for record in records if record.number != records[number].number]
            change = measures["macro_f1"].value - task.scorer.measures(rest)["macro_f1"].value
            own = values["macro_f1"][records[number].number] - measures["macro_f1"].value
            assert change == pytest.approx(own / len(records), abs=2 / len(records) ** 1.5)


def test_bits_per_byte_differ_by_their_ratio_of_sums(tmp_path: Path):
    text = "name: t\ntitle: T\nsource: s\nlicense: l\ndata: {file: t}\nbits_per_byte: {text: x}\n"
    (tmp_path / "t.yaml").write_text(text)
    scorer = read_task(tmp_path / "t.yaml").scorer
    rng = np.random.default_rng(0)
    sizes = rng.integers(10, 200, 50)
    sides = [
        [
            Record(n, "", "", {"bits": float(size * rate), "bytes": float(size), "tokens": 3.0}, {})
            for n, (size, rate) in enumerate(zip(sizes, rng.normal(mean, 0.1, 50), strict=True))
        ]
        for mean in (1.0, 0.9)
    ]
    first, second = (scorer.values(side)["bits_per_byte"] for side in sides)
    measures = [scorer.measures(side)["bits_per_byte"] for side in sides]
    assert difference(first, second).value == pytest.approx(measures[1].value - measures[0].value)
    alone = difference(dict.fromkeys(first, 0.0), first)
    assert alone.error == pytest.approx(measures[0].error, rel=1e-6)


def test_differences_of_evaluations(task: EvalTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng = Rng(0)
    hits = [float(rng.random() < 0.5) for _ in range(300)]
    a = write(tmp_path / "a", task, [record(n, hit) for n, hit in enumerate(hits)])
    b = write(tmp_path / "b", task, [record(n, 1.0 if n % 5 == 0 else hit) for n, hit in enumerate(hits)])
    c = write(tmp_path / "c", task, [record(n, hits[n - 1]) for n in range(300)], num_fewshot=2)
    d = write(tmp_path / "d", task, [record(n, hit) for n, hit in enumerate(hits[:200])])
    assert main(["compare", a, b, c, d, a]) == 0
    shown = capsys.readouterr().out
    lines = {line.split(" less ")[0].removeprefix("tasks: "): line for line in shown.splitlines() if " less " in line}
    assert list(lines) == [b, c, d]
    of_b, of_c, of_d = (shown.partition(lines[name])[2].splitlines()[2] for name in (b, c, d))
    assert of_b.split()[:2] == ["colours", "accuracy"]
    assert "better" in of_b
    assert "points" in of_b
    assert "no difference shown" in of_c
    assert "num_fewshot differs: 0 and 2." in shown
    assert "200 of 300" in of_d
    assert main(["compare", a, b, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["differences"]
    entries = {one["metric"]: one for one in found["tasks"]}
    assert set(entries) == {"accuracy", "macro_f1"}
    stats = pytest.importorskip("scipy.stats")
    other = [1.0 if n % 5 == 0 else hit for n, hit in enumerate(hits)]
    expected = stats.ttest_rel(other, hits).confidence_interval()
    assert entries["accuracy"]["interval"] == pytest.approx([expected.low, expected.high])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ([record(n, 1.0, row=f"other{n}") for n in range(9)], "its data is not the same (item 0)"),
        ([record(n + 100, 1.0) for n in range(9)], "no item was asked of both"),
        ([record(n, 1.0, right=1, row="") for n in range(9)], "its data is not the same (item 0)"),
    ],
)
def test_items_that_are_not_the_same_are_refused(
    task: EvalTask, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: list[Record], said: str
):
    a = write(tmp_path / "a", task, [record(n, n % 2) for n in range(9)])
    b = write(tmp_path / "b", task, other)
    assert main(["compare", a, b]) == 2
    streams = capsys.readouterr()
    assert f"colours is not compared: {said}." in streams.out
    assert "No task of these evaluations can be compared" in streams.err


def test_another_task_file_or_task_is_refused(task: EvalTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a = write(tmp_path / "a", task, [record(n, n % 2) for n in range(9)])
    b = write(tmp_path / "b", task.model_copy(update={"delimiter": ""}), [record(n, 1.0) for n in range(9)])
    c = write(tmp_path / "c", task.model_copy(update={"name": "other"}), [record(n, 1.0) for n in range(9)])
    assert main(["compare", a, b]) == 2
    assert "colours is not compared: the task's file is not the same." in capsys.readouterr().out
    assert main(["compare", a, c]) == 2
    assert f"{c} was not asked: colours." in capsys.readouterr().out


def test_an_evaluation_that_was_stopped_or_broken_is_refused(
    task: EvalTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    a = write(tmp_path / "a", task, [record(n, n % 2) for n in range(9)])
    (tmp_path / "a" / "results.json").unlink()
    assert main(["compare", a]) == 2
    assert "has no results.json: run its `weft evaluate` command again" in capsys.readouterr().err
    (tmp_path / "a" / "results.json").write_text("{")
    assert main(["compare", a]) == 2
    assert "cannot be read" in capsys.readouterr().err
    b = write(tmp_path / "b", task, [record(n, n % 2) for n in range(9)])
    assert main(["compare", b, "--csv"]) == 2
    assert "--csv lists the scores of runs" in capsys.readouterr().err
    items = tmp_path / "b" / "items" / f"{task.name}.jsonl"
    lines = items.read_text().splitlines(keepends=True)
    for whole in ([], lines[:1], [lines[0], lines[1][:9]]):
        items.write_text("".join(whole))
        assert main(["compare", b]) == 2
        assert f"has no {task.name}.jsonl: run its `weft evaluate` command again" in capsys.readouterr().err
    items.write_text("".join(lines[:5]))
    assert main(["compare", b]) == 2
    assert f"has 4 of 9 records of {task.name}: run its `weft evaluate` command again" in capsys.readouterr().err


def test_lm_evals_items_are_not_paired(task: EvalTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a = write(tmp_path / "a", task, [record(n, n % 2) for n in range(9)])
    b = write(tmp_path / "b", task, [record(n, n % 2) for n in range(9)], harness="0.4")
    assert main(["compare", a, b]) == 2
    assert "is of lm-eval's tasks, whose items are not paired" in capsys.readouterr().err


def test_clusters_are_heeded(task: EvalTask, tmp_path: Path):
    """Copies of an item add no certainty."""
    rng = Rng(4)
    hits = [(float(rng.random() < 0.4), float(rng.random() < 0.55)) for _ in range(60)]
    few = [[record(n, hit[side]) for n, hit in enumerate(hits)] for side in (0, 1)]
    many = [[record(n, hits[n // 5][side], cluster=str(n // 5)) for n in range(300)] for side in (0, 1)]
    errors = []
    for name, sides in (("few", few), ("many", many)):
        ends = [
            read_evaluation(Path(write(tmp_path / f"{name}{n}", task, side)), str(n)) for n, side in enumerate(sides)
        ]
        errors.append(compare(*ends)[0][0].difference.error)
    assert errors[1] == pytest.approx(errors[0])


def test_runs_over_paired_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    losses = {1: 1.0, 2: 2.0, 3: 3.0}
    old = [lay(tmp_path, f"old{seed}", {"eval": {"loss": loss}}, seed=seed) for seed, loss in losses.items()]
    new = [
        lay(tmp_path, f"new{seed}", {"eval": {"loss": loss - 0.1 - 0.01 * seed}}, seed=seed, learning_rate=0.1)
        for seed, loss in losses.items()
    ]
    assert main(["compare", *old, *new]) == 0
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if "better" in line]
    # Differences -0.11, -0.12, -0.13: error 0.01 / sqrt(3), Student's 4.3027 of 2 degrees.
    assert "-0.1200 (-0.1448 to -0.0952)" in line
    assert main(["compare", *old, *new, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["differences"]
    assert (found["of"], found["from"]) == (new, old)
    assert found["scores"][0]["seeds"] == [1, 2, 3]
    assert main(["compare", *old, *new[:2]]) == 0  # of two pairs -0.11 and -0.12
    assert "-0.1150 (-0.1785 to -0.0515)" in capsys.readouterr().out
    assert main(["compare", *old, *new[:1]]) == 0
    assert " less " not in capsys.readouterr().out  # one seed says nothing of chance


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"dataset_name": "b.jsonl"}, "dataset_name differs"),
        ({"eval_fraction": 0.2}, "eval_fraction differs"),
        ({"learning_rate": 0.1, "rows": 8}, "their clients have other numbers of held-out rows"),
    ],
)
def test_runs_on_other_rows_have_no_difference(
    more: dict[str, object], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = more.pop("rows", 7)
    old = [lay(tmp_path, f"old{seed}", {"eval": {"loss": 1.0}}, seed=seed) for seed in (1, 2)]
    summary = {"eval": {"loss": 0.5 + 0.1 * len(old)}, "clients": {"a": {"rows": rows}, "b": {"rows": 5}}}
    new = [lay(tmp_path, f"new{seed}", summary, seed=seed, **more) for seed in (1, 2)]
    assert main(["compare", *old, *new]) == 0
    assert f"they were not measured on the same rows ({why})" in capsys.readouterr().out


def test_runs_whose_rows_were_dealt_by_other_seeds_are_not_compared_client_by_client():
    first = Outcome("first", {"seed": 1}, {})
    other, alike = (Outcome(name, {"seed": 2} | more, {}) for name, more in (("b", {}), ("c", {"split_seed": 1})))
    assert other_rows(first, other, {}) == "the rows were dealt by seed 1 and by seed 2"
    assert other_rows(first, alike, {}) == ""
    assert in_common(ComparisonRow((first,), {}), ComparisonRow((other, alike), {})) == (first, alike)
    # Which clients are evaluated says nothing of the rows of one.
    assert other_rows(first, first._replace(config={"seed": 1, "eval_everybody": True}), {}) == ""


def test_clients_that_are_all_alike_give_no_interval():
    alike, apart = over_clients([0.5, 0.5]), over_clients([0.4, 0.6])
    assert (alike.value, alike.interval, shows(alike, "higher")) == (0.5, None, "no difference shown")
    assert apart.interval is not None
