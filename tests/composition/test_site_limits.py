"""What a run may ask of a site: numbers, files, cohorts and names that its policy allows, and no more."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import get_args

import pytest
import yaml

from support.fake_sites import NAMES, FakeSites
from weft import kinds
from weft.config import RunConfig, build
from weft.errors import ConfigError
from weft.sites.agreement import own_config, refusal
from weft.sites.policy import SitePolicy, read_policy
from weft.sites.run_keys import FROM_RUN
from weft.sites.run_limits import MOST
from weft.sites.server import serve

ELSEWHERE = {
    "num_rounds": "accept: max_rounds and max_hours limit it",
    "max_steps": "accept: max_steps and max_hours limit it",
    "max_attempts": "weft.sites.bounds takes a hundred at most",
    "client_ranks": "none is above peft_lora_r",
    "client_layers": "none is above the layers of the model",
    "personal_steps": "a run of sites has none",
    "client_speed": "a run of sites has none",
    "dataset_sample": "a site has the rows that it has",
    "eval_rows": "a site has the rows that it has",
    "num_clients": "only the server uses it",
    "sample_clients": "only the server uses it",
    "min_clients": "the server uses it; as the number of shares of noise it is at most a round's clients",
    "min_contributors": "a sum has no more than a round's clients",
    "group_size": "a group has no more than a round's clients",
    "max_rows_per_unit": "a site has the rows that it has",
    "over_selection": "only the server uses it",
    "statistics_noise": "a site adds the noise that its policy names",
}
FACTORS = """
    adversarial_radius
    int8_threshold peft_lora_alpha peft_lora_dropout lora_merge_every public_share prox_mu fedopt_tau fedopt_eta
    fedopt_beta1 fedopt_beta2 dpo_beta label_smoothing simpo_gamma reward_weights reward_length temperature top_p
    grpo_clip grpo_kl target_epsilon target_delta noise_multiplier clip_norm
    fim_spm_share mixture_temperature mixture_strength
    learning_rate decay_ratio warmup_steps warmup_ratio min_learning_rate weight_decay max_grad_norm adam_beta1
    adam_beta2 adam_epsilon muon_momentum eval_fraction eval_every seed
""".split()
"""Numbers that work is computed with, and that make none."""
FREE_ARGS = {
    "fed_args.server_lr", "fed_args.alpha", "fed_args.epsilon", "fed_args.outer_lr", "fed_args.momentum",
    "fed_args.outer_warmup", "fed_args.outer_decay", "fed_args.delay",
    "fed_args.strength", "fed_args.buffer_size", "fed_args.staleness_power", "fed_args.max_staleness",
    "objective_args.step", "privacy_args.initial", "privacy_args.quantile", "privacy_args.rate",
    "protection_args.bits", "protection_args.bound", "protection_args.neighbours",
    *(f"codec{way}_args.{name}" for way in ("", "_down") for name in ("block", "keep", "chunk", "momentum", "every")),
    *(
        f"aggregator_args.{name}"
        for name in "attackers smoothing step power iterations radius bucket noise keep".split()
    ),
}  # fmt: skip
"""The same among the parameters of parts. Those of fedbuff and of aggregators are the server's; each party's model sets
`step` of objectives. The parts themselves limit blocks, chunks and bits."""


NUMBERS = ("int", "float", "int | None", "float | None")


def numeric(key: str) -> bool:
    annotation = RunConfig.model_fields[key].annotation
    words = str(annotation)
    return (
        annotation in (int, float)
        or any(word in words for word in ("int |", "float |", "[int]", "[float]"))
        or any(kind in (int, float) for kind in get_args(annotation))
    )


def test_every_number_that_a_site_takes_is_limited_or_needs_no_limit():
    """A new key is put into weft.sites.run_limits.MOST, or here with its reason."""
    known = [*(key for key in MOST if "." not in key), *ELSEWHERE, *FACTORS]
    numbers = {key for key in FROM_RUN if numeric(key)}
    assert {"peft_lora_r", "learning_rate", "client_ranks", "eval_rows", "fedopt_tau"} <= numbers
    assert sorted(known) == sorted(numbers)


def test_every_number_of_a_part_is_limited_or_needs_no_limit():
    found = set()
    for key, kind in kinds.KINDS.items():
        for name in kind.table if key in FROM_RUN else ():
            fields = dataclasses.fields(kinds.load_part(key, name))
            numbers = [field.name for field in fields if field.type in NUMBERS and "key" not in field.metadata]
            found |= {f"{kind.args}.{number}" for number in numbers}
    assert found == {key for key in MOST if "." in key} | FREE_ARGS


@pytest.fixture
def policy(sites: FakeSites) -> SitePolicy:
    return sites.policies["hospital_a"]


def with_rules(policy: SitePolicy, **rules: object) -> SitePolicy:
    accept = type(policy.accept).model_validate(policy.accept.model_dump() | rules)
    return policy.model_copy(update={"accept": accept})


GRPO = {"objective": "grpo", "seq_length": 100_000}
NEEDS: dict[str, dict[str, object]] = {
    "max_new_tokens": GRPO,
    "prompt_length": {"prompt_method": "text", "fed_alg": "fedtext", "use_peft": False},
    "num_virtual_tokens": {"prompt_method": "soft", "use_peft": False, "seq_length": 131_072},
    "private_tokens": {"prompt_method": "soft", "use_peft": False, "seq_length": 131_072},
    "fed_args.seeds": {"fed_alg": "fedkseed"},
    "fed_args.fragments": {"fed_alg": "diloco"},
}


@pytest.mark.parametrize("key", MOST)
def test_more_than_the_most_is_refused_and_the_most_is_not(run, policy: SitePolicy, key: str):
    outer, _, inner = key.partition(".")

    def answer(amount: float, policy: SitePolicy = policy) -> str | None:
        keys = run | NEEDS.get(key, {}) | {outer: {inner: amount} if inner else amount}
        return refusal(policy, build(keys), 3)

    assert answer(MOST[key]) is None
    said = str(answer(MOST[key] + 1))
    assert said == f"the run asks for {key} {MOST[key] + 1:g}, and this site accepts {MOST[key]:g} at most"
    assert answer(MOST[key] + 1, with_rules(policy, limits={key: MOST[key] + 1})) is None
    assert "at most" in str(answer(MOST[key], with_rules(policy, limits={key: MOST[key] - 1})))


def test_a_number_that_is_a_text_and_one_that_is_none_are_limited_too(run, policy: SitePolicy):
    for value in ("99999999", "1e99", "nan", "many", [3]):
        config = build(run | {"fed_alg": "fedkseed", "fed_args": {"seeds": value}})
        assert "fed_args.seeds" in str(refusal(policy, config, 3)), value
    texts = build(run | {"prompt_candidates": ["x" * 1000] * 1001})
    assert "prompt_candidates has 1001000 characters" in str(refusal(policy, texts, 3))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("protection: [nonne]", "did you mean 'none'"),
        ("privacy: [nonee]", "did you mean 'none'"),
        ("report: [lss, perplexity]", "no metric 'lss': did you mean 'loss"),
        ("report: [macro_f2]", "did you mean 'macro_f1'"),
        ("limits: {peft_lora_rank: 9}", "did you mean 'peft_lora_r'"),
        ("limits: {peft_lora_r: much}", "valid number"),
    ],
)
def test_typing_errors_of_the_other_lists_are_refused(sites: FakeSites, tmp_path: Path, line: str, words: str):
    file = tmp_path / "sites" / "hospital_a" / "site.yaml"
    file.write_text(f"data: rows.jsonl\naccept:\n  models: [a]\n  {line}\n")
    with pytest.raises(ConfigError, match=words):
        read_policy(file)
    file.write_text("data: rows.jsonl\naccept: {models: [a], report: [loss, confusion, macro_f1, own_metric]}\n")
    assert read_policy(file).accept.report


ALONE = {
    "clusters": ({"cluster": 2}, "one of several models (cluster)"),
    "layers": ({"client_layers": [2, 1]}, "different layers (client_layers)"),
    "ranks": ({"client_ranks": [2, 8]}, "different ranks (client_ranks)"),
    "no waiting": ({"fed_alg": "fedbuff"}, "without waiting for a cohort"),
    "a cohort of one": ({"sample_clients": 1}, "a round has 1 clients"),
}


@pytest.mark.parametrize("name", ALONE)
def test_a_site_that_asks_for_company_refuses_runs_that_part_it(run, sites: FakeSites, name: str):
    """The server says that a round has three clients; what a site trains alone would be its own update all the same."""
    changes, words = ALONE[name]
    request = {"run": run | changes, "id": "run", "index": 0, "clients": 3, "base": "00"}

    def answer() -> str:
        return str(json.loads(sites.site_clients["hospital_a"].work(json.dumps(request).encode()))["refused"])

    assert words not in answer()
    sites.policies["hospital_a"] = with_rules(sites.policies["hospital_a"], min_clients=2)
    sites.begin("hospital_a")
    assert words in answer()


def test_a_refusal_names_no_model_or_tokenizer_of_the_site(run, policy: SitePolicy):
    own = with_rules(policy, models={"mine": "/srv/models/secret"}, tokenizers=["/srv/tokenizer"], from_scratch=True)
    for changes in ({}, {"tokenizer": "x", "size": "5m", "use_peft": False}):
        said = str(refusal(own, build(run | changes), 3))
        assert "that this site accepts" in said
        assert not any(word in said for word in ("mine", "/srv", "secret"))


def test_a_site_uses_the_threads_of_its_policy_alone(run, policy: SitePolicy):
    assert own_config(policy, run | {"threads": 64}, "a")["threads"] == 1
    assert own_config(policy.model_copy(update={"threads": None}), run | {"threads": 64}, "a")["threads"] is None


def test_the_model_behind_a_sites_endpoint_is_one_that_it_accepts(run, policy: SitePolicy):
    words = {"prompt_method": "text", "fed_alg": "fedtext", "use_peft": False, "endpoint": "http://the.server/v1"}
    there = policy.model_copy(update={"endpoint": "http://127.0.0.1:9/v1"})
    assert refusal(there, build(run | words), 3) is None
    assert "has none" in str(refusal(policy, build(run | words), 3))
    dear = build(run | words | {"endpoint_model": "dear"})
    assert "the model 'dear' is not among the models" in str(refusal(there, dear, 3))
    assert refusal(with_rules(there, models=[run["model_name_or_path"], "dear"]), dear, 3) is None
    assert own_config(there, run | words, "a")["endpoint"] == "http://127.0.0.1:9/v1"


def test_a_site_looks_for_no_file_that_a_run_names(run, sites: FakeSites, tmp_path: Path):
    """Not even whether it is there: the answers to two handshakes would tell a server what files a site has."""
    (tmp_path / "there.jinja").write_text("{{ messages }}")
    answers = set()
    for name in ("there.jinja", "nowhere.jinja"):
        keys = run | {"prompt_template": str(tmp_path / name), "template": "auto"}
        request = {"run": keys, "id": "run", "index": 0, "clients": 3, "base": "00"}
        answers.add(sites.site_clients["hospital_a"].work(json.dumps(request).encode()))
    assert answers == {b'{"refused": "the base model here is not the server\'s: its weights have another hash"}'}


def test_the_sites_of_weft_up_accept_what_its_run_asks_for(run, tmp_path: Path):
    """The run and the sites are one person's."""
    from weft.sites.local_federation import _write_policies

    own = {key: value for key, value in run.items() if key not in ("sites", "runtime")}
    (tmp_path / "rows.jsonl").write_text("{}\n")
    words = {"prompt_method": "text", "fed_alg": "fedtext", "use_peft": False, "endpoint": "http://127.0.0.1:9/v1"}
    asked = own | words | {"endpoint_model": "large", "batch_size": 5000}
    asked["clients"] = {"a": str(tmp_path / "rows.jsonl")}
    made = read_policy(_write_policies(build(asked), tmp_path / "up", ["a"])["a"])
    assert refusal(made, build(run | words | {"endpoint_model": "large", "batch_size": 5000}), 3) is None
    assert made.endpoint == words["endpoint"]
    assert "at most" in str(refusal(made, build(run | words | {"batch_size": 5001}), 3))


SLOW = "(a+)+$"
"""On a name of thirty a and a dot it takes hours."""


def test_regular_expressions_of_a_run_do_not_run_at_a_site(run, sites: FakeSites):
    begin = time.monotonic()
    request = {"run": run | {"peft_lora_target_modules": [SLOW]}, "id": "run", "index": 0, "clients": 3, "base": "00"}
    said = json.loads(sites.site_clients["hospital_a"].work(json.dumps(request).encode()))
    assert "take no regular expressions" in said["refused"]
    with pytest.raises(ConfigError, match="take no regular expressions"):
        serve(run | {"peft_lora_target_modules": [SLOW]}, sites, list(NAMES), "1")
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("objective", ["sft", "grpo", "preference", "causal_lm"])
def test_a_reward_in_a_file_is_refused_with_every_objective(run, sites: FakeSites, objective: str):
    """Some ignore rewards, and none may make a site run code."""
    keys = run | {"objective": objective, "reward": ["/tmp/mine.py:reward"], "max_new_tokens": 4}
    if objective == "causal_lm":
        keys["use_peft"] = False
    request = {"run": keys, "id": "run", "index": 0, "clients": 3, "base": "00"}
    said = json.loads(sites.site_clients["hospital_a"].work(json.dumps(request).encode()))
    assert "no code travels" in said["refused"]


def test_limits_stand_in_site_yaml(sites: FakeSites, run, tmp_path: Path):
    """The whole way: a run with batches of 2000 rows is refused by two sites and trained by the one that allows it."""
    file = tmp_path / "sites" / "hospital_b" / "site.yaml"
    policy = yaml.safe_load(file.read_text())
    policy["accept"]["limits"] = {"batch_size": 2000}
    file.write_text(yaml.safe_dump(policy))
    sites.policies["hospital_b"] = read_policy(file)
    sites.begin("hospital_b")
    # A step of 2,000 rows takes seconds where other processes have the cores.
    own = {"batch_size": 2000, "num_rounds": 1, "max_steps": 1, "silence_timeout": 60.0}
    done = serve(run | own, sites, list(NAMES), "1")
    assert done.summary["clients"].keys() == {"hospital_b"}
