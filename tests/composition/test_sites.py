"""Runs with sites elsewhere: the numbers of one process, nothing that leaves a site, and what a site refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import weft
from support.fake_sites import NAMES, FakeSites, train_here
from support.results import metrics, weights
from support.rows import colour_rows, write_rows
from weft.errors import ConfigError, RunError
from weft.sites.policy import SitePolicy, read_policy
from weft.sites.reports import reportable
from weft.sites.server import serve

PAIRS = {"objective": "preference", "loss": "dpo", "choices": None}
KINDS = {
    "fedavg": {},
    "scaffold": {"fed_alg": "scaffold"},
    "flora with ranks": {"lora_aggregation": "stack", "client_ranks": [2, 4, 8]},
    "dpo": PAIRS,
    "parts that stay": {"share": ["lora_A"]},
    "a sample of them": {"sample_clients": 2, "min_clients": 1},
    "half the layers": {"client_layers": [2, 1]},
    "few bytes": {"codec": "sparse_loco", "codec_down": "int4", "codec_down_args": {"zstd": True}, "sample_clients": 2},
    "few bytes of ranks": {"codec": "int4", "codec_down": "low_rank", "client_ranks": [2, 4, 8]},
    "seeds": {"fed_alg": "fedkseed", "fed_args": {"seeds": 16}, "learning_rate": 1e-4},
    "a prompt": {"use_peft": False, "prompt_method": "soft", "num_virtual_tokens": 4, "few_shot": 1},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_results_are_those_of_one_process_bit_for_bit(
    run, sites: FakeSites, changes: dict[str, object], tmp_path: Path
):
    if changes is PAIRS:
        for policy in sites.policies.values():
            rows = [json.loads(line) for line in Path(policy.data.path).read_text().splitlines()]
            pairs = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "none"} for row in rows]
            write_rows(Path(policy.data.path), pairs)
    given = run | changes
    there = serve(given, sites, list(NAMES), "1")
    one = train_here(given, sites, tmp_path)
    assert (there.path / "metrics.jsonl").read_bytes() == (one.path / "metrics.jsonl").read_bytes()
    ours, theirs = weights(there), weights(one)
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
    assert b'"rows": ' in crossed  # the handshake: what is looked for below would be found
    for policy in sites.policies.values():
        assert policy.data.path.encode() not in crossed
    for row in colour_rows(24):
        assert row["instruction"].encode() not in crossed


REFUSALS = {
    "models": ({"accept": {"models": ["another"]}}, "the model .* is not among the models that this site accepts"),
    "objectives": ({"accept": {"objectives": ["preference"]}}, "the objective 'sft'"),
    "trainable": ({"accept": {"trainable": ["prompt"]}}, "training of the kind 'lora'"),
    "algorithms": ({"accept": {"algorithms": ["scaffold"]}}, "the algorithm 'fedavg'"),
    "rounds": ({"accept": {"max_rounds": 2}}, "3 rounds, and this site accepts 2"),
    "cohort": ({"accept": {"min_clients": 4}}, "3 clients, and this site asks for 4"),
    "protection": ({"accept": {"protection": []}}, "the protection 'none'"),
    "privacy": ({"accept": {"max_epsilon": 8.0}}, "no differential privacy"),
    "hash": ({"accept": {"models": {"MODEL": "sha256:00"}}}, "asks for another"),
    "data": ({"data": {"path": "empty.jsonl"}}, "own log says more"),
}


@pytest.mark.parametrize(("changes", "words"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_a_site_refuses_reaches_the_server_in_words(run, sites: FakeSites, changes, words: str):
    policy = sites.policies["hospital_b"].model_dump()
    folder = Path(policy["data"]["path"]).parent
    (folder / "empty.jsonl").write_text("")
    model = str(run["model_name_or_path"])
    for name, values in changes.items():
        policy[name] |= values
    policy["accept"]["models"] = {
        (model if name == "MODEL" else name): value for name, value in dict(SitePolicy(**policy).accept.models).items()
    }
    (folder / "other.yaml").write_text(yaml.safe_dump(policy))
    sites.policies["hospital_b"] = read_policy(folder / "other.yaml")
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
    (record,) = [line for line in metrics(done) if line.get("round") == 1 and line["event"] == "round"]
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


def test_a_site_sends_only_the_metrics_that_its_policy_reports(run, sites: FakeSites):
    policy = sites.policies["hospital_a"]
    limited = policy.model_copy(update={"accept": policy.accept.model_copy(update={"report": ["loss"]})})
    sites.policies["hospital_a"] = limited
    sites.begin("hospital_a")
    done = serve(run | {"num_rounds": 1}, sites, list(NAMES), "1")
    scores = done.summary["clients"]
    assert scores["hospital_a"]["loss"] is not None
    assert scores["hospital_a"]["accuracy"] is None
    assert scores["hospital_b"]["accuracy"] is not None


def test_counts_are_not_reported_without_their_sums(sites: FakeSites):
    policy = sites.policies["hospital_a"]
    limited = policy.model_copy(
        update={"accept": policy.accept.model_copy(update={"report": ["loss_t", "text", "answers"]})}
    )
    metrics = {"loss_tokens": 4.0, "loss_sum": 9.0, "text_bytes": 7.0, "answers": 2.0, "steps": 3.0}
    assert reportable(limited, metrics, 50) == {"steps": 3.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: nowhere.jsonl\naccept: {models: [a]}\n", "there is no data at"),
        ("data: rows.jsonl\n", r"'accept' is missing\.$"),
        ("data: rows.jsonl\naccept: {models: [a], max_rounds: none}\n", r"accept\.max_rounds cannot be"),
        ("data: rows.jsonl\naccept: {models: [a], modles: 3}\n", r"no key 'accept\.modles': is 'models' meant\?$"),
        ("data: rows.jsonl\naccpt: {models: [a]}\naccept: {models: [a]}\n", "'accpt': is 'accept' meant"),
        ("data: {path: rows.jsonl, evl: rows.jsonl}\naccept: {models: [a]}\n", r"'data\.evl': is 'eval' meant"),
        ("data: rows.jsonl\naccept: {models: [a], objectives: [stf]}\n", r"cannot be \(there is no 'stf'"),
        (": : :", "not valid YAML in line 1"),
        (
            "data: rows.jsonl\naccept: {models: [a]}\naccept: {models: [b]}\n",
            "'accept' is given twice, in lines 2 and 3",
        ),
        (
            "data: rows.jsonl\naccept:\n  models: [a]\n  max_rounds: 3\n  max_rounds: 9\n",
            "'max_rounds' is given twice",
        ),
    ],
)
def test_a_site_policy_that_cannot_be_read_is_refused_with_the_reason(
    sites: FakeSites, tmp_path: Path, text: str, words: str
):
    file = Path(sites.policies["hospital_a"].data.path).parent / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_policy(file)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset_name": "x"}, "leave out --dataset_name"),
        ({"fed_alg": "central"}, "another that is federated"),
        ({"client_failure_rate": 0.5}, "leave out --client_failure_rate"),
    ],
)
def test_keys_that_a_run_of_sites_cannot_have_are_refused(
    run, sites: FakeSites, changes: dict[str, object], words: str
):
    with pytest.raises(ConfigError, match=words):
        serve(run | changes, sites, list(NAMES), "1")


def test_training_a_run_of_sites_here_is_refused_with_how_to_submit_it(run):
    with pytest.raises(ConfigError, match="weft submit"):
        weft.train(run, quiet=True)
