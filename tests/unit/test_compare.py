"""Runs side by side: what stands in one column, seeds folded, baselines marked."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from support.finished_runs import lay
from weft.cli import main
from weft.runs.comparison import ABROAD, CLUSTERS, OWN, SHARED, Outcome, scores_of, spread, tables


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """A shared model is worse on everybody's rows than own models on own ones, and better on everybody's."""
    made = []
    for seed, loss in ((1, 1.0), (2, 1.1), (3, 1.3)):
        made.append(lay(tmp_path, f"fedavg-{seed}", {"eval": {"loss": loss, "perplexity": 2.7}}, seed=seed))
        models = {"own": {"loss": loss - 0.5}, "own_on_everybody": {"loss": loss + 1}, "clients": {}}
        summary = {"eval": {"loss": loss - 0.5, "perplexity": 1.6}, "models": models}
        made.append(lay(tmp_path, f"local-{seed}", summary, seed=seed, fed_alg="local"))
    return made


def table(text: str, title: str) -> dict[str, list[str]]:
    """Return the lines of a table by the name of their run."""
    lines = text[text.index(title) :].split("\n\n")[0].splitlines()[2:]
    return {line.strip().split("  ")[0]: line.split() for line in lines}


def test_own_models_are_never_in_a_column_with_the_shared_one(runs: list[str], capsys):
    assert main(["compare", *runs]) == 0
    shown = capsys.readouterr().out
    assert [line for line in shown.splitlines() if line.startswith("sft: ")] == [
        "sft: runs",
        f"sft: {SHARED}",
        f"sft: {OWN}",
        f"sft: {ABROAD}",
        "sft: what it took",
    ]
    fedavg, local = (", ".join(runs[place::2]) for place in (0, 1))
    assert list(table(shown, f"sft: {SHARED}")) == [fedavg]
    assert list(table(shown, f"sft: {OWN}")) == list(table(shown, f"sft: {ABROAD}")) == [local]
    assert table(shown, f"sft: {OWN}")[local][3:7] == ["12", "0.6333", "±", "0.1528"]


def test_seeds_are_folded_to_their_mean_and_deviation(runs: list[str], capsys):
    assert main(["compare", *runs[::2], "--csv"]) == 0
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    losses = [1.0, 1.1, 1.3]
    assert float(line["loss"]) == pytest.approx(statistics.mean(losses))
    assert float(line["loss_deviation"]) == pytest.approx(statistics.stdev(losses))
    assert (line["seeds"], line["runs"], line["n"], line["measured"]) == ("1 2 3", ";".join(runs[::2]), "12", SHARED)
    assert spread([2.0]) == (2.0, None)


def test_two_runs_of_one_seed_are_not_folded(runs: list[str], tmp_path: Path, capsys):
    again = lay(tmp_path, "again", {"eval": {"loss": 1.0}}, seed=1)
    assert main(["compare", runs[0], again, runs[0], "--csv"]) == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(line["runs"], line["loss_deviation"]) for line in found] == [(runs[0], ""), (again, "")]


@pytest.mark.parametrize(
    ("tokens", "mark"), [(3000, "equal tokens"), (3029, "equal tokens"), (9000, "3 times the others' tokens")]
)
def test_a_baseline_says_how_many_tokens_it_had(runs: list[str], tmp_path: Path, capsys, tokens: int, mark: str):
    central = lay(tmp_path, "central", {"eval": {"loss": 0.9}, "tokens": tokens}, seed=1, fed_alg="central")
    assert main(["compare", runs[0], central]) == 0
    assert f"{central} ({mark})" in capsys.readouterr().out
    assert main(["compare", central]) == 0
    assert "tokens)" not in capsys.readouterr().out


def test_verbs_have_tables_of_their_own_and_different_numbers_of_rows_are_told(runs: list[str], tmp_path: Path, capsys):
    dpo = lay(tmp_path, "dpo", {"eval": {"loss": 0.7, "preference_accuracy": 0.5}}, objective="preference")
    few = lay(tmp_path, "few", {"eval": {"loss": 1.2}, "clients": {"a": {"rows": 4}}}, learning_rate=0.1)
    assert main(["compare", runs[0], dpo, few]) == 0
    shown = capsys.readouterr().out
    assert list(table(shown, f"dpo: {SHARED}")) == [dpo]
    assert dpo not in shown[: shown.index("dpo: runs")]
    assert "n differs: the runs were not measured on the same rows." in shown
    assert "learning_rate=0.1" in shown
    assert main(["compare", runs[0], few, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[few]["scores"] == {SHARED: {"loss": 1.2}}


def test_every_score_is_under_the_model_that_it_measures():
    def kinds(config: dict[str, Any], summary: dict[str, Any], *, personal: bool = False) -> dict[str, Any]:
        return scores_of(Outcome("run", config, summary, personal))

    measured = {"eval": {"loss": 1.0, "perplexity": 2.7}}
    assert kinds({}, measured) == {SHARED: measured["eval"]}
    assert kinds({"cluster": 2}, measured) == {CLUSTERS: measured["eval"]}
    assert kinds({}, measured, personal=True) == {OWN: measured["eval"]}  # sites keep their models
    tuned = measured | {"models": {"shared": {"loss": 1.0}, "own": {"loss": 0.5}}}
    assert kinds({}, tuned) == {SHARED: measured["eval"], OWN: {"loss": 0.5}}


def test_seeds_are_folded_where_runs_differ_only_in_keys_without_effect():
    def outcome(seed: int, **more: Any) -> Outcome:
        return Outcome(f"run{seed}", {"objective": "sft", "fed_alg": "fedavg", "seed": seed} | more, {"eval": {}})

    (line,) = tables([outcome(1, threads=1), outcome(2, threads=2)], frozenset({"threads"}))["sft"]
    assert line.seeds == [1, 2]
    assert len(tables([outcome(1, threads=1), outcome(2, threads=2)], frozenset())["sft"]) == 2


def test_the_report_says_of_what_its_scores_are(runs: list[str]):
    from weft.pages.report import write_report

    for path, kind in ((runs[0], SHARED), (runs[1], OWN)):
        page = write_report(path).read_text(encoding="utf-8").replace("&#x27;", "'")
        assert f'<td class="w">evaluation of</td><td>{kind} (n = 12)</td>' in page
