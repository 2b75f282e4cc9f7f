"""A metric is declared beside what computes it, and everything else knows it from there."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import weft
from support.fake_sites import NAMES, FakeSites
from weft import registry
from weft.cli import main
from weft.commands.compare import _best
from weft.core.declarations import Look, Metric, scores
from weft.core.metrics import Totals, complete, fault, summarise
from weft.core.types import Metrics
from weft.evaluation.heldout import HeldOut
from weft.objectives.sft import SFT
from weft.pages.report import write_report
from weft.rewards.answers import ANSWER_TOKENS, CUT, REWARD
from weft.runs.comparison import SeedSpread
from weft.runs.trackers import Trackers
from weft.sites.policy import SitePolicy
from weft.sites.reports import reportable
from weft.sites.server import serve
from weft.weighting.gain import Gain

LENGTH = Metric(
    "row_length",
    "tokens a row",
    "rows_measured",
    ("row_length_sum",),
    better="lower",
    sums_are_counts=True,
    format=".2f",
    look=Look(panel="length", order=-1),
)
WINDOW = Metric("window", "rows a batch", "batches", ("window_sum",), sums_are_counts=True, format=".1f")


@dataclass(frozen=True)
class Lengths(HeldOut):
    """Measures how long rows are, beside what it measures anyway."""

    metrics: ClassVar[tuple[Metric, ...]] = (*HeldOut.metrics, LENGTH)

    def evaluate(self, model: Any, rows: Any) -> Metrics:
        lengths = [len(rows[row][0]) for row in range(len(rows))]
        sums = {"rows_measured": float(len(rows)), "row_length_sum": float(sum(lengths))}
        return super().evaluate(model, rows) | sums


@dataclass(frozen=True)
class Windows(SFT):
    """Counts rows in a batch, and is measured by lengths."""

    evaluator: ClassVar[str] = "lengths"
    metrics: ClassVar[tuple[Metric, ...]] = (WINDOW,)

    def counts(self, batch: Any) -> Metrics:
        return {"batches": 1.0, "window_sum": float(batch.rows)}


@pytest.fixture
def lengths(monkeypatch) -> None:
    monkeypatch.setitem(registry.EVALUATORS, "lengths", f"{__name__}:Lengths")
    monkeypatch.setitem(registry.OBJECTIVES, "sft", f"{__name__}:Windows")


def lines(run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def reports(policy: SitePolicy, *names: str) -> SitePolicy:
    return policy.model_copy(update={"accept": policy.accept.model_copy(update={"report": list(names)})})


@pytest.mark.usefixtures("lengths")
def test_a_new_metric_is_recorded_shown_and_compared(keys, capsys, monkeypatch):
    tracked: dict[str, Any] = {}
    monkeypatch.setattr(Trackers, "log", lambda self, values, step: tracked.update(values))
    run = weft.train(keys | {"personal_steps": 1})
    progress = capsys.readouterr().err
    *_, last = lines(run)
    assert list(last)[2:5] == ["row_length", "loss", "perplexity"]  # in the order that it asks for
    clients = last["clients"].values()
    assert last["row_length"] == pytest.approx(sum(one["row_length"] * one["rows"] for one in clients) / last["rows"])
    assert run.summary["eval"]["row_length"] == last["row_length"]
    assert "row_length" not in run.summary["models"]["own"]  # models are not compared by it
    assert f"evaluation  tokens a row {last['row_length']:.2f}  loss" in progress
    assert tracked["eval/row_length"] == last["row_length"]
    page = write_report(run.path).read_text(encoding="utf-8")
    assert f'<td class="w">evaluation tokens a row</td><td>{last["row_length"]:.2f}</td>' in page
    assert '<th scope="col" class="w">client</th><th scope="col">tokens a row</th>' in page
    assert "<figcaption>length</figcaption>" in page
    (card,) = (run.path / "adapter").glob("README.md")
    assert "| n | row_length |" in card.read_text(encoding="utf-8")
    assert main(["compare", str(run.path)]) == 0
    heads, cells = (line.split() for line in capsys.readouterr().out.split("\n\n")[1].splitlines()[1:3])
    assert heads[2] == "row_length"
    assert cells[2] == f"{last['row_length']:.2f}"
    assert main(["compare", str(run.path), "--csv"]) == 0
    found = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert float(found["row_length"]) == last["row_length"]


@pytest.mark.usefixtures("lengths")
def test_what_an_objective_counts_is_in_the_record_of_a_round(keys, capsys):
    run = weft.train(keys | {"num_rounds": 1})
    (first, _) = lines(run)
    assert first["window"] == keys["batch_size"]
    assert "rows a batch 4.0" in capsys.readouterr().err.split("evaluation")[0]


@pytest.mark.usefixtures("lengths")
def test_a_site_reports_a_new_metric_by_its_name(run, sites: FakeSites):
    sites.policies["hospital_a"] = reports(sites.policies["hospital_a"], "row_length")
    sites.begin("hospital_a")
    done = serve(run | {"num_rounds": 1}, sites, list(NAMES), "1")
    assert not done.summary["failures"]
    clients = done.summary["clients"]
    assert clients["hospital_a"]["row_length"] > 0
    assert clients["hospital_a"]["loss"] is None
    assert clients["hospital_b"]["loss"] > 0
    others = [clients[name] for name in NAMES[1:]]
    assert lines(done)[0]["train_loss"] > 0
    assert done.summary["eval"]["loss"] == pytest.approx(sum(one["loss"] for one in others) / 2, rel=0.05)


@pytest.mark.usefixtures("lengths")
def test_a_new_metric_is_checked_as_all_are():
    assert fault({"rows_measured": 2.0, "row_length_sum": 7.0}) is None
    assert fault({"rows_measured": 2.0}) == "counts without the sums that belong to them"
    assert fault({"rows_measured": -2.0, "row_length_sum": 7.0}) == "a count below 0"
    assert fault({"rows_measured": 2.0, "row_length_sum": -7.0}) == "a count below 0"
    assert complete({"rows_measured": 2.0, "steps": 1.0}) == complete({"row_length_sum": 2.0, "steps": 1.0})
    assert complete({"rows_measured": 2.0, "steps": 1.0}) == {"steps": 1.0}


def test_what_is_not_listed_is_not_known():
    assert LENGTH not in scores()
    assert fault({"rows_measured": 2.0}) is None


HELD: Metrics = {"loss_sum": 9.0, "loss_tokens": 4.0, "text_bytes": 8.0, "confusion/0/1": 2.0, "confusion/1/1": 1.0}
JUDGED: Metrics = {"judged": 2.0, "preference_accuracy_sum": 1.0, "reward_margin_sum": 0.5, "chosen_logp_sum": -9.0}
ANSWERS: Metrics = {"answers": 2.0, "reward_sum": 1.0, "answer_tokens_sum": 9.0, "cut_sum": 1.0, "reward_raised": 1.0}


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("perplexity", "loss_sum loss_tokens"),
        ("train_loss", "loss_sum loss_tokens"),
        ("bits_per_byte", "loss_sum text_bytes"),
        ("accuracy", "confusion/0/1 confusion/1/1"),
        ("macro_f1", "confusion/0/1 confusion/1/1"),
        ("preference_accuracy", "judged preference_accuracy_sum"),
        ("answer_tokens", "answers answer_tokens_sum"),
        ("reward", "answers reward_sum reward_raised"),  # the last by how its name begins
        ("loss", "loss_sum loss_tokens"),
        ("confusion", "confusion/0/1 confusion/1/1"),
        ("text", ""),
    ],
)
def test_the_name_of_a_metric_allows_what_it_is_derived_from(sites: FakeSites, name: str, kept: str):
    every = HELD | JUDGED | ANSWERS
    sent = reportable(reports(sites.policies["hospital_a"], name), every | {"steps": 3.0}, 50)
    assert sent.keys() == {*kept.split(), "steps"}
    assert fault(sent) is None


def test_a_sum_that_a_site_keeps_changes_no_mean():
    totals = Totals([REWARD, CUT])
    totals.add({"answers": 4.0, "reward_sum": 2.0, "cut_sum": 4.0})
    totals.add({"answers": 100.0, "cut_sum": 0.0})
    totals.add({"reward_sum": 50.0})
    assert totals.value(REWARD) == 0.5
    assert totals.value(CUT) == 4 / 104
    assert summarise([REWARD, ANSWER_TOKENS], [{"answers": 4.0, "reward_sum": 2.0, "rows": 4.0}])["reward"] == 0.5


def test_a_client_whose_site_keeps_its_reward_weighs_as_before():
    assert Gain().factor("a", {"answers": 2.0, "cut_sum": 1.0}, {}) == (1.0, {})


def test_numbers_that_cannot_be_are_no_metric_and_end_nothing():
    overflow = Metric("odd", "odd", "n", ("s",), derive=lambda sums: 1e300 ** sums["s"])
    assert overflow.value({"n": 1.0, "s": 9.0}) is None
    assert overflow.value({"n": 0.0, "s": 1.0}) is None


def test_the_best_of_a_column_is_what_the_metric_says():
    def column(*means: float | None) -> list[SeedSpread | None]:
        return [None if mean is None else SeedSpread(mean) for mean in means]

    assert _best(LENGTH, column(2.0, None, 1.0, 1.0)) == [2, 3]
    assert _best(REWARD, column(2.0, None, 1.0)) == [0]
    assert _best(REWARD, column(1.0, 1.0)) == []
    assert _best(WINDOW, column(1.0, 2.0)) == []


def test_finished_runs_are_compared_without_torch(tmp_path: Path):
    code = (
        "import sys, weft.commands.compare\nfrom weft.core.declarations import scores\n"
        "print(len(scores()) > 9, [name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True []"
