"""Sealed sums with every other part: the run without them, within the quantisation step, or a refusal in words."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import weft
from support.results import metrics, weights
from weft import registry
from weft.config import build
from weft.errors import ConfigError
from weft.launch.dry_run import describe

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
OF_MASKS = {"bits"}
"""Refusals of what masks alone have."""
ENCRYPTED = ("fedavg", "scaffold", "fedadam", "diloco", "fedkseed")
"""Algorithms that run encrypted here: those of one kind see the same sums."""
HE = pytest.mark.skipif(importlib.util.find_spec("tenseal") is None, reason="the extra he is not installed")


def both(keys, tmp_path: Path, protection: str = "masks", **changes: object):
    """Return the run without and the run with a protection."""
    given = keys | {"num_rounds": 3, "eval_every": 0, "max_steps": 2, "sample_clients": 3} | changes
    open_ = {key: value for key, value in given.items() if key not in ("group_size", "protection_args", "encrypt")}
    plain = weft.train(open_ | {"output_dir": str(tmp_path / "plain")}, quiet=True)
    protect = MASKS | {
        key: changes[key] for key in ("group_size", "protection_args", "encrypt", "sample_clients") if key in changes
    }
    protect |= {"protection": protection}
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


@HE
@pytest.mark.parametrize("codec", ADDED)
def test_linear_codecs_are_added_up_under_encryption(keys, codec: str, tmp_path: Path):
    assert_near(*both(keys, tmp_path, "ckks", codec=codec, codec_args=ADDED[codec]), tolerance=2e-6)


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


@HE
@pytest.mark.slow
@pytest.mark.parametrize("fed_alg", ENCRYPTED)
def test_algorithms_learn_under_encryption_as_without(keys, fed_alg: str, tmp_path: Path):
    assert_near(*both(keys, tmp_path, "ckks", fed_alg=fed_alg), tolerance=2e-6)


@HE
def test_an_encrypted_run_is_the_plain_one_and_ends_to_the_same_bit_each_time(keys, tmp_path: Path):
    """Ciphertexts are drawn anew, and what is opened does not depend on them."""
    plain, one = both(keys, tmp_path / "one", "ckks")
    _, other = both(keys, tmp_path / "other", "ckks")
    assert_near(plain, one, tolerance=2e-6)
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    key = one.path / "clients.key"
    assert key.stat().st_mode & 0o077 == 0
    assert key.read_bytes() != (other.path / "clients.key").read_bytes()
    # A run that is begun anew has a new key: under the old one, what crossed before could be played again.
    before, again = key.read_bytes(), {"num_rounds": 1, "eval_every": 0, "max_steps": 1, "protection": "ckks"}
    weft.train(keys | MASKS | again | {"output_dir": str(one.path)}, overwrite=True, quiet=True)
    assert key.read_bytes() != before


@HE
@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"group_size": 3, "num_clients": 6, "sample_clients": 6}, {"encrypt": ["lora_B"]}])
def test_groups_and_chosen_tensors_are_the_plain_run_too(keys, changes: dict[str, object], tmp_path: Path):
    if "encrypt" in changes:
        assert_near(*both(keys, tmp_path, "ckks", **changes), tolerance=2e-6)
        return
    plain, sealed = both(keys, tmp_path, "ckks", **changes)
    for name, value in weights(sealed).items():
        torch.testing.assert_close(value, weights(plain)[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "protection"),
    [
        *((name, "masks") for name in REFUSED),
        *(pytest.param(name, "ckks", marks=HE) for name in REFUSED if name not in OF_MASKS),
    ],
)
def test_what_cannot_go_with_sums_is_refused_with_a_remedy(keys, name: str, protection: str):
    changes = {"protection": protection} | REFUSED[name]
    with pytest.raises(ConfigError, match=r"leave out|write|choose|add") as refused:
        weft.train(keys | MASKS | {"model_name_or_path": keys["model_name_or_path"]} | changes, quiet=True)
    assert "\n" not in str(refused.value)
    assert not Path(keys["output_dir"]).exists()


def test_the_refusal_of_a_codec_says_how_few_bits_are_added(keys):
    few, linear = "write --codec none --protection_args bits=9", r"\(--codec none, random_k or shared_low_rank\)"
    with pytest.raises(ConfigError, match=f"Int4 cannot be added up under Masks: {few}, or choose .* {linear}"):
        weft.train(keys | MASKS | {"codec": "int4"}, quiet=True)


@HE
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protection": "masks", "encrypt": ["lora_B"]}, "encrypt"),
        ({"protection": "ckks", "encrypt": ["nothing_like_it"]}, "fits no shared tensor, such as"),
    ],
)
def test_tensors_that_cannot_be_chosen_are_refused(keys, changes: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        weft.train(keys | MASKS | changes, quiet=True)
    assert not Path(keys["output_dir"]).exists()


@HE
def test_an_encrypted_run_says_who_could_read_everybody(keys, capsys: pytest.CaptureFixture[str]):
    own = {"protection": "ckks", "encrypt": ["lora_B"], "num_rounds": 1, "eval_every": 0, "max_steps": 1}
    weft.train(keys | MASKS | own)
    said = capsys.readouterr()
    text = " ".join((said.out + said.err).split())
    assert text.count("one client and the server together could read every update") == 1
    assert "Only tensors that match lora_B are encrypted" in text


def test_a_run_says_once_what_is_not_hidden(keys, capsys: pytest.CaptureFixture[str]):
    weft.train(keys | MASKS | {"num_rounds": 2, "eval_every": 0, "max_steps": 1, "group_size": 3})
    said = capsys.readouterr()
    assert (said.out + said.err).count("has had no review from outside") == 1


SEALED = {
    "masks": {"protection": "masks"},
    "masks of few bits": {"protection": "masks", "protection_args": {"bits": 9}},
    "masks in groups": {"protection": "masks", "group_size": 3, "num_clients": 6, "sample_clients": 6},
    "masks over control variates": {"protection": "masks", "fed_alg": "scaffold"},
    "masks over moments": {"protection": "masks", "fed_alg": "fedadamw"},
    "masks of few bits over moments": {"protection": "masks", "protection_args": {"bits": 9}, "fed_alg": "fedadamw"},
    "ckks": {"protection": "ckks"},
    "a part under ckks": {"protection": "ckks", "encrypt": ["lora_B"]},
    "all parameters under ckks": {"protection": "ckks", "use_peft": False},
}


@pytest.mark.parametrize("changes", [pytest.param(one, marks=HE, id=name) for name, one in SEALED.items()])
def test_the_bytes_of_a_sealed_run_are_known_before_it_runs(keys, changes: dict[str, object]):
    """To two per cent; a round has two steps, so that all tensors move in the first."""
    given = keys | {"num_clients": 4, "sample_clients": 4, "num_rounds": 3, "max_steps": 2, "eval_every": 0} | changes
    run = weft.train(given, quiet=True)
    text = describe(build(given))
    (found,) = re.findall(r"^the run +([\d.]+) (\w+) up\+down", text, re.MULTILINE)
    sent = run.summary["bytes_up"] + run.summary["bytes_down"]
    assert float(found[0]) * {"kB": 1e3, "MB": 1e6}[found[1]] == pytest.approx(sent, rel=0.02)
    (sealed,) = re.findall(r"^sealed +(.*)$", text, re.MULTILINE)
    if changes["protection"] == "ckks":
        assert re.search(r"Encryption takes about [\d.e-]+ s of one core per client and round", sealed)
        assert "All clients hold one key and the server has none: one client and the server together" in sealed
    if "encrypt" in changes:
        assert "% of the numbers are encrypted" in sealed
        assert "the server sees all others of every client" in sealed
