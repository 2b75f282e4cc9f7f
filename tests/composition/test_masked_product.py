"""Masked sums with every other part: the run without masks, within the quantisation step, or a refusal in words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import weft
from support.results import metrics, weights
from weft import registry
from weft.errors import ConfigError

MASKS = {"protection": "masks", "sample_clients": 3}
ALGORITHMS = {
    "fedavg", "fedsgd", "fedprox", "scaffold", "fedavgm", "fedadagrad", "fedyogi", "fedadam", "fednova", "feddyn",
    "fedexp", "fedcm", "fedadamw", "diloco", "ditto", "fedkseed",
}  # fmt: skip
AGGREGATIONS = {"average", "ffa", "rolora", "merge", "fedsa", "fedsb", "dual"}
ADDED: dict[str, dict[str, object]] = {"random_k": {"every": 4}, "shared_low_rank": {"rank": 2}}
"""Codecs that are linear, alike for all clients of a round."""
REFUSED = {
    **{f"fed_alg {name}": {"fed_alg": name} for name in sorted({*registry.ALGORITHMS, "local1"} - ALGORITHMS)},
    **{
        f"aggregation {name}": {"lora_aggregation": name}
        for name in sorted({*registry.LORA_AGGREGATIONS} - AGGREGATIONS)
    },
    **{f"weight {name}": {"client_weight": name} for name in ("minimax", "gain")},
    **{f"codec {name}": {"codec": name} for name in registry.CODECS if name not in ("none", *ADDED)},
    "clusters": {"cluster": 2},
    "over-selection": {"over_selection": 0.5},
    "ranks": {"client_ranks": [2, 4]},
    "layers": {"client_layers": [2, 1]},
    "norms": {"max_update_norm": 10.0},
    "shares of the mean": {"max_client_share": 0.5},
    "two clients": {"sample_clients": 2},
    "more contributors than clients": {"min_contributors": 4},
    "groups of too few": {"group_size": 2},
    "one group of too many": {"group_size": 4},
    "groups of nothing": {"protection": "none", "group_size": 3},
    "bits": {"protection_args": {"bits": 40}},
    "a sum of one": {"min_contributors": 1},
}  # fmt: skip
PROMPTS = {"use_peft": False, "endpoint": None}


def both(keys, tmp_path: Path, **changes: object):
    """Return the run without and the run with masks."""
    given = keys | {"num_rounds": 3, "eval_every": 0, "max_steps": 2, "sample_clients": 3} | changes
    plain = weft.train(given | {"output_dir": str(tmp_path / "plain")}, quiet=True)
    protect = MASKS | {key: changes[key] for key in ("group_size", "protection_args") if key in changes}
    masked = weft.train(given | protect | {"output_dir": str(tmp_path / "masked")}, quiet=True)
    return plain, masked


def assert_near(plain, masked, tolerance: float = 2e-5) -> None:
    ours, theirs = weights(masked), weights(plain)
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=tolerance)
    found, wanted = ([line for line in metrics(run) if line["event"] == "round"] for run in (masked, plain))
    for one, other in zip(found, wanted, strict=True):
        assert one["clients"] == other["clients"]
        assert "cut_values" not in one
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("fed_alg", sorted(ALGORITHMS))
def test_every_algorithm_learns_under_masks_as_without(keys, fed_alg: str, tmp_path: Path):
    steps = {"max_steps": 1} if fed_alg == "fedsgd" else {}
    assert_near(*both(keys, tmp_path, fed_alg=fed_alg, **steps))


@pytest.mark.slow
@pytest.mark.parametrize("lora", sorted(AGGREGATIONS))
def test_every_aggregation_of_sums_learns_under_masks_as_without(keys, lora: str, tmp_path: Path):
    assert_near(*both(keys, tmp_path, lora_aggregation=lora))


@pytest.mark.parametrize("error_feedback", [True, False])
@pytest.mark.parametrize("codec", ADDED)
def test_linear_codecs_are_added_up_under_masks_and_send_less(keys, codec: str, error_feedback: bool, tmp_path: Path):
    args = ADDED[codec] | {"error_feedback": error_feedback}
    plain, masked = both(keys, tmp_path, codec=codec, codec_args=args)
    assert_near(plain, masked, tolerance=1e-4)
    short = {"num_rounds": 1, "eval_every": 0, "max_steps": 2, "sample_clients": 3}
    whole = weft.train(keys | MASKS | short, quiet=True)
    ratio = metrics(masked)[0]["bytes_up"] / metrics(whole)[0]["bytes_up"]
    assert ratio < 0.7  # of so small a model, keys and counts are half of what travels


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_go_with_sums_is_refused_with_a_remedy(keys, changes: dict[str, object]):
    with pytest.raises(ConfigError, match=r"leave out|write|choose|add") as refused:
        weft.train(keys | MASKS | {"model_name_or_path": keys["model_name_or_path"]} | changes, quiet=True)
    assert "\n" not in str(refused.value)
    assert not Path(keys["output_dir"]).exists()


def test_the_refusal_of_a_codec_says_how_few_bits_are_added(keys):
    with pytest.raises(
        ConfigError, match="Int4 cannot be added up under Masks: write --codec none --protection_args b"
    ):
        weft.train(keys | MASKS | {"codec": "int4"}, quiet=True)


def test_a_run_says_once_what_is_not_hidden(keys, capsys: pytest.CaptureFixture[str]):
    weft.train(keys | MASKS | {"num_rounds": 2, "eval_every": 0, "max_steps": 1, "group_size": 3})
    said = capsys.readouterr()
    assert (said.out + said.err).count("has had no review from outside") == 1
