"""Prompts that are found without gradients, under a budget: noisy losses of candidates, noisy scores of texts."""

from __future__ import annotations

import pytest

import weft
from support.results import events, same_values, weights
from weft.config import build
from weft.errors import ConfigError
from weft.launch import compose

pytest.importorskip("dp_accounting")
COMMON = {"fed_args": {"common": True}}
CLIENT = {"privacy_unit": "client", "noise_multiplier": 1.0, "sample_clients": 3}
ROW = {"privacy_unit": "row", "noise_multiplier": 1.0, "sample_clients": 3}
COLUMN = ROW | {"privacy_unit": "instruction"}
UNITS = {"client": CLIENT | COMMON, "row": ROW, "column": COLUMN, "common": ROW | COMMON}
CANDIDATES = ["Answer in one word.", "red green blue", "Name the colour of it.", "Do nothing."]
SEARCHES: dict[str, dict[str, object]] = {
    "black_box": {"fed_alg": "fedbpt", "prompt_method": "black_box", "black_box_dim": 12, "population": 8},
    "text": {"fed_alg": "fedtext", "prompt_method": "text", "prompt_candidates": CANDIDATES, "prompt_pool": 4},
}
SEARCHES["black_box"] |= {"num_virtual_tokens": 4, "learning_rate": 1.0}
SEARCHES["text"] |= {"prompt_length": 40}


@pytest.fixture
def run(keys):
    """Returns a run of seconds with a prompt that is searched."""
    plain = {key: value for key, value in keys.items() if key != "learning_rate"}
    plain |= {"use_peft": False, "num_rounds": 2, "max_steps": 2, "batch_size": 8, "eval_every": 0, "dtype": "float32"}
    return lambda method, *changes: plain | SEARCHES[method] | {k: v for change in changes for k, v in change.items()}


def trained(keys: dict[str, object], folder: object = None):
    return weft.train(keys if folder is None else keys | {"output_dir": str(folder)}, quiet=True)


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize(
    "unit", [CLIENT | COMMON, ROW, COLUMN, ROW | COMMON], ids=["client", "row", "column", "common"]
)
def test_a_private_search_runs_spends_and_reports_nothing(run, method: str, unit):
    done = trained(run(method, unit))
    first, second = events(done)
    assert 0 < first["epsilon"] < second["epsilon"]
    assert done.summary["privacy"]["epsilon"] == second["epsilon"]
    assert done.summary["failures"] == {}
    assert not events(done, "eval")
    for line in (first, second):
        assert line["train_loss"] is None
        assert not {name for name in line if "text" in name or "loss" in name} - {"train_loss"}


@pytest.mark.parametrize("method", SEARCHES)
def test_without_noise_and_bound_it_is_the_search_with_unit_weights(run, method: str, tmp_path):
    open_ = {"privacy_unit": "client", "noise_multiplier": 0.0, "clip_norm": float("inf"), "sample_clients": 3}
    private = trained(run(method, COMMON, open_), tmp_path / "private")
    plain = trained(run(method, COMMON, {"client_weight": "uniform", "sample_clients": 3}), tmp_path / "plain")
    if method == "text":
        assert (private.path / "prompt.txt").read_text() == (plain.path / "prompt.txt").read_text()
        return
    one, two = weights(private), weights(plain)
    assert max(float((one[name].float() - two[name].float()).abs().max()) for name in one) < 1e-6
    # A control: noise makes it another search.
    other = trained(run(method, COMMON, open_, {"noise_multiplier": 5.0, "clip_norm": 1.0}), tmp_path / "noisy")
    assert not same_values(one, weights(other))


@pytest.mark.parametrize("method", SEARCHES)
def test_clients_may_add_the_noise_of_scores_in_shares(run, method: str):
    done = trained(run(method, CLIENT, COMMON, {"noise_at": "client", "min_clients": 3}))
    assert done.summary["privacy"]["epsilon"] > 0


@pytest.mark.parametrize("method", SEARCHES)
def test_a_search_of_single_updates_is_refused_with_what_makes_it_a_sum(run, method: str):
    with pytest.raises(ConfigError, match=r"looks at single updates.*write --fed_args common=true") as refused:
        compose.plan(build(run(method, CLIENT, {"model_name_or_path": "there/is/none"})))
    assert "\n" not in str(refused.value)


def test_a_common_search_lowers_the_loss(run):
    """One generation a round that all clients score: the sum of losses is all that the server has."""
    long = {"num_rounds": 8, "eval_every": 1, "sample_clients": 3}
    scores = [line["loss"] for line in events(trained(run("black_box", COMMON, long)), "eval")]
    assert min(scores[-3:]) < scores[0]
