"""Runs with sites elsewhere: their law, what they say, what they keep, and how they fail. The line is a fake; nothing
else is."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import weft
from support.fake_sites import NAMES, FakeSites
from support.rows import colour_rows, write_rows
from weft.core.wire import unpack
from weft.errors import ConfigError, RunError
from weft.launch.law import Site, read_law, reportable
from weft.launch.served import serve


def here(run: dict[str, object], sites: FakeSites, tmp_path: Path, **changes: object):
    """Run the same in one process, on the same files."""
    clients = [{"name": name, "data": sites.laws[name].data.path} for name in NAMES]
    own = {key: value for key, value in run.items() if key not in ("sites", "runtime")}
    return weft.train(own | {"clients": clients, "output_dir": str(tmp_path / "here")} | changes, quiet=True)


def result(run) -> dict[str, torch.Tensor]:
    (file,) = run.weights().glob("*model.safetensors")
    return load_file(file)


def lines(run) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


PAIRS = {"objective": "preference", "loss": "dpo", "choices": None}
KINDS = {
    "fedavg": {},
    "scaffold": {"fed_alg": "scaffold"},
    "flora with ranks": {"lora_aggregation": "stack", "client_ranks": [2, 4, 8]},
    "dpo": PAIRS,
    "parts that stay": {"share": ["lora_A"]},
    "a sample of them": {"sample_clients": 2, "min_clients": 1},
    "half the layers": {"client_layers": [2, 1]},
    "seeds": {"fed_alg": "fedkseed", "fed_args": {"seeds": 16}, "learning_rate": 1e-4},
    "a prompt": {"use_peft": False, "prompt_method": "soft", "num_virtual_tokens": 4, "few_shot": 1},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_results_are_those_of_one_process_bit_for_bit(
    run, sites: FakeSites, changes: dict[str, object], tmp_path: Path
):
    if changes is PAIRS:
        for law in sites.laws.values():
            rows = [json.loads(line) for line in Path(law.data.path).read_text().splitlines()]
            pairs = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "none"} for row in rows]
            write_rows(Path(law.data.path), pairs)
    given = run | changes
    there = serve(given, sites, list(NAMES), "1")
    one = here(given, sites, tmp_path)
    assert (there.path / "metrics.jsonl").read_bytes() == (one.path / "metrics.jsonl").read_bytes()
    ours, theirs = result(there), result(one)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert there.summary["clients"].keys() == one.summary["clients"].keys()
    for name in NAMES:  # who takes part has the result, and its own model where it has one
        (kept,) = (tmp_path / "work" / name / "run").glob("*/*model.safetensors")
        own = one.path / "clients" / name / kept.parent.name / kept.name
        wanted = load_file(own) if own.exists() else theirs
        assert own.exists() == ("share" in changes)
        assert all(torch.equal(value, wanted[key]) for key, value in load_file(kept).items())


def test_rows_and_paths_never_leave(run, sites: FakeSites):
    serve(run, sites, list(NAMES), "1")
    crossed = b"".join(sites.answered) + b"".join(raw for _, raw in sites.asked if raw)
    for law in sites.laws.values():
        assert law.data.path.encode() not in crossed
    for row in colour_rows(24):
        assert row["instruction"].encode() not in crossed


def test_an_answer_that_is_lost_is_asked_for_again_and_not_worked_out_twice(run, sites: FakeSites, tmp_path: Path):
    sites.lose = 4
    there = serve(run | {"fed_alg": "scaffold"}, sites, list(NAMES), "1")
    one = here(run | {"fed_alg": "scaffold"}, sites, tmp_path)
    assert (there.path / "metrics.jsonl").read_bytes() == (one.path / "metrics.jsonl").read_bytes()
    assert sites.lose == 0


@pytest.mark.slow
def test_a_slow_site_is_waited_for_and_a_silent_one_is_not(run, sites: FakeSites):
    """What goes on is alive; only silence ends a turn."""
    slow = sites.attendants["hospital_b"]
    sites.slow["hospital_b"] = 1.5
    done = serve(run | {"num_rounds": 1, "silence_timeout": 0.7, "min_clients": 2}, sites, list(NAMES), "1")
    assert set(done.summary["failures"]) == {"hospital_b"}
    assert "made no progress for 0.7 s" in lines(done)[0]["failures"]["hospital_b"]
    sites.begin("hospital_b")
    slow = sites.attendants["hospital_b"]

    over = threading.Event()

    def live() -> None:
        while not over.wait(0.1):
            slow._steps += 1

    thread = threading.Thread(target=live)
    thread.start()
    other = run | {"num_rounds": 1, "silence_timeout": 1.0, "output_dir": str(done.path) + "-2"}
    done = serve(other, sites, list(NAMES), "1")
    over.set()
    thread.join()
    sites.slow.clear()
    assert done.summary["failures"] == {}


def test_a_site_that_is_cut_off_is_missed_and_comes_back(run, sites: FakeSites):
    heard: list[dict[str, object]] = []

    def hear(said: dict[str, object]) -> None:
        heard.append(said)
        number = said.get("round", {}).get("round", 0)
        if number == 1:
            sites.cut.add("hospital_c")
        if number == 2:
            sites.cut.clear()

    given = run | {"num_rounds": 4, "silence_timeout": 1.0, "min_clients": 2}
    done = serve(given, sites, list(NAMES), "1", hear=hear)
    rounds = [line for line in lines(done) if line["event"] == "round"]
    assert [len(line["clients"]) for line in rounds] == [3, 2, 3, 3]
    assert "could not be reached (cut) for 1 s" in rounds[1]["failures"]["hospital_c"]


def test_what_a_silent_site_has_to_forget_is_said_when_it_is_heard_again(run, sites: FakeSites, tmp_path: Path):
    """It was cut off after it had worked: its variate must not be that of a round which did not count."""

    def hear(said: dict[str, object]) -> None:
        number = said.get("round", {}).get("round", 0)
        if number == 1:
            sites.deaf.add("hospital_c")
        if number == 2:
            sites.deaf.clear()
            assert not [raw for client, raw in sites.asked if client == "hospital_c" and raw and b"Undo" in raw]

    given = run | {"num_rounds": 3, "silence_timeout": 1.0, "min_clients": 2, "fed_alg": "scaffold", "eval_every": 0}
    done = serve(given, sites, list(NAMES), "1", hear=hear)
    rounds = [line for line in lines(done) if line["event"] == "round"]
    assert [len(line["clients"]) for line in rounds] == [3, 2, 3]
    sent = [raw for client, raw in sites.asked if client == "hospital_c" and raw and raw[:1] != b"{"]
    kinds = [type(unpack(raw, run="run")).__name__ for raw in sent]
    assert [kind for kind, _ in itertools.groupby(kinds)] == ["Task", "Undo", "Task", "Probe"]


def test_a_site_that_begins_anew_is_said_hello_again_and_goes_on(run, sites: FakeSites, tmp_path: Path):
    """What it remembers is on its disk: the numbers are those of a run in which nothing happened."""

    def hear(said: dict[str, object]) -> None:
        if said.get("round", {}).get("round") == 1:
            sites.begin("hospital_a")

    done = serve(run | {"fed_alg": "scaffold"}, sites, list(NAMES), "1", hear=hear)
    one = here(run | {"fed_alg": "scaffold"}, sites, tmp_path)
    assert (done.path / "metrics.jsonl").read_bytes() == (one.path / "metrics.jsonl").read_bytes()


def test_a_site_that_comes_back_with_other_rows_is_not_taken(run, sites: FakeSites):
    law = sites.laws["hospital_a"]

    def hear(said: dict[str, object]) -> None:
        if said.get("round", {}).get("round") == 1:
            write_rows(Path(law.data.path), colour_rows(50, 9))
            sites.begin("hospital_a")

    done = serve(run | {"num_rounds": 2, "min_clients": 2}, sites, list(NAMES), "1", hear=hear)
    assert set(done.summary["failures"]) == {"hospital_a"}
    assert "other rows" in lines(done)[-2]["failures"]["hospital_a"]


def test_a_server_that_is_started_again_goes_on_from_the_last_committed_round(run, sites: FakeSites, tmp_path: Path):
    class Killed(Exception):
        pass

    def hear(said: dict[str, object]) -> None:
        if said.get("round", {}).get("round") == 3:
            raise Killed

    given = run | {"num_rounds": 4, "fed_alg": "scaffold", "checkpoint_seconds": 0, "save_model_freq": 1}
    with pytest.raises(Killed):
        serve(given, sites, list(NAMES), "1", hear=hear)
    for name in NAMES:
        sites.begin(name)
    there = serve(given, sites, list(NAMES), "1", resume=True)
    one = here(given, sites, tmp_path)
    assert (there.path / "metrics.jsonl").read_bytes() == (one.path / "metrics.jsonl").read_bytes()
    assert all(torch.equal(result(there)[name], value) for name, value in result(one).items())


REFUSALS = {
    "models": ({"accept": {"models": ["another"]}}, "the model .* is not among what this site accepts"),
    "objectives": ({"accept": {"objectives": ["preference"]}}, "the objective 'sft'"),
    "trainable": ({"accept": {"trainable": ["prompt"]}}, "training of the kind 'lora'"),
    "algorithms": ({"accept": {"algorithms": ["scaffold"]}}, "the algorithm 'fedavg'"),
    "rounds": ({"accept": {"max_rounds": 2}}, "3 rounds, and this site accepts 2"),
    "cohort": ({"accept": {"min_clients": 4}}, "3 clients, and this site asks for 4"),
    "protection": ({"accept": {"protection": ["secagg"]}}, "the protection 'none'"),
    "privacy": ({"accept": {"max_epsilon": 8.0}}, "no differential privacy"),
    "hash": ({"accept": {"models": {"MODEL": "sha256:00"}}}, "asks for another"),
    "data": ({"data": {"path": "empty.jsonl"}}, "own log says more"),
}


@pytest.mark.parametrize(("changes", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_a_site_refuses_reaches_the_server_in_words(run, sites: FakeSites, changes, words: str):
    law = sites.laws["hospital_b"].model_dump()
    folder = Path(law["data"]["path"]).parent
    (folder / "empty.jsonl").write_text("")
    model = str(run["model_name_or_path"])
    for name, values in changes.items():
        law[name] |= values
    law["accept"]["models"] = {
        (model if name == "MODEL" else name): value for name, value in dict(Site(**law).accept.models).items()
    }
    (folder / "other.yaml").write_text(yaml.safe_dump(law))
    sites.laws["hospital_b"] = read_law(folder / "other.yaml")
    sites.begin("hospital_b")
    done = serve(run | {"min_clients": 2}, sites, list(NAMES), "1")
    assert done.summary["clients"].keys() == {"hospital_a", "hospital_c"}
    with pytest.raises(ConfigError, match=f"2 of 3 sites take part.*hospital_b: .*{words}") as stopped:
        serve(run | {"min_clients": 3, "output_dir": str(done.path) + "-2"}, sites, list(NAMES), "1")
    assert str(folder) not in str(stopped.value)


def test_a_site_that_is_not_connected_is_left_out_and_others_keep_their_numbers(run, sites: FakeSites):
    """The rank of a client follows from its number."""
    given = run | {"lora_aggregation": "stack", "client_ranks": [8, 4, 2], "min_clients": 2}
    done = serve(given, sites, ["hospital_b", "hospital_c"], "1")
    (record,) = [line for line in lines(done) if line.get("round") == 1 and line["event"] == "round"]
    assert record["clients"] == ["hospital_b", "hospital_c"]
    # q and v of two layers, A and B of 32 x rank (v's B: 16 x rank), 4 bytes
    each = 4 * 2 * ((32 + 32) + (32 + 16))
    assert record["bytes_up"] == each * (4 + 2)
    with pytest.raises(RunError, match="hospital_a: it is not connected"):
        serve(given | {"min_clients": 3, "output_dir": str(done.path) + "-2"}, sites, list(NAMES[1:]), "1")


def test_versions_must_agree_and_no_code_travels(run, sites: FakeSites, tmp_path: Path):
    with pytest.raises(ConfigError, match="another version of Weft"):
        serve(run, sites, list(NAMES), "2")
    prompts = {"objective": "grpo", "reward": ["own.py:score"], "use_peft": True, "max_new_tokens": 8}
    with pytest.raises(ConfigError, match="no code travels"):
        serve(run | prompts | {"output_dir": str(tmp_path / "runs/b")}, sites, list(NAMES), "1")
    with pytest.raises(ConfigError, match="no code travels"):
        serve(run | {"trust_remote_code": True, "output_dir": str(tmp_path / "runs/c")}, sites, list(NAMES), "1")


def test_a_site_reports_what_it_wants_to(run, sites: FakeSites):
    law = sites.laws["hospital_a"]
    limited = law.model_copy(update={"accept": law.accept.model_copy(update={"report": ["loss"]})})
    sites.laws["hospital_a"] = limited
    sites.begin("hospital_a")
    done = serve(run | {"num_rounds": 1}, sites, list(NAMES), "1")
    scores = done.summary["clients"]
    assert scores["hospital_a"]["loss"] is not None
    assert scores["hospital_a"]["accuracy"] is None
    assert scores["hospital_b"]["accuracy"] is not None


def test_counts_are_not_reported_without_their_sums(sites: FakeSites):
    law = sites.laws["hospital_a"]
    limited = law.model_copy(update={"accept": law.accept.model_copy(update={"report": ["loss_t", "text", "answers"]})})
    metrics = {"loss_tokens": 4.0, "loss_sum": 9.0, "text_bytes": 7.0, "answers": 2.0, "steps": 3.0}
    assert reportable(limited, metrics) == {"steps": 3.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: nowhere.jsonl\naccept: {models: [a]}\n", "there is no data at"),
        ("data: rows.jsonl\n", "accept cannot be"),
        ("data: rows.jsonl\naccept: {models: [a], max_rounds: none}\n", r"accept\.max_rounds cannot be"),
        ("data: rows.jsonl\naccept: {models: [a], modles: 3}\n", r"accept\.modles cannot be"),
        (": : :", "not valid YAML in line 1"),
        (
            "data: rows.jsonl\naccept: {models: [a]}\naccept: {models: [b]}\n",
            "'accept' stands there twice, in lines 2 and 3",
        ),
        (
            "data: rows.jsonl\naccept:\n  models: [a]\n  max_rounds: 3\n  max_rounds: 9\n",
            "'max_rounds' stands there twice",
        ),
    ],
)
def test_a_law_that_cannot_be_read_is_said(sites: FakeSites, tmp_path: Path, text: str, words: str):
    file = Path(sites.laws["hospital_a"].data.path).parent / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_law(file)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset_name": "x"}, "drop --dataset_name"),
        ({"fed_alg": "central"}, "another that is federated"),
        ({"client_failure_rate": 0.5}, "drop --client_failure_rate"),
    ],
)
def test_what_a_run_of_sites_cannot_be_is_said(run, sites: FakeSites, changes: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        serve(run | changes, sites, list(NAMES), "1")


def test_training_here_says_how_to_submit(run):
    with pytest.raises(ConfigError, match="weft submit"):
        weft.train(run, quiet=True)
