"""Evaluation tasks within a run, the best round by any metric, and a run that ends when it no longer improves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import weft
from support.flags import flags
from support.own_tasks import own_task
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.errors import ConfigError, RunError
from weft.federation import loop
from weft.launch.best import BestRule
from weft.models.resident import Resident
from weft.pages.report import write_report

PROMPT = r"{{ instruction }}\nAnswer:"
TASK = own_task("colours", "choice: {choices: [red, green, blue], answer: output}", file="colours", prompt=PROMPT)
OPEN = own_task("named", "generate: {compare: exact, answer: output, max_tokens: 4}", file="colours", prompt=PROMPT)


@pytest.fixture
def asked(keys, tmp_path: Path) -> dict[str, Any]:
    """The keys of a run of seconds with a task."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "colours.yaml").write_text(TASK)
    (folder / "named.yaml").write_text(OPEN)
    write_rows(folder / "colours.jsonl", colour_rows(12))
    own = {"eval_tasks": ["colours"], "task_data": [str(folder)], "include_path": [str(folder)], "dtype": "float32"}
    return keys | own | {"num_rounds": 6, "learning_rate": 1e-2, "checkpoint_seconds": 0}


def lines(run: weft.Run | Path, event: str) -> list[dict[str, Any]]:
    path = run if isinstance(run, Path) else run.path
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["event"] == event]


def test_tasks_are_scored_at_the_start_between_rounds_and_at_the_end(asked):
    run = weft.train(asked | {"eval_every": 4})
    records = lines(run, "tasks")
    assert [record["round"] for record in records] == [0, 4, 6]
    assert all(0 <= record["colours/accuracy"] <= 1 for record in records)
    assert run.summary["tasks"] == {"first": records[0], "last": records[-1]}
    assert run.metrics["eval_colours/accuracy"].dropna().index.tolist() == [0, 4, 6]
    page = write_report(run.path).read_text()
    assert "Evaluation tasks" in page
    assert "colours/accuracy" in page
    kept = run.summary["answers"]
    assert kept["round"] == 6
    (items,) = kept["tasks"].values()
    questions = [f"{row['instruction']}\nAnswer:" for row in colour_rows(12)[:3]]
    assert [item["prompt"] for item in items] == questions
    assert {item[when] for item in items for when in ("before", "after")} <= {"red", "green", "blue"}
    assert "Answers to the server&#x27;s prompts" in page or "Answers to the server's prompts" in page


def test_scores_are_those_of_weft_evaluate(asked, tmp_path: Path, capsys):
    from weft.cli import main

    run = weft.train(asked | {"eval_tasks": ["colours", "named"]})
    where = [*("--task_data", asked["task_data"][0]), *("--include_path", asked["include_path"][0])]
    assert main(["evaluate", str(run.path), "--tasks", "colours", "named", *where, "--quiet", "--json"]) == 0
    after = json.loads(capsys.readouterr().out)["results"]
    last = run.summary["tasks"]["last"]
    assert last["colours/accuracy"] == pytest.approx(after["colours"]["acc,none"])
    assert last["named/exact_match"] == pytest.approx(after["named"]["exact_match,none"])


def test_progress_shows_the_interval_of_weft_evaluate(asked, monkeypatch: pytest.MonkeyPatch, capsys):
    from weft.launch.run_tasks import RunTasks

    words, said = RunTasks.words, []
    monkeypatch.setattr(RunTasks, "words", lambda self, scores: said.append(words(self, scores)) or said[-1])
    run = weft.train(asked)
    where = [*("--task_data", asked["task_data"][0]), *("--include_path", asked["include_path"][0])]
    assert main(["evaluate", str(run.path), "--tasks", "colours", *where, "--quiet"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("colours"))
    assert said[-1][0].removeprefix("colours accuracy ") in line


def test_training_is_as_without_tasks(asked):
    without = {key: value for key, value in asked.items() if key not in ("eval_tasks", "task_data", "include_path")}
    plain = weft.train(without | {"output_dir": asked["output_dir"] + "0"})
    run = weft.train(asked | {"eval_tasks": ["colours", "named"]})
    assert [lines(run, event) for event in ("round", "eval")] == [lines(plain, event) for event in ("round", "eval")]
    files = [one.path / "adapter" / "adapter_model.safetensors" for one in (run, plain)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_mode_values_and_random_state_stay(asked, monkeypatch: pytest.MonkeyPatch):
    from weft.launch.run_tasks import RunTasks

    scores, seen = RunTasks.scores, []

    def watched(self: RunTasks, state: Any, model: Resident) -> Any:
        model.model.train()
        before, random = model.values(), torch.random.get_rng_state()
        found = scores(self, state, model)
        same = all(torch.equal(value, before[name]) for name, value in model.values().items())
        seen.append((model.model.training, torch.equal(random, torch.random.get_rng_state()), same))
        return found

    monkeypatch.setattr(RunTasks, "scores", watched)
    weft.train(asked | {"eval_tasks": ["colours", "named"], "num_rounds": 2})
    assert seen == [(True, True, True)] * 2


class Killed(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_resumed_run_writes_the_same_bytes(asked, monkeypatch: pytest.MonkeyPatch, after: int):
    keys = asked | {"best_metric": "colours", "early_stopping_rounds": 40, "eval_every": 2}
    whole = weft.train(keys)
    round_, done = loop.run_round, 0

    def dies(*args: Any, **kwargs: Any) -> Any:
        nonlocal done
        done += 1
        if done > after:
            raise Killed
        return round_(*args, **kwargs)

    monkeypatch.setattr(loop, "run_round", dies)
    other = keys | {"output_dir": keys["output_dir"] + "1"}
    with pytest.raises(Killed):
        weft.train(other)
    monkeypatch.undo()
    run = weft.train(other, resume=True)
    assert (run.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    assert run.summary["best"] == whole.summary["best"]
    name = "best/adapter/adapter_model.safetensors"
    assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_the_best_round_is_kept_and_written(asked):
    # The rate is so large that later rounds are worse.
    more = {"best_metric": "colours", "eval_every": 1, "learning_rate": 0.5, "num_rounds": 12}
    run = weft.train(asked | more)
    scores = {record["round"]: record["colours/accuracy"] for record in lines(run, "tasks")}
    start = scores.pop(0)
    losses = {record["round"]: record["loss"] for record in lines(run, "eval")}
    best = run.summary["best"]
    assert best["round"] == max(scores, key=scores.__getitem__)
    assert best["round"] < 11, "a control: the newest two checkpoints are kept anyway"
    assert (best["value"], best["better"], best["start"]) == (scores[best["round"]], "higher", start)
    assert best["round"] in run.rounds
    then = weft.open_run(run.path, round=best["round"])
    of_checkpoint = load_file(then.weights() / "adapter_model.safetensors")
    written = load_file(run.path / best["folder"] / "adapter_model.safetensors")
    assert all(torch.equal(value, of_checkpoint[name]) for name, value in written.items())
    last = load_file(run.path / "adapter" / "adapter_model.safetensors")
    assert any(not torch.equal(value, last[name]) for name, value in written.items())
    card = (run.path / best["folder"] / "README.md").read_text()
    assert f"| rounds | {best['round']} |" in card
    assert f"{losses[best['round']]:.4f}" in card


def test_a_run_that_no_longer_improves_ends_and_stays_ended(asked):
    keys = asked | {"best_metric": "colours", "eval_every": 1, "learning_rate": 0.5, "num_rounds": 12}
    whole = weft.train(keys | {"output_dir": keys["output_dir"] + "0"})
    run = weft.train(keys | {"early_stopping_rounds": 2})
    best = run.summary["best"]
    assert run.summary["rounds"] == best["round"] + 2 < 12
    assert best["stopped_early"]
    assert not whole.summary["best"]["stopped_early"]
    begin = (run.path / "metrics.jsonl").read_bytes()
    assert (whole.path / "metrics.jsonl").read_bytes().startswith(begin), "it is the longer run, cut short"
    assert run.finished
    again = weft.train(keys | {"early_stopping_rounds": 2}, resume=True)
    assert again.summary["rounds"] == run.summary["rounds"]
    assert (run.path / "metrics.jsonl").read_bytes() == begin
    on = weft.train(keys | {"early_stopping_rounds": 4}, resume=True)
    assert on.summary["rounds"] == on.summary["best"]["round"] + 4
    assert (whole.path / "metrics.jsonl").read_bytes().startswith((on.path / "metrics.jsonl").read_bytes())


def test_the_best_round_of_own_models_is_kept_and_no_shared_one_is_claimed(asked, capsys):
    own = {key: value for key, value in asked.items() if key not in ("eval_tasks", "task_data", "include_path")}
    run = weft.train(own | {"fed_alg": "local", "best_metric": "loss", "eval_every": 1})
    assert run.summary["best"]["folder"] is None
    assert run.summary["best"]["round"] in run.rounds
    assert not (run.path / "best").exists()
    assert "clients have models of their own, so none was written" in capsys.readouterr().err


def test_how_rounds_are_compared():
    rule, best = BestRule("loss", lower=True, patience=2), None
    for round, value in ((2, 1.0), (4, 1.0), (6, None), (8, 0.5), (9, float("nan"))):
        best = rule.after(best, round, value)
        assert rule.stops(best) == (round in (4, 6))
    assert best == {"round": 8, "value": 0.5, "former": 2, "start": None, "checked": 9}
    higher = BestRule("accuracy", lower=False)
    assert higher.after(higher.after(None, 1, 0.5), 2, 0.4)["round"] == 1
    assert not higher.stops({"round": 1, "value": 0.5, "checked": 99})


def test_the_server_of_sites_scores_tasks_with_data_of_its_own(asked, run, sites, monkeypatch: pytest.MonkeyPatch):
    from support.fake_sites import NAMES
    from weft.sites.server import serve

    (Path(asked["task_data"][0]) / "fpb.jsonl").write_text(
        "".join(
            json.dumps({"sentence": f"Sales {word} in {year}.", "label": label}) + "\n"
            for year in range(2010, 2013)
            for label, word in enumerate(("fell", "stayed", "rose"))
        )
    )
    monkeypatch.setenv("WEFT_TASK_DATA", asked["task_data"][0])
    more = {"eval_tasks": ["fpb"], "eval_limit": 6, "best_metric": "accuracy", "early_stopping_rounds": 1}
    heard: list[dict[str, Any]] = []
    done = serve(run | more | {"num_rounds": 9}, sites, list(NAMES), "1", hear=heard.append)
    best, rounds = done.summary["best"], done.summary["rounds"]
    assert rounds == best["round"] + 1 < 9
    assert [record["round"] for record in lines(done, "tasks")] == list(range(rounds + 1))
    assert sum("tasks" in entry for entry in heard) == rounds + 1
    assert (done.path / best["folder"] / "adapter_model.safetensors").is_file()
    with pytest.raises(ConfigError, match="nobody opens a file that a run names"):
        serve(run | {"eval_tasks": ["/etc/own.yaml"], "output_dir": f"{done.path}2"}, sites, list(NAMES), "1")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"eval_tasks": ["colours"], "eval_limit_seed": 1}, "add --eval_limit 100"),
    ({"eval_tasks": ["colurs"]}, "Did you mean 'colours'"),
    (
        {"eval_tasks": ["humaneval"]},
        r"runs programs that the model wrote, which no run does: leave it out of eval_tasks",
    ),
    ({"eval_tasks": ["mt_bench"]}, "takes a judge"),
    ({"eval_tasks": ["gsm8k"], "task_data": []}, "The data of the evaluation task 'gsm8k' is not at hand"),
    ({"fed_alg": "local"}, "every client has a model of its own: leave out --eval_tasks"),
    ({"share": ["lora_A"]}, "a part of the model stays with each client"),
    ({"best_metric": "los"}, "Did you mean 'loss'"),
    ({"best_metric": "colours/majority"}, "no value is better than another: write colours"),
    ({"best_metric": "colours/accuracy_stderr"}, "no value is better than another: write colours"),
    (
        {"best_metric": "colours/f1"},
        r"best_metric is colours/f1, which this task does not give: write colours/accuracy, colours/accuracy_norm, "
        r"colours/macro_f1\.",
    ),
    ({"eval_tasks": ["named"], "best_metric": "named/acuracy"}, "does not give: write named/exact_match"),
    ({"best_metric": "bits_per_byte"}, "it is of plain text: write another --best_metric"),
    ({"best_metric": "loss", "eval_fraction": 0.0}, "no client has held-out rows"),
    ({"early_stopping_rounds": 3}, "add --best_metric loss"),
    ({"apply_chat_template": True}, "has no chat template"),
    ({"parallel": "fsdp"}, "leave out --parallel"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[str(list(changes)) for changes, _ in WRONG])
def test_what_cannot_be_is_refused_and_leaves_nothing(asked, changes: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        weft.train(asked | changes)
    assert not Path(asked["output_dir"]).exists()


KNOWN_EARLY = [one for one in WRONG if "held-out" not in one[1] and "plain text" not in one[1]]


@pytest.mark.parametrize(("changes", "words"), KNOWN_EARLY, ids=[str(list(changes)) for changes, _ in KNOWN_EARLY])
def test_a_dry_run_refuses_it_too(asked, changes: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]):
    assert (
        main(["sft", *flags({key: value for key, value in (asked | changes).items() if value != []}), "--dry_run"]) == 2
    )
    assert re.search(words, capsys.readouterr().err)


def test_changed_rows_of_a_task_are_noticed_on_resume(asked, tmp_path: Path):
    weft.train(asked)
    write_rows(tmp_path / "tasks" / "colours.jsonl", colour_rows(11))
    with pytest.raises((ConfigError, RunError), match="the evaluation task 'colours'"):
        weft.train(asked | {"num_rounds": 8}, resume=True)
