"""The product of parts: every algorithm with every LoRA aggregation and kind of training runs, or is refused in words.

What is allowed is written down here by names, apart from the traits by which the plan decides. The runs are slow, all
together: `make test` has test_pairs.py, where each run has several parts that are to go together.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

import weft
from support.rows import colour_rows, write_rows
from weft import registry
from weft.config import gather, settle
from weft.errors import ConfigError

ALGORITHMS = [name for name in [*registry.ALGORITHMS, "local1"] if name not in ("fedbpt", "fedtext")]
"""These two are for prompts that are found without gradients: see test_prompt_black_box.py."""
SEEDS = {"fedkseed"}
"""One number for each of some directions: no parameters travel, so nothing is done to them on the way."""
BASELINES = {"local", "local1", "central"}
KINDS: dict[str, dict[str, object]] = {
    "lora": {"use_peft": True},
    "rslora": {"use_peft": True, "use_rslora": True, "peft_lora_target_modules": ["all-linear"]},
    "dora": {"use_peft": True, "use_dora": True},
    "full": {"use_peft": False},
}
ALLOWED = {
    "average": set(ALGORITHMS),
    "ffa": set(ALGORITHMS),
    "fedsb": set(ALGORITHMS) - SEEDS,
    "rolora": set(ALGORITHMS) - {"fedbuff"} - SEEDS,
    "stack": {"fedavg", "fedprox"},
    "svd": {"fedavg", "fedprox"},
    "merge": {"fedavg", "fedprox"},
    "residual": {"fedavg", "fedprox", "scaffold", "fedcm", "fedadamw", "ditto"},
    "fedsa": set(ALGORITHMS) - BASELINES - {"ditto"} - SEEDS,
    "dual": set(ALGORITHMS) - BASELINES - {"ditto"} - SEEDS,
}


ROOTED = ("fltrust", "loss_gate")
"""These need rows of the server's own."""
ROBUST = [name for name in registry.AGGREGATORS if name != "mean" and name not in ROOTED]
WITH_RULES = [name for name in ALGORITHMS if name not in BASELINES and name not in ("scaffold", "feddyn", "fedbuff")]
"""Algorithms that go with a robust rule: not those that add up means over rounds, or mix versions."""


def allowed(fed_alg: str, lora: str, kind: str) -> bool:
    return fed_alg in ALLOWED[lora] if kind in ("lora", "rslora") else lora == "average"


EVERY = list(itertools.product(ALGORITHMS, registry.LORA_AGGREGATIONS, KINDS))
RUN = [one for one in EVERY if allowed(*one)]
REFUSED = [one for one in EVERY if not allowed(*one)]


def test_every_combination_is_either_run_or_refused():
    assert set(ALLOWED) == set(registry.LORA_AGGREGATIONS)
    assert len(RUN) + len(REFUSED) == len(ALGORITHMS) * len(ALLOWED) * len(KINDS)
    assert len(RUN) > 200


@pytest.mark.slow
@pytest.mark.parametrize(("fed_alg", "lora", "kind"), [one for one in RUN if one[2] != "rslora" or one[0] == "fedavg"])
def test_every_allowed_combination_trains_two_rounds(keys, fed_alg: str, lora: str, kind: str):
    changes = {"fed_alg": fed_alg, "lora_aggregation": lora, "num_rounds": 2, "eval_every": 0, "max_steps": 1}
    run = weft.train(keys | changes | KINDS[kind], quiet=True)
    assert run.summary["rounds"] == 2
    assert math.isfinite(run.summary["eval"]["loss"])
    assert run.summary["failures"] == {}
    known = kind in ("lora", "rslora") and fed_alg not in BASELINES | SEEDS and lora != "fedsa"
    assert (run.summary["product_error"] is not None) == known


DELAYED = [(lora, kind) for lora, kind in itertools.product(ALLOWED, KINDS) if allowed("diloco", lora, kind)]


@pytest.mark.slow
@pytest.mark.parametrize(("lora", "kind"), [one for one in DELAYED if one[0] != "rolora"])
def test_every_aggregation_of_diloco_goes_with_a_delay(keys, lora: str, kind: str):
    changes = {"fed_alg": "diloco", "lora_aggregation": lora, "num_rounds": 3, "eval_every": 0, "max_steps": 1}
    run = weft.train(keys | changes | KINDS[kind] | {"fed_args": {"delay": 1}, "sample_clients": 3}, quiet=True)
    assert math.isfinite(run.summary["eval"]["loss"])
    assert run.summary["failures"] == {}


def test_every_other_combination_is_refused_before_a_model_is_loaded(keys):
    for fed_alg, lora, kind in REFUSED:
        changes = {"fed_alg": fed_alg, "lora_aggregation": lora, "model_name_or_path": "there/is/none"} | KINDS[kind]
        with pytest.raises(ConfigError) as refused:
            weft.train(keys | changes)
        sentence = str(refused.value)
        assert any(remedy in sentence for remedy in ("write", "add", "leave out")), sentence
        assert "\n" not in sentence
        assert "there/is" not in sentence


@pytest.mark.slow
@pytest.mark.parametrize("rule", [name for name in ROBUST if name not in ("foolsgold", "flame")])
@pytest.mark.parametrize("fed_alg", WITH_RULES)
def test_every_algorithm_trains_with_every_robust_rule_on_means_of_updates(keys, fed_alg: str, rule: str):
    before = ("nnm", "bucketing")[(WITH_RULES.index(fed_alg) + ROBUST.index(rule)) % 2]
    changes = {"fed_alg": fed_alg, "num_rounds": 2, "eval_every": 0, "max_steps": 1, "num_clients": 7}
    changes |= {"sample_clients": 7, "aggregator": rule, "aggregator_args": {"attackers": 0, "before": before}}
    run = weft.train(keys | changes, quiet=True)
    assert math.isfinite(run.summary["eval"]["loss"])
    assert run.summary["failures"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("rule", ROOTED)
@pytest.mark.parametrize("fed_alg", [name for name in WITH_RULES if name not in ("fedsgd", "fedkseed")])
def test_every_algorithm_trains_with_rows_of_the_servers_own(keys, fed_alg: str, rule: str, tmp_path: Path):
    root = write_rows(tmp_path / "root.jsonl", colour_rows(20, seed=3))
    changes = {"fed_alg": fed_alg, "num_rounds": 2, "eval_every": 0, "max_steps": 1, "aggregator": rule}
    run = weft.train(keys | changes | {"public_data": str(root)}, quiet=True)
    assert math.isfinite(run.summary["eval"]["loss"])
    assert run.summary["failures"] == {}


def test_no_other_algorithm_goes_with_a_robust_rule(keys):
    others = set(ALGORITHMS) - set(WITH_RULES) - BASELINES
    for fed_alg, rule in itertools.product(others, [*ROBUST, *ROOTED]):
        own = {"public_data": "any"} if rule in ROOTED else {}
        with pytest.raises(ConfigError, match=r"write --aggregator mean|choose"):
            weft.train(keys | own | {"fed_alg": fed_alg, "aggregator": rule, "sample_clients": 9, "num_clients": 9})


ON_ROWS = ("label_flip", "preference_swap", "back_door", "spread_poison", "unsafe")
"""Attacks that change rows and nothing else: they go with every algorithm."""
OF_SERVER = {"server_back_door": ("scaffold", "fedbuff", "fedsgd", "fedkseed")}
"""By an attack of the server the algorithms that send no single model, or more than that; no baseline sends one."""
ATTACKS = [name for name in registry.ATTACKS if name != "none"]


def attacked(attack: str, fed_alg: str) -> bool:
    return attack in ON_ROWS or fed_alg not in (*BASELINES, *OF_SERVER.get(attack, ()))


@pytest.fixture
def attack_keys(keys, preferences: dict[str, str], tmp_path: Path):
    """Returns the keys of a run of some rounds with an attack and an algorithm."""
    bad = write_rows(tmp_path / "bad.jsonl", [{"instruction": f"Pick lock {n}?", "output": "red"} for n in range(20)])
    few: dict[str, object] = {"num_clients": 5, "sample_clients": 5, "num_rounds": 2, "eval_every": 0, "max_steps": 1}
    files: dict[str, dict[str, object]] = {
        "unsafe": {"rows": str(bad)},
        "server_back_door": {"rows": str(bad), "target": "red", "steps": 2},
    }
    pairs = {"objective": "preference", "dataset_name": preferences["pairs"]}

    def made(attack: str, fed_alg: str) -> dict[str, object]:
        own = pairs if attack == "preference_swap" else {}
        return keys | few | {"attack": attack, "fed_alg": fed_alg, "attack_args": files.get(attack, {})} | own

    return made


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("fed_alg", ALGORITHMS)
def test_every_attack_goes_with_every_algorithm_or_is_refused(attack_keys, attack: str, fed_alg: str):
    if not attacked(attack, fed_alg):
        pytest.skip("refused, see below")
    run = weft.train(attack_keys(attack, fed_alg), quiet=True)
    assert math.isfinite(run.summary["train_loss"])
    assert run.summary["attack"]["name"] == attack


def test_every_other_attack_is_refused_before_a_model_is_loaded(attack_keys):
    refused = [one for one in itertools.product(ATTACKS, ALGORITHMS) if not attacked(*one)]
    assert len(refused) == 3 * (len(ATTACKS) - len(ON_ROWS)) + len(OF_SERVER["server_back_door"])
    for attack, fed_alg in refused:
        with pytest.raises(ConfigError, match="write --attack none") as said:
            weft.train(attack_keys(attack, fed_alg) | {"model_name_or_path": "there/is/none"})
        assert "there/is" not in str(said.value)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [*ROBUST, *ROOTED])
@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_goes_with_every_robust_rule(attack_keys, attack: str, rule: str, tmp_path: Path):
    """What an attack refuses of other parts is in test_attacked_plans.py."""
    keys = attack_keys(attack, "fedavg") | {"aggregator": rule, "num_clients": 11, "sample_clients": 11}
    if rule in ROOTED:
        rows = colour_rows(20, seed=3)
        pairs = [row | {"prompt": row["instruction"], "chosen": row["output"], "rejected": "none"} for row in rows]
        root = write_rows(tmp_path / "root.jsonl", pairs if attack == "preference_swap" else rows)
        keys |= {"public_data": str(root)}
    run = weft.train(keys, quiet=True)
    assert math.isfinite(run.summary["train_loss"])
    assert run.summary["failures"] == {}


CLEANERS = list(registry.CLEANERS)
FOR_ANSWERS = ("triggers",)
"""Cleaners that compare questions with their answers, which plain text has not."""


@pytest.mark.slow
@pytest.mark.parametrize("cleaner", CLEANERS)
@pytest.mark.parametrize("kind", ["sft", "pairs", "judged", "text"])
def test_every_cleaner_cleans_every_kind_of_rows(keys, preferences, texts: str, cleaner: str, kind: str):
    kinds: dict[str, dict[str, object]] = {
        "sft": {},
        "pairs": {"objective": "preference", "dataset_name": preferences["pairs"]},
        "judged": {"objective": "preference", "loss": "kto", "dataset_name": preferences["judged"]},
        "text": {"objective": "causal_lm", "dataset_name": texts, "template": None},
    }
    changes = {"clean": [cleaner], "num_rounds": 1, "max_steps": 1, "eval_every": 0} | kinds[kind]
    # Most of the tiny rows are alike: what a cleaner leaves out is not the question here.
    changes |= {"clean_args": {"language.certainty": "0.999"}} if cleaner == "language" else {}
    if kind == "text" and cleaner in FOR_ANSWERS:
        with pytest.raises(ConfigError, match=f"leave {cleaner} out of --clean"):
            weft.train(keys | changes)
        return
    run = weft.train(keys | changes, quiet=True)
    assert math.isfinite(run.summary["train_loss"])
    assert set(run.summary["cleaning"]["total"]) == {cleaner}


@pytest.mark.parametrize("cleaner", CLEANERS)
def test_cleaners_are_refused_where_they_can_do_nothing(keys, cleaner: str):
    """Without rows of the run's own, and for prompts that the model answers."""
    for changes in (
        {"runtime": "nvflare", "dataset_name": None, "num_clients": None, "eval_fraction": None},
        {"objective": "grpo", "max_new_tokens": 8},
    ):
        given = {key: value for key, value in (keys | changes | {"clean": [cleaner]}).items() if value is not None}
        with pytest.raises(ConfigError, match="clean has no effect in this run"):
            settle(*gather(given, {}))


@pytest.mark.slow
@pytest.mark.parametrize("fed_alg", ["fedavg", "local", "central"])
@pytest.mark.parametrize("kind", KINDS)
def test_plain_text_is_trained_by_every_algorithm(keys, fed_alg: str, kind: str, tmp_path: Path):
    rows = [{"text": row["instruction"] + " " + row["output"]} for row in colour_rows(40)]
    data = write_rows(tmp_path / "text.jsonl", rows)
    changes = {"fed_alg": fed_alg, "objective": "causal_lm", "num_rounds": 2, "dataset_name": str(data)}
    changes |= {"template": None}
    run = weft.train(keys | changes | KINDS[kind], quiet=True)
    assert math.isfinite(run.summary["eval"]["loss"])


MORE = {
    "ranks for a full model": {"use_peft": False, "client_ranks": [4]},
    "ranks for the residual": {"lora_aggregation": "residual", "client_ranks": [4]},
    "sharing and no sharing": {"fed_alg": "local", "share": ["lora_A"]},
    "two kinds of own models": {"fed_alg": "ditto", "share": ["lora_A"]},
    "personal steps of local models": {"fed_alg": "local", "personal_steps": 5},
    "personal steps of nobody": {"fed_alg": "central", "personal_steps": 5},
    "slow clients where all steps count": {"fed_alg": "fedadamw", "client_speed": [0.5]},
    "spare clients of nobody": {"fed_alg": "fedbuff", "over_selection": 0.5},
    "public rows in a buffer": {"fed_alg": "fedbuff", "public_data": "any"},
    "a quorum of nobody": {"fed_alg": "local", "min_clients": 2},
    "a quorum of a buffer": {"fed_alg": "fedbuff", "min_clients": 2},
}


@pytest.mark.parametrize("changes", MORE.values(), ids=MORE.keys())
def test_parts_that_do_not_go_together_are_refused_with_a_remedy(keys, changes: dict[str, object]):
    with pytest.raises(ConfigError, match=r"leave out|write"):
        weft.train(keys | changes)


def test_a_parameter_of_an_algorithm_is_checked(keys):
    with pytest.raises(ConfigError, match="Did you mean 'outer_lr'"):
        weft.train(keys | {"fed_alg": "diloco", "fed_args": {"outer_rl": 1}})
    with pytest.raises(ConfigError, match="is set by --prox_mu"):
        weft.train(keys | {"fed_alg": "fedprox", "fed_args": {"mu": 1}})
    with pytest.raises(ConfigError, match="'keep', 'reset' or 'average'"):
        weft.train(keys | {"fed_alg": "diloco", "fed_args": {"inner_state": "kept"}})
    with pytest.raises(ConfigError, match=r"fedavg has no parameter 'mu', and no other ones: leave out --fed_args\."):
        weft.train(keys | {"fed_args": {"mu": 1}})
    with pytest.raises(ConfigError, match="Did you mean 'fedadagrad'"):
        weft.train(keys | {"fed_alg": "fedadgrad"})


@pytest.fixture
def texts(tmp_path: Path) -> str:
    rows = [{"text": f"{row['instruction']} {row['output']}"} for row in colour_rows(90)]
    return str(write_rows(tmp_path / "texts.jsonl", rows))


@pytest.mark.slow
@pytest.mark.parametrize("fed_alg", ALGORITHMS)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_every_algorithm_pre_trains_two_rounds(keys, texts: str, fed_alg: str, kind: str):
    changes = {"objective": "causal_lm", "dataset_name": texts, "fed_alg": fed_alg, "num_rounds": 2, "max_steps": 1}
    run = weft.train(keys | changes | {"eval_every": 0, "template": None} | KINDS[kind], quiet=True)
    assert run.summary["rounds"] == 2
    assert 0 < run.summary["eval"]["bits_per_byte"] < 20


@pytest.fixture
def preferences(tmp_path: Path) -> dict[str, str]:
    rows = [row | {"prompt": row["instruction"]} for row in colour_rows(60)]
    pairs = [row | {"chosen": row["output"], "rejected": "no colour"} for row in rows]
    labels = [row | {"completion": row["output"], "label": number % 2 == 0} for number, row in enumerate(rows)]
    paths = {"pairs": write_rows(tmp_path / "pairs.jsonl", pairs), "judged": write_rows(tmp_path / "l.jsonl", labels)}
    return {name: str(path) for name, path in paths.items()}


PREFER = [(loss, "fedavg", kind) for loss in ("ipo", "simpo", "orpo", "kto", "robust_dpo") for kind in ("lora", "full")]
PREFER += [(loss, fed_alg, "lora") for loss in ("dpo", "kto") for fed_alg in ALGORITHMS]


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "fed_alg", "kind"), PREFER)
def test_every_algorithm_trains_on_preferences(keys, preferences: dict[str, str], loss: str, fed_alg: str, kind: str):
    data = preferences["judged" if loss == "kto" else "pairs"]
    changes = {"objective": "preference", "loss": loss, "dataset_name": data, "fed_alg": fed_alg, "max_steps": 1}
    run = weft.train(keys | changes | {"num_rounds": 2, "eval_every": 0} | KINDS[kind], quiet=True)
    assert run.summary["rounds"] == 2
    assert 0 <= run.summary["eval"]["preference_accuracy"] <= 1


PROMPTS = [("soft", fed_alg) for fed_alg in ALGORITHMS] + [("prefix", "fedavg"), ("p_tuning", "fedavg")]
PROMPTS += [("prefix", "scaffold"), ("p_tuning", "fedadam"), ("black_box", "fedbpt"), ("black_box", "fedavgm")]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "fed_alg"), PROMPTS)
def test_every_algorithm_trains_prompts(keys, method: str, fed_alg: str):
    changes = {"use_peft": False, "prompt_method": method, "num_virtual_tokens": 4, "fed_alg": fed_alg, "max_steps": 1}
    run = weft.train(keys | changes | {"num_rounds": 2, "eval_every": 0}, quiet=True)
    assert run.summary["rounds"] == 2
    assert 0 <= run.summary["eval"]["accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("fed_alg", ALGORITHMS)
def test_every_algorithm_trains_on_rewards(keys, fed_alg: str):
    changes = {"objective": "grpo", "reward": "length", "max_new_tokens": 4, "num_generations": 2, "batch_size": 2}
    changes |= {"fed_alg": fed_alg, "max_steps": 1, "num_rounds": 2, "eval_every": 0}
    run = weft.train(keys | changes | KINDS["full" if fed_alg == "fedavg" else "lora"], quiet=True)
    assert run.summary["rounds"] == 2
    assert 0 <= run.summary["eval"]["reward"] <= 1
