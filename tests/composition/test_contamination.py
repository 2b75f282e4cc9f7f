"""Contamination in a run: each client counts a task's items among its own rows, and only counts travel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import weft
from support.fake_sites import NAMES, FakeSites
from support.own_tasks import own_task
from support.preferences import preference_rows
from support.results import metrics
from support.rows import colour_rows, write_rows
from weft.cli import main
from weft.config import build
from weft.errors import ConfigError
from weft.launch.contamination import asked_counts
from weft.pages.report import write_report
from weft.sites.policy import read_policy
from weft.sites.server import serve

TWEETS = [
    f"the harbour company of town {n} reports {n} times the profit of last year and pays all of it out to {n} owners"
    for n in range(30)
]


def planted(count: int, seed: int, *tweets: str) -> list[dict[str, str]]:
    """Rows of a client, some of which hold test items."""
    return colour_rows(count, seed) + [{"instruction": f"Tell: {tweet}!", "output": "yes"} for tweet in tweets]


@pytest.fixture
def task_data(tmp_path: Path) -> Path:
    """A folder with the data of the task tfns."""
    folder = tmp_path / "task_data"
    folder.mkdir()
    write_rows(folder / "tfns_valid.jsonl", [{"text": text, "label": n % 3} for n, text in enumerate(TWEETS)])
    return folder


@pytest.fixture
def people(keys, task_data: Path, tmp_path: Path) -> dict[str, Any]:
    """The keys of a run of two clients, one of which has three items twice."""
    sets = {"a": planted(30, 0, *TWEETS[:3], TWEETS[0]), "b": planted(30, 1)}
    clients = [{"name": name, "data": str(write_rows(tmp_path / f"{name}.jsonl", rows))} for name, rows in sets.items()]
    left = {key: value for key, value in keys.items() if key not in ("dataset_name", "num_clients")}
    own = {"clients": clients, "eval_fraction": 0.0, "contamination": ["tfns"], "task_data": [str(task_data)]}
    return left | own | {"num_rounds": 1, "seq_length": 200}


def test_planted_items_are_counted_and_without_them_there_are_none(people, capsys, tmp_path: Path):
    run = weft.train(people)
    counted = {"items": 30, "compared": 30}
    assert run.summary["contamination"] == {"tfns": {"a": counted | {"found": 3}, "b": counted | {"found": 0}}}
    sentence = "of the 30 items of the task 'tfns' (30 are long enough to compare)"
    told = capsys.readouterr().err
    assert f"{sentence}, so many share a long n-gram with rows that are trained on: a 3, b 0." in told
    assert "share a long n-gram" in write_report(run.path).read_text()
    write_rows(Path(people["clients"][0]["data"]), planted(34, 0))
    clean = weft.train(people | {"output_dir": str(tmp_path / "clean")})
    assert {name: one["found"] for name, one in clean.summary["contamination"]["tfns"].items()} == {"a": 0, "b": 0}
    # Counting changes nothing of a run.
    without = {key: value for key, value in people.items() if key not in ("contamination", "task_data")}
    other = weft.train(without | {"output_dir": str(tmp_path / "other")})
    assert metrics(other) == metrics(clean)
    assert "contamination" not in other.summary


@pytest.mark.parametrize("rows", ["text", "pairs", "prompts"])
def test_rows_of_every_kind_are_searched(people, rows: str, tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    changes: dict[str, Any] = {}
    if rows == "text":
        write_rows(file, [{"text": f"No {n}."} for n in range(20)] + [{"text": text} for text in TWEETS[:2]])
        changes = {"objective": "causal_lm", "template": None}
    elif rows == "pairs":
        pairs = [{"prompt": "Say it.", "chosen": TWEETS[0], "rejected": TWEETS[1]}]
        write_rows(file, [*preference_rows(20), *pairs])
        changes = {"objective": "preference", "loss": "dpo"}
    else:
        write_rows(file, planted(20, 0, *TWEETS[:2]))
        changes = {"objective": "grpo", "reward": ["exact"], "max_new_tokens": 4}
    clients = [{"name": "a", "data": str(file)}]
    run = weft.train(people | {"clients": clients, "sample_clients": 1} | changes)
    assert run.summary["contamination"]["tfns"]["a"]["found"] == 2


def with_tasks(sites: FakeSites, task_data: Path, **accept: Any) -> None:
    """Give the first site two items and all but the last a copy of the task's data."""
    first = Path(sites.policies[NAMES[0]].data.path)
    write_rows(first, planted(24, 0, *TWEETS[:2]))
    for name in NAMES[:2]:
        file = Path(sites.policies[name].data.path).parent / "site.yaml"
        policy = yaml.safe_load(file.read_text())
        policy["accept"] |= accept
        file.write_text(yaml.safe_dump(policy | {"task_data": [str(task_data)]}))
        sites.policies[name] = read_policy(file)
        sites.begin(name)


def test_sites_count_against_their_own_copies_and_send_counts_alone(run, sites: FakeSites, task_data: Path):
    with_tasks(sites, task_data)
    given = run | {"contamination": ["finance"], "num_rounds": 0, "eval_fraction": 0.1, "seq_length": 200}
    done = serve(given, sites, list(NAMES), "1")
    counted = {"items": 30, "compared": 30}
    found = done.summary["contamination"]
    # Of the suite, the sites have the data of these tasks; the third site has none, and does not count.
    assert found["tfns"] == {NAMES[0]: counted | {"found": 2}, NAMES[1]: counted | {"found": 0}}
    crossed = b"".join(sites.answered) + b"".join(raw for _, raw in sites.asked if raw)
    assert b"harbour company" not in crossed
    assert str(task_data).encode() not in crossed


def test_a_site_does_not_tell_small_counts(run, sites: FakeSites, task_data: Path):
    with_tasks(sites, task_data, min_report_rows=5, min_train_rows=1)
    given = run | {"contamination": ["tfns"], "num_rounds": 1, "seq_length": 200, "eval_every": 0}
    done = serve(given | {"output_dir": str(run["output_dir"]) + "1"}, sites, list(NAMES), "1")
    found = {name: one["found"] for name, one in done.summary["contamination"]["tfns"].items()}
    assert found == {NAMES[0]: None, NAMES[1]: 0}
    assert f"{NAMES[0]} a few, {NAMES[1]} 0" in write_report(done.path).read_text()
    with_tasks(sites, task_data, min_report_rows=50, min_train_rows=1)
    done = serve(given | {"output_dir": str(run["output_dir"]) + "2"}, sites, list(NAMES), "1")
    assert "contamination" not in done.summary


def test_what_a_site_answers_is_believed_as_far_as_it_can_be():
    good = {"items": 5, "compared": 4, "found": 3}
    wrong: list[Any] = [
        None, 7, [], {}, {"tfns": 1}, {"tfns": {}}, {"tfns": good | {"found": 5}}, {"tfns": good | {"items": -1}},
        {"tfns": good | {"items": 1 << 40}}, {"tfns": good | {"found": "3"}}, {"tfns": good | {"items": True}},
        {"tfns": good | {"found": float("nan")}},
    ]  # fmt: skip
    answers = {f"site_{n}": answer for n, answer in enumerate(wrong)}
    answers["good"] = {"tfns": good | {"x": 1}, "mmlu": good}
    assert asked_counts(["tfns"], answers) == {"tfns": {"good": good}}
    assert asked_counts([], answers) == {}


def test_what_cannot_be_counted_is_refused(people, capsys, tmp_path: Path):
    for changes, words in (
        ({"contamination": ["tfn"]}, "Did you mean 'tfns'"),
        ({"task_data": [str(tmp_path / "none")]}, "no folder of task data"),
        ({"contamination": ["medqa"]}, "is not at hand"),
        ({"contamination": ["tfns"], "privacy": "gaussian.py:Own"}, "beside what privacy bounds"),
    ):
        with pytest.raises(ConfigError, match=words):
            weft.train(people | changes)
        assert not Path(people["output_dir"]).exists()
    with pytest.raises(ConfigError, match="nobody opens a file"):
        build({"runtime": "nvflare", "contamination": ["own.yaml"]})
    assert main(["sft", "--dataset_name", "x", "--task_data", "d"]) == 2
    assert "eval_tasks and contamination" in capsys.readouterr().err


def test_a_task_of_ones_own(people, tmp_path: Path):
    task = tmp_path / "tasks" / "own.yaml"
    task.parent.mkdir()
    task.write_text(own_task("own", "choice: {choices: [red, green], answer: colour}", file="own"))
    rows = [{"thing": f"an {n}th {TWEETS[n]}", "colour": "red"} for n in range(12)]
    write_rows(Path(people["task_data"][0]) / "own.jsonl", rows)
    run = weft.train(people | {"contamination": [str(task)]})
    assert {name: one["found"] for name, one in run.summary["contamination"]["own"].items()} == {"a": 3, "b": 0}
    assert json.loads((run.path / "split.json").read_text())["contamination"] == run.summary["contamination"]
