"""A site with few rows reports how much it did, and nothing of what is in them."""

from __future__ import annotations

import math

import pytest

from support.fake_sites import NAMES, FakeSites
from support.results import metrics
from weft.config import build
from weft.core import wire
from weft.core.types import Score, Update
from weft.errors import ConfigError
from weft.evaluation.heldout import macro_f1
from weft.launch import compose
from weft.sites.agreement import few_rows
from weft.sites.policy import SitePolicy
from weft.sites.reports import reportable
from weft.sites.server import serve

POLICY = SitePolicy.model_validate({"data": "rows.jsonl", "accept": {"models": ["m"]}})
SUMS = {"loss_sum": 9.0, "loss_tokens": 4.0, "rows": 12.0, "tokens": 50.0, "steps": 3.0, "learning_rate": 0.1}
WORK = {"rows": 12.0, "tokens": 50.0, "steps": 3.0, "learning_rate": 0.1}


def least(sites: FakeSites, name: str, rows: int | None) -> None:
    """Let a site report from so many rows on; None: what a site.yaml without a word of it says."""
    policy = sites.policies[name]
    plain = POLICY.accept.min_report_rows if rows is None else rows
    accept = policy.accept.model_copy(update={"min_report_rows": plain, "min_train_rows": 1})
    sites.policies[name] = policy.model_copy(update={"accept": accept})
    sites.begin(name)


def test_below_ten_rows_only_counts_of_work_are_reported():
    """The number of rows is that of different rows: one row that is trained on 12 times is one."""
    assert reportable(POLICY, SUMS, 10) == SUMS
    for rows in (0, 1, 9):
        assert reportable(POLICY, SUMS, rows) == WORK
    few = SUMS | {"rows": 9.0}  # a turn of few steps: its loss is that of nine rows, however many there are
    assert reportable(POLICY, few, 1000) == WORK | {"rows": 9.0}
    named = POLICY.model_copy(update={"accept": POLICY.accept.model_copy(update={"report": ["loss", "perplexity"]})})
    assert reportable(named, SUMS, 9) == WORK
    assert reportable(named, SUMS, 10) == SUMS


def counts(*classes: dict[str, float]) -> dict[str, float]:
    return {f"confusion/{right}/{given}": n for right, row in enumerate(classes) for given, n in row.items()}


@pytest.mark.parametrize(
    ("classes", "sent"),
    [
        (({"0": 10.0, "1": 2.0}, {"1": 10.0}), True),
        (({"0": 9.0, "1": 1.0}, {"0": 1.0, "1": 9.0}), True),  # cells may be small: nobody is alone in a class
        (({"0": 40.0}, {"1": 1.0}), False),  # one person's label
        (({"0": 40.0}, {"0": 9.0}), False),
        (({"0": 40.0}, {"1": 0.0}), True),
        (({"0": 40.0},), True),
    ],
)
def test_counts_of_classes_are_reported_only_if_no_class_is_rare(classes: tuple[dict[str, float], ...], sent: bool):
    """All of them or none: the size of a class that is left out alone is what the others lack of the rows."""
    confusion = counts(*classes)
    assert reportable(POLICY, SUMS | confusion, 41) == (SUMS | confusion if sent else SUMS)


def test_the_server_averages_over_the_sites_that_report(run, sites: FakeSites):
    """A site that reports nothing changes no mean, whatever it counts."""
    for name in NAMES:
        least(sites, name, 1)
    least(sites, "hospital_b", 1000)
    done = serve(run | {"num_rounds": 1}, sites, list(NAMES), "1")
    sums: dict[str, dict[str, float]] = {}
    for raw in (raw for raw in sites.answered if raw[:1] != b"{"):
        reply = wire.unpack(raw, run="run")
        if isinstance(reply, Update | Score) and reply.metrics:
            sums[f"{type(reply).__name__} {reply.client}"] = reply.metrics
    assert set(sums["Update hospital_b"]) <= {"rows", "tokens", "steps", "learning_rate"}
    assert set(sums["Score hospital_b"]) == {"rows"}
    trained, evaluated = metrics(done)
    told = [sums[f"Update hospital_{name}"] for name in "ac"]
    loss = sum(one["loss_sum"] for one in told) / sum(one["loss_tokens"] for one in told)
    assert trained["train_loss"] == pytest.approx(loss)
    assert trained["clients"] == list(NAMES)
    assert trained["tokens"] == sum(sums[f"Update {name}"]["tokens"] for name in NAMES)
    told = [sums[f"Score hospital_{name}"] for name in "ac"]
    loss = sum(one["loss_sum"] for one in told) / sum(one["loss_tokens"] for one in told)
    assert evaluated["loss"] == pytest.approx(loss)
    assert evaluated["perplexity"] == pytest.approx(math.exp(loss))
    pairs: dict[tuple[str, str], float] = {}
    for one in told:
        for name, count in one.items():
            if name.startswith("confusion/"):
                _, right, given = name.split("/")
                pairs[right, given] = pairs.get((right, given), 0.0) + count
    assert evaluated["macro_f1"] == pytest.approx(macro_f1(pairs))
    assert evaluated["clients"]["hospital_b"]["loss"] is None
    assert evaluated["clients"]["hospital_b"]["rows"] > 0


def updates_of(sites: FakeSites) -> dict[str, Update]:
    """Return the last update of each site."""
    replies = (wire.unpack(raw, run="run") for raw in sites.answered if raw[:1] != b"{")
    return {reply.client: reply for reply in replies if isinstance(reply, Update)}


def test_a_round_of_few_rows_reports_nothing_of_them(run, sites: FakeSites):
    """A site has rows enough, and the server asks for one step on one of them."""
    for name in NAMES:
        least(sites, name, None)
    serve(run | {"num_rounds": 1, "batch_size": 1, "max_steps": 1}, sites, list(NAMES), "1")
    assert len(updates := updates_of(sites)) == 3
    assert all(set(update.metrics) <= {"rows", "tokens", "steps", "learning_rate"} for update in updates.values())


@pytest.mark.parametrize(
    ("asked", "own", "refused"),
    [
        ({"batch_size": 1, "max_steps": 1}, {"min_report_rows": 10}, True),
        ({"batch_size": 3, "max_steps": 3}, {"min_report_rows": 10}, True),
        ({"batch_size": 5, "max_steps": 2}, {"min_report_rows": 10}, False),
        ({"batch_size": 1, "max_steps": 1}, {"min_report_rows": 10, "min_train_rows": 1}, False),
        ({"batch_size": 8, "max_steps": 1}, {"min_train_rows": 9}, True),
        ({"batch_size": 1, "max_steps": 1, "protection": "masks"}, {"min_report_rows": 10}, True),
        ({"batch_size": 1, "max_steps": 1, "num_rounds": 0}, {"min_report_rows": 10}, False),
        # All rows but three are held out: a round of many steps reads these three alone.
        ({"batch_size": 5, "max_steps": 9, "eval_fraction": 0.9}, {"min_report_rows": 10}, True),
        ({"batch_size": 1, "max_steps": 1, "privacy_unit": "row", "noise_multiplier": 1.0}, {"min_report_rows": 10}, 0),
    ],
    ids=str,
)
def test_a_site_trains_on_no_few_rows_for_a_server_that_wants_their_update(
    run, asked: dict[str, object], own: dict[str, int], refused: bool
):
    """The update of one row shows it, whatever is kept back of its loss."""
    policy = POLICY.model_copy(update={"accept": POLICY.accept.model_copy(update=own)})
    config = build(run | {"num_rounds": 1, "dtype": "float32"} | asked)
    why = few_rows(policy, compose.plan(config), 3 if "eval_fraction" in asked else 30, (), config.num_rounds)
    assert ("a round trains on fewer than" in str(why)) is bool(refused), why


def test_a_run_of_one_row_a_round_finds_no_site_that_says_nothing_of_it(run, sites: FakeSites):
    for name in NAMES:
        policy = sites.policies[name]
        plain = {"min_report_rows": POLICY.accept.min_report_rows}
        sites.policies[name] = policy.model_copy(update={"accept": policy.accept.model_copy(update=plain)})
        sites.begin(name)
    with pytest.raises(ConfigError, match=r"a round trains on fewer than 10 rows of this site \(max_steps times"):
        serve(run | {"num_rounds": 1, "batch_size": 1, "max_steps": 1}, sites, list(NAMES), "1")
    assert not updates_of(sites)


TEXT = {"prompt_method": "text", "fed_alg": "fedtext", "prompt_length": 40, "learning_rate": None}
BLACK_BOX = {"prompt_method": "black_box", "fed_alg": "fedbpt", "num_virtual_tokens": 4, "learning_rate": 0.1}
BLACK_BOX |= {"population": 4, "black_box_dim": 4}


@pytest.mark.parametrize("search", [TEXT, BLACK_BOX], ids=["text", "black_box"])
@pytest.mark.parametrize(
    ("size", "report", "words"),
    [(1, None, "losses of fewer than 10 rows"), (10, ["accuracy"], "does not report the loss"), (10, ["loss"], "")],
)
def test_a_search_sends_no_losses_that_a_site_may_not_report(
    run, sites: FakeSites, search: dict[str, object], size: int, report: list[str] | None, words: str
):
    """The scores of texts and candidates are losses on rows, and the server chooses what is scored."""
    for name in NAMES:
        policy = sites.policies[name]
        accept = policy.accept.model_copy(update={"min_report_rows": 10, "report": report})
        sites.policies[name] = policy.model_copy(update={"accept": accept})
        sites.begin(name)
    kept = {key: value for key, value in run.items() if not key.startswith("peft_lora")} | {"use_peft": False}
    asked = kept | search | {"num_rounds": 1, "max_steps": 1, "batch_size": size, "dtype": "float32"}
    asked = {key: value for key, value in asked.items() if value is not None}
    if not words:
        serve(asked, sites, list(NAMES), "1")
        assert len(updates_of(sites)) == 3
        return
    with pytest.raises(ConfigError, match=words):
        serve(asked, sites, list(NAMES), "1")
    assert not updates_of(sites)


@pytest.mark.parametrize("weights", ["size", "minimax", "gain"])
def test_a_run_in_which_nobody_may_report_ends_well(run, sites: FakeSites, weights: str):
    """What a site.yaml says that does not mention it: these sites hold out two or three rows."""
    for name in NAMES:
        least(sites, name, None if weights == "size" else 1000)
    done = serve(run | {"num_rounds": 2, "batch_size": 8, "client_weight": weights}, sites, list(NAMES), "1")
    rounds = [line for line in metrics(done) if line["event"] == "round"]
    assert [line["clients"] for line in rounds] == [list(NAMES)] * 2
    assert all((line["train_loss"] is None) == (weights != "size") for line in rounds)  # a round has 16 rows
    assert not any(line["failures"] for line in rounds)
    assert done.summary["eval"]["loss"] is None
    assert all(one["loss"] is None for one in done.summary["clients"].values())
