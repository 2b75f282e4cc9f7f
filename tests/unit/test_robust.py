"""Robust rules against byzfl's, and what they promise: equivariance, a bound by honest updates alone, no overflow."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from support.paths import ROOT
from weft import registry
from weft.aggregation.flame import largest_group
from weft.aggregation.foolsgold import FoolsGold
from weft.aggregation.robust import buckets
from weft.core.exchange import Aggregator
from weft.core.gram import Gram, Rows
from weft.core.party import Gathering, Party
from weft.core.secret import Secret
from weft.core.types import DELTA, Total, Update
from weft.errors import ConfigError

BYZFL = json.loads((ROOT / "tests" / "oracles" / "byzfl.json").read_text(encoding="utf-8"))
RULES = ("median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median", "centered_clipping")
RULES += ("norm_clipping", "sign_vote")
SEEING = ("foolsgold", "flame")
"""These look at directions alone."""
NAMES = ("w", "layers.0.b")


def rule_of(name: str, **parameters: Any) -> Aggregator:
    return registry.load(registry.AGGREGATORS, name, "aggregator")(**parameters)


def updates_of(vectors: np.ndarray, dtype: torch.dtype = torch.float64) -> list[Update]:
    """One update a row, its numbers in two tensors, with weights that must not matter."""
    cut = vectors.shape[1] // 2
    parts = [torch.tensor(vectors[:, :cut], dtype=dtype), torch.tensor(vectors[:, cut:], dtype=dtype)[:, None]]
    return [
        Update(f"c{i}", 0, 0, {DELTA: {name: part[i] for name, part in zip(NAMES, parts, strict=True)}}, 1.0 + i)
        for i in range(len(vectors))
    ]


def vector(total: Total) -> np.ndarray:
    return torch.cat([total.streams[DELTA][name].reshape(-1) for name in NAMES]).double().numpy()


def combined(name: str, vectors: np.ndarray, **parameters: Any) -> np.ndarray:
    return vector(rule_of(name, **parameters).combine(updates_of(vectors)))


@pytest.mark.parametrize("case", BYZFL, ids=lambda case: case["name"])
@pytest.mark.parametrize("before", ["none", "nnm"])
@pytest.mark.parametrize("name", [one for one in BYZFL[0]["after"] if "nnm" not in one])
def test_rules_are_those_of_byzfl(case: dict[str, Any], name: str, before: str):
    fixed = {"radius": 2.0} if "clipping" in name else {}
    found = combined(name, np.array(case["vectors"]), attackers=case["f"], before=before, **fixed)
    expected = case["after"][name if before == "none" else f"nnm {name}"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", BYZFL, ids=lambda case: case["name"])
def test_buckets_are_those_of_byzfl(case: dict[str, Any]):
    """The last bucket, which may be smaller, counts as the others do."""
    made = buckets(np.array(case["buckets"]["order"]), case["buckets"]["size"]).numpy() @ np.array(case["vectors"])
    np.testing.assert_allclose(made, case["buckets"]["means"], rtol=1e-5, atol=1e-9)
    assert len(made) == -(-len(case["vectors"]) // case["buckets"]["size"])


ROWS = arrays(np.float64, (11, 6), elements=st.floats(-100, 100, width=32))
MOVES = arrays(np.float64, (6,), elements=st.floats(-100, 100, width=32))
COMMON = settings(max_examples=25, deadline=None)


def distinct(rows: np.ndarray) -> np.ndarray:
    """The rows with a little added that breaks ties, which an order of the clients would decide."""
    return rows + np.random.default_rng(1).normal(0, 1, rows.shape)


CHOICES = {"krum": lambda n, f: (1, 1), "multi_krum": lambda n, f: (1, n - f), "bulyan": lambda n, f: (n - 2 * f, 1)}
"""How many times each rule chooses by distances, and how many rows at a time."""


def tied(name: str, rows: np.ndarray, attackers: int) -> bool:
    """Whether after nnm unlike rows have one score where the rule chooses, as points do that stand for equally many."""
    near = np.argsort(np.linalg.norm(rows[:, None] - rows, axis=2), axis=1)[:, : len(rows) - attackers]
    rows = rows[near].mean(axis=1)
    steps, kept = CHOICES[name](len(rows), attackers)
    for _ in range(steps):
        gaps = np.linalg.norm(rows[:, None] - rows, axis=2) ** 2
        scores = np.sort(gaps, axis=1)[:, 1 : max(2, len(rows) - attackers)].sum(axis=1)
        last = np.argsort(scores, kind="stable")[kept - 1]
        level = np.abs(scores - scores[last]) <= scores[last] * 1e-6 + 1e-9
        if np.abs(rows[level] - rows[last]).max() > 1e-6:
            return True
        rows = np.delete(rows, last, axis=0)
    return False


@pytest.mark.parametrize("before", ["none", "nnm"])
@pytest.mark.parametrize("name", RULES)
@COMMON
@given(rows=ROWS, order=st.permutations(range(11)))
def test_the_order_of_clients_does_not_matter(name: str, before: str, rows: np.ndarray, order: list[int]):
    rows = distinct(rows)
    assume(before == "none" or name not in CHOICES or not tied(name, rows, 2))
    plain = combined(name, rows, attackers=2, before=before)
    np.testing.assert_allclose(combined(name, rows[order], attackers=2, before=before), plain, atol=1e-6)


@pytest.mark.parametrize(
    "name", [name for name in RULES if name not in ("centered_clipping", "norm_clipping", "sign_vote")]
)
@pytest.mark.parametrize("before", ["none", "nnm"])
@COMMON
@given(rows=ROWS, by=MOVES)
def test_what_is_added_to_all_is_added_to_the_total(name: str, before: str, rows: np.ndarray, by: np.ndarray):
    """The other three look from zero, or from the last total, and are not to be moved with the updates."""
    rows, how = distinct(rows), {"attackers": 2, "before": before}
    assume(before == "none" or name not in CHOICES or not tied(name, rows, 2))
    np.testing.assert_allclose(combined(name, rows + by, **how), combined(name, rows, **how) + by, atol=1e-5)


def attacks(honest: np.ndarray, f: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What f attackers send who see all honest updates; one row each."""
    mean, deviation = honest.mean(0), honest.std(0)
    away = {"mean": -mean, "deviation": -deviation, "random": rng.normal(size=mean.shape)}
    found = {
        "sign flip": np.tile(-mean, (f, 1)),
        "large flip": np.tile(-10 * mean, (f, 1)),
        "inner product": np.tile(-0.1 * mean, (f, 1)),
        "a little": np.tile(mean - 0.5 * deviation, (f, 1)),
        "more": np.tile(mean - 1.5 * deviation, (f, 1)),
        "mimic": np.tile(honest[0], (f, 1)),
        "far": np.tile(mean + 1e6, (f, 1)),
        "noise": rng.normal(0, 30, (f, len(mean))),
        "zero": np.zeros((f, len(mean))),
    }
    apart = ((honest[:, None] - honest[None]) ** 2).sum(-1)
    for kind, way in away.items():
        for bound, most in (("max", apart.max()), ("sum", apart.sum(1).max())):
            low, high = 0.0, 1e3
            for _ in range(40):
                middle = (low + high) / 2
                distances = ((mean + middle * way - honest) ** 2).sum(1)
                fits = (distances.max() if bound == "max" else distances.sum()) <= most
                low, high = (middle, high) if fits else (low, middle)
            found[f"min-{bound} {kind}"] = np.tile(mean + low * way, (f, 1))
    return found


def kappa(name: str, honest: np.ndarray, bad: np.ndarray, rng: np.random.Generator, **parameters: Any) -> float:
    """The squared distance of the total from the honest mean, in units of the honest mean squared spread."""
    rows = np.concatenate([honest, bad])[rng.permutation(len(honest) + len(bad))]
    apart = ((combined(name, rows, attackers=len(bad), **parameters) - honest.mean(0)) ** 2).sum()
    return float(apart / ((honest - honest.mean(0)) ** 2).sum(1).mean())


BOUNDS = {
    "median": lambda n, f: 4 * (1 + f / (n - 2 * f)) ** 2,
    "trimmed_mean": lambda n, f: 6 * f / (n - 2 * f) * (1 + f / (n - 2 * f)),
    "krum": lambda n, f: 6 * (1 + f / (n - 2 * f)),
    "multi_krum": lambda n, f: 6 * (1 + f / (n - 2 * f)),
    "geometric_median": lambda n, f: 4 * (1 + f / (n - 2 * f)) ** 2,
}
SIZES = [(20, 2), (20, 5), (20, 8), (11, 3), (7, 1)]


def worst(name: str, n: int, f: int, **parameters: Any) -> tuple[float, str]:
    rng = np.random.default_rng([n, f])
    found = []
    for _ in range(3):
        # The common part is as large as the spread: from a mean of zero the mean's own attacks are none.
        honest = rng.normal(0, 1, (n - f, 8)) * np.geomspace(0.1, 2, 8) + rng.normal(0, 1, 8)
        found += [(kappa(name, honest, bad, rng, **parameters), what) for what, bad in attacks(honest, f, rng).items()]
    return max(found)


@pytest.mark.parametrize(("n", "f"), SIZES)
@pytest.mark.parametrize("name", BOUNDS)
def test_the_error_is_bounded_by_the_spread_of_honest_updates(name: str, n: int, f: int):
    """Allouah et al. 2023 (arXiv 2302.01772), kappa. The mean has none: the control below."""
    value, what = worst(name, n, f)
    assert value <= BOUNDS[name](n, f), what


@pytest.mark.parametrize(("n", "f"), SIZES)
@pytest.mark.parametrize("name", ["trimmed_mean", "median", "geometric_median"])
def test_with_nearest_neighbours_before_it_the_bound_shrinks_with_the_attackers(name: str, n: int, f: int):
    value, what = worst(name, n, f, before="nnm")
    assert value <= 8 * f / (n - f) * (BOUNDS[name](n, f) + 1), what


def batched(honest: np.ndarray, f: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What f attackers send in many draws at once: honest is (draws, n - f, d), and so is what they send."""
    mean, deviation = honest.mean(1, keepdims=True), honest.std(1, keepdims=True)
    squares = (honest**2).sum(-1)
    apart = squares[:, :, None] + squares[:, None] - 2 * honest @ honest.transpose(0, 2, 1)
    one = {
        "sign flip": -mean,
        "large flip": -10 * mean,
        "inner product": -0.1 * mean,
        "strong inner product": -2 * mean,
        "alie": mean - 1.5 * deviation,
        "mimic": honest[:, :1],
        "far": mean + 1e6,
        "zero": np.zeros_like(mean),
    }
    for bound, most in (("max", apart.max((1, 2))), ("sum", apart.sum(1).max(1))):
        low, high = np.zeros(len(honest)), np.full(len(honest), 1e3)
        for _ in range(40):
            middle = (low + high) / 2
            distances = ((mean - middle[:, None, None] * deviation - honest) ** 2).sum(-1)
            fits = (distances.max(1) if bound == "max" else distances.sum(1)) <= most
            low, high = np.where(fits, middle, low), np.where(fits, high, middle)
        one[f"min-{bound}"] = mean - low[:, None, None] * deviation
    shape = (len(honest), f, honest.shape[2])
    return {name: np.broadcast_to(what, shape) for name, what in one.items()} | {"noise": rng.normal(0, 30, shape)}


def drawn(n: int, f: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Honest updates, (draws, n - f, 8), unlike each other, with a common part as large as their spread."""
    return rng.normal(0, 1, (draws, n - f, 8)) * np.geomspace(0.1, 2, 8) + rng.normal(0, 1, (draws, 1, 8))


def kappas(totals: np.ndarray, honest: np.ndarray) -> np.ndarray:
    """Return (draws,): the kappa of each total (draws, d)."""
    mean = honest.mean(1)
    return ((totals - mean) ** 2).sum(-1) / ((honest - mean[:, None]) ** 2).sum(-1).mean(-1)


@pytest.mark.parametrize(("n", "f"), SIZES)
def test_no_draw_of_a_thousand_breaks_the_bound_of_a_rule_by_coordinate(n: int, f: int):
    """11 attacks, all draws side by side in one vector, which changes nothing for such a rule; the mean must fail."""
    rng = np.random.default_rng([n, f, 7])
    honest = drawn(n, f, 1000, rng)
    for what, bad in batched(honest, f, rng).items():
        rows = np.concatenate([honest, bad], axis=1).transpose(1, 0, 2).reshape(n, -1)
        for name in ("median", "trimmed_mean"):
            total = combined(name, rows, attackers=f).reshape(-1, 8)
            assert kappas(total, honest).max() <= BOUNDS[name](n, f), (name, what)
        if what == "far":
            assert kappas(rows.mean(0).reshape(-1, 8), honest).min() > BOUNDS["median"](n, f)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "f"), SIZES)
@pytest.mark.parametrize("name", ["krum", "multi_krum"])
def test_no_draw_of_a_thousand_breaks_the_bound_of_a_rule_that_chooses(name: str, n: int, f: int):
    """Gram matrices of all draws at once; the first draws are combined whole, with the same result."""
    rng = np.random.default_rng([n, f, 9])
    honest, rule = drawn(n, f, 1000, rng), rule_of(name, attackers=f)
    for what, bad in batched(honest, f, rng).items():
        rows = np.concatenate([honest, bad], axis=1)
        whole = torch.tensor(np.concatenate([rows, np.zeros_like(rows[:, :1])], axis=1))
        grams = (whole - whole[:, :1]) @ (whole - whole[:, :1]).transpose(1, 2)
        weights = torch.stack([rule.weigh(Gram(gram), f)[0] for gram in grams])[:, :-1].numpy()
        totals = np.einsum("dn,dnk->dk", weights, rows)
        np.testing.assert_allclose(totals[:2], [combined(name, one, attackers=f) for one in rows[:2]], atol=1e-6)
        assert kappas(totals, honest).max() <= BOUNDS[name](n, f), what
        if what == "far":
            assert kappas(rows.mean(1), honest).min() > BOUNDS[name](n, f)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "f"), SIZES)
@pytest.mark.parametrize("name", ["krum", "multi_krum", "geometric_median"])
def test_no_draw_of_many_breaks_the_bound_of_a_rule_by_distances(name: str, n: int, f: int):
    """One combination for each draw and attack, 40 of each: they take milliseconds."""
    rng = np.random.default_rng([n, f, 8])
    honest = drawn(n, f, 40, rng)
    for what, bad in batched(honest, f, rng).items():
        rows = np.concatenate([honest, bad], axis=1)
        totals = np.stack([combined(name, one, attackers=f) for one in rows])
        assert kappas(totals, honest).max() <= BOUNDS[name](n, f), what


def test_the_mean_has_no_such_bound():
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(15, 8))
    rows = np.concatenate([honest, attacks(honest, 5, rng)["far"]])
    apart = ((vector(rule_of("mean").combine(updates_of(rows))) - honest.mean(0)) ** 2).sum()
    assert apart > 1e9


STANDING = [(name, {}) for name in (*RULES, "flame")]
STANDING += [(name, {"before": "nnm"}) for name in ("trimmed_mean", "geometric_median", "krum", "bulyan")]
STANDING += [("trimmed_mean", {"before": "bucketing"}), ("mean", None)]


@pytest.mark.parametrize(("name", "parameters"), STANDING, ids=str)
def test_no_number_of_an_attacker_moves_the_total_out_of_the_honest_range(name: str, parameters: Any):
    """With as many attackers as the rule stands, at 1e30 in float32; the mean must fail."""
    rng = np.random.default_rng(0)
    n = 11
    f = next(f for f in range(5, 0, -1) if parameters is None or rule_of(name, attackers=f, **parameters).needs(n) <= n)
    honest = rng.normal(0, 1, (n - f, 6))
    bad = [np.full((f, 6), 1e30), np.full((f, 6), -1e30), rng.choice([-1e30, 1e30], (f, 6))]
    how = {} if parameters is None else {"attackers": f} | parameters
    largest = max(
        np.abs(vector(rule_of(name, **how).combine(updates_of(np.concatenate([honest, one]), torch.float32)))).max()
        for one in bad
    )
    assert (largest <= 2 * np.abs(honest).max()) == (name != "mean")


def test_a_common_part_of_all_updates_hides_no_difference():
    """Without a centre the squares of 1e6 leave nothing of distances of 1e-3 in float32."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1e-3, (9, 6))
    rows[:2] += 5e-3
    plain = rule_of("multi_krum", attackers=2).combine(updates_of(rows))
    moved = rule_of("multi_krum", attackers=2).combine(updates_of(rows + 1e6))
    assert moved.flagged == plain.flagged == ("c0", "c1")


def test_those_that_are_far_from_the_others_are_flagged_and_the_weights_of_clients_do_not_count():
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (11, 6))
    rows[[3, 7]] += 50
    for name in ("krum", "multi_krum", "bulyan", "geometric_median", "centered_clipping", "norm_clipping"):
        total = rule_of(name, attackers=2).combine(updates_of(rows))
        assert {"c3", "c7"} <= set(total.flagged), name
        assert len(total.flagged) <= 4
    assert rule_of("median").combine(updates_of(rows)).flagged == ()


def test_bucketing_takes_means_of_clients_in_an_order_from_the_servers_secret():
    rows = np.random.default_rng(0).normal(0, 1, (12, 6))
    rule = rule_of("trimmed_mean", attackers=1, before="bucketing", bucket=3)
    secret = Secret(bytes(32))

    def total(round: int) -> np.ndarray:
        party = Party("", round, open_secret=lambda: secret)
        return vector(rule.for_round(Gathering(party, 12)).combine(updates_of(rows)))

    np.testing.assert_array_equal(total(3), total(3))
    assert not np.array_equal(total(3), total(4))
    assert rule.needs(12) == 7  # of four buckets one may be all bad, one more is cut off beside it


def test_an_attacker_cannot_hide_in_one_stream_behind_the_size_of_another():
    rng = np.random.default_rng(0)
    updates = []
    for i in range(9):
        small = torch.tensor(rng.normal(0, 1e-3, 20) + (0.1 if i < 2 else 0))
        updates.append(Update(f"c{i}", 0, 0, {DELTA: {"w": small}, "control": {"w": torch.randn(20) * 100}}, 1.0))
    assert rule_of("multi_krum", attackers=2).combine(updates).flagged == ("c0", "c1")


def lora_updates(rotate: bool) -> tuple[dict[str, torch.Tensor], list[Update]]:
    """Five honest clients with one change of B A, in factors of their own, and two that change it in another way."""
    chance = torch.Generator().manual_seed(0)
    a, b = "m.lora_A.default.weight", "m.lora_B.default.weight"
    base = {a: torch.randn(4, 12, generator=chance), b: torch.randn(10, 4, generator=chance)}
    updates = []
    for i in range(7):
        change = 0.05 if i < 5 else -0.4
        factors = {
            name: value + change + 0.01 * torch.randn(value.shape, generator=chance) for name, value in base.items()
        }
        turn = torch.linalg.qr(torch.randn(4, 4, generator=chance)).Q if rotate else torch.eye(4)
        turned = {a: turn.T @ factors[a], b: factors[b] @ turn}
        updates.append(Update(f"c{i}", 0, 0, {DELTA: {name: turned[name] - base[name] for name in base}}, 1.0))
    return base, updates


def test_distances_between_products_are_those_of_the_model_however_the_factors_are_rotated():
    for rotate in (False, True):
        base, updates = lora_updates(rotate)
        seen = Gathering(Party("", 0), 7, base, 2.0)
        rule = rule_of("krum", attackers=2, distance="products").for_round(seen)
        assert rule.combine(updates).flagged == ("c5", "c6")
        whole = Rows(updates).gram(rule.base()).squared_distances
        products = [
            2.0 * (base[b] + u.streams[DELTA][b]).double() @ (base[a] + u.streams[DELTA][a]).double()
            for u in updates
            for a, b in [list(base)]
        ]
        expected = torch.tensor([[float((one - other).square().sum()) for other in products] for one in products])
        torch.testing.assert_close(whole[:-1, :-1], expected.double(), rtol=1e-5, atol=1e-9)
    control = rule_of("krum", attackers=2).for_round(seen)
    assert control.combine(updates).flagged != ("c5", "c6")


@pytest.mark.parametrize(
    ("name", "values"), [("multi_krum", {}), ("geometric_median", {}), ("bulyan", {}), ("krum", {"before": "nnm"})]
)
def test_products_are_not_compared_where_factors_are_averaged(name: str, values: dict[str, Any]):
    """A client sends (c B, A / c): its product is like the others', and a mean of factors is destroyed by it."""
    with pytest.raises(ConfigError, match="write distance=parameters, or --aggregator krum without before"):
        rule_of(name, distance="products", **values)


def test_a_round_of_fewer_updates_than_the_rule_needs_has_no_streams():
    """The server then repeats it: a rule among too few honest clients would let the attackers choose."""
    updates = updates_of(np.zeros((5, 6)))
    rule = rule_of("krum", attackers=0.25).for_round(Gathering(Party("", 0), 8))
    assert rule.needs(8) == 7
    total = rule.combine(updates)
    assert (total.streams, len(total.clients)) == ({}, 5)
    assert rule.combine([]).clients == ()


@pytest.mark.parametrize("attackers", [-1, 0.5, 0.7, 1.5])
def test_attackers_are_a_share_or_a_number(attackers: float):
    with pytest.raises(ConfigError, match=r"write such as attackers=0\.2"):
        rule_of("median", attackers=attackers)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("geometric_median", {"smoothing": 0.0}),
        ("norm_clipping", {"radius": -1.0}),
        ("centered_clipping", {"iterations": 0}),
        ("sign_vote", {"step": -1.0}),
        ("median", {"bucket": 0}),
        ("flame", {"noise": -1.0}),
        ("loss_gate", {"power": -1.0}),
        ("median", {"attackers": float("inf")}),
    ],
)
def test_a_parameter_that_cannot_be_is_refused(name: str, parameters: dict[str, Any]):
    with pytest.raises(ConfigError, match="write"):
        rule_of(name, **parameters)


def test_centered_clipping_goes_on_from_the_last_total():
    rows = np.random.default_rng(0).normal(5, 0.1, (7, 6))
    rule, memory, found = rule_of("centered_clipping", attackers=2, radius=1.0), {}, []
    for round in range(12):
        total = rule.for_round(Gathering(Party("", round, memory=memory), 7)).combine(updates_of(rows))
        memory = total.memory
        found.append(float(np.abs(vector(total) - rows.mean(0)).max()))
    assert found[0] > 3
    assert found[-1] < 1e-6


@pytest.mark.parametrize("name", SEEING)
@COMMON
@given(rows=ROWS, order=st.permutations(range(11)))
def test_the_order_of_clients_does_not_matter_to_rules_of_directions(name: str, rows: np.ndarray, order: list[int]):
    rows = distinct(rows)
    np.testing.assert_allclose(combined(name, rows[order]), combined(name, rows), atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_flames_group_is_that_of_hdbscan(seed: int):
    cluster = pytest.importorskip("sklearn.cluster", reason="scikit-learn is the oracle here")
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.normal(1, 0.7, (9, 5)), rng.normal(-1, 0.7, (4, 5))])[rng.permutation(13)]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    distances = np.clip(1 - unit @ unit.T, 0, None)
    np.fill_diagonal(distances, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = cluster.HDBSCAN(
            min_cluster_size=7, min_samples=1, metric="precomputed", allow_single_cluster=True
        ).fit_predict(distances.copy())
    ours = largest_group(torch.tensor(distances), 7)
    if (found == 0).sum() < 13:  # for a cut at the root it keeps all rows whose distance is no outlier's
        assert set(ours) <= set(np.flatnonzero(found == 0).tolist())
    assert len(ours) >= 7


def test_flame_keeps_the_majority_and_clips_it_to_the_median_norm():
    rng = np.random.default_rng(0)
    rows = rng.normal(1, 0.1, (11, 6))
    rows[:4] *= -30  # the other way, and large
    rows[4] *= 50  # the same way, and large
    total = rule_of("flame").combine(updates_of(rows))
    assert {f"c{i}" for i in range(4)} <= set(total.flagged) <= {f"c{i}" for i in range(11)} - {"c4"}
    np.testing.assert_allclose(vector(total), 1.0, atol=0.2)
    party = Party("", 0, open_secret=lambda: Secret(bytes(32)))
    noisy = vector(rule_of("flame", noise=0.1).for_round(Gathering(party, 11)).combine(updates_of(rows)))
    assert 0.01 < np.abs(noisy - vector(total)).max() < 2


def test_foolsgold_counts_sybils_less_from_round_to_round_and_remembers_them():
    rng = np.random.default_rng(0)
    memory, counted = {}, []
    for round in range(6):
        rows = rng.normal(0, 1, (8, 40))
        rows[:3] = rng.normal(0, 0.6, (3, 40)) + np.linspace(-1, 1, 40)  # one aim, and noise that hides it at first
        total = rule_of("foolsgold").for_round(Gathering(Party("", round, memory=memory), 8)).combine(updates_of(rows))
        memory = total.memory
        counted.append(set(total.flagged))
    assert counted[-1] == {"c0", "c1", "c2"}
    assert set(memory) == {f"c{i}" for i in range(8)}
    alone = rule_of("foolsgold").combine(updates_of(np.eye(4)))
    assert alone.flagged == ()
    same = rule_of("foolsgold").combine(updates_of(np.ones((4, 6))))
    assert len(same.flagged) == 4
    assert not np.abs(vector(same)).any()


def shares_by_its_authors(cosines: np.ndarray) -> np.ndarray:
    """FoolsGold's weights as the code of its authors computes them (github.com/DistributedML/FoolsGold)."""
    n = len(cosines)
    cs = cosines - np.eye(n)
    most = cs.max(axis=1)
    for i in range(n):
        for j in range(n):
            if i != j and most[i] < most[j]:
                cs[i][j] = cs[i][j] * most[i] / most[j]
    shares = np.clip(1 - cs.max(axis=1), 0, 1)
    shares = shares / shares.max()
    shares[shares == 1] = 0.99
    with np.errstate(divide="ignore"):
        shares = np.log(shares / (1 - shares)) + 0.5
    return np.clip(shares, 0, 1)


@pytest.mark.parametrize("seed", range(30))
def test_foolsgold_weighs_as_the_code_of_its_authors_does(seed: int):
    """Also those who are unlike everybody: their largest cosine is negative, and they count in full."""
    rows = np.random.default_rng(seed).normal(0, 1, (2 + seed % 5, 2 + seed % 7))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = np.clip(unit @ unit.T, -1, 1)
    np.fill_diagonal(cosines, 1)
    found = FoolsGold.shares(torch.tensor(cosines))
    np.testing.assert_allclose(found, shares_by_its_authors(cosines.copy()), atol=1e-9)


def test_foolsgold_counts_a_client_that_is_unlike_all_others_in_full():
    """Its negative cosines, divided by a small positive one of others, once made it the most alike of all."""
    cosines = torch.tensor([[1, -0.3, -0.3], [-0.3, 1, 0.01], [-0.3, 0.01, 1]], dtype=torch.float64)
    assert FoolsGold.shares(cosines).tolist() == [1, 1, 1]


SAME = (
    ("krum", {"attackers": 2}),
    ("krum", {"attackers": 2, "before": "nnm"}),
    ("multi_krum", {"attackers": 2}),
    ("bulyan", {"attackers": 2}),
    ("bulyan", {"attackers": 2, "before": "nnm"}),
    ("geometric_median", {"attackers": 2, "before": "nnm"}),
    ("norm_clipping", {"attackers": 2, "before": "nnm"}),
    ("centered_clipping", {"attackers": 2, "before": "nnm"}),
    ("flame", {"attackers": 2}),
)


@pytest.mark.parametrize(("name", "parameters"), SAME)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_nobody_is_an_attacker_for_sending_what_all_others_send(name: str, parameters: dict[str, Any], value: float):
    """As in a first round from a learning rate of 0: the order in which clients answer says nothing of them."""
    rows = np.full((11, 6), value)
    rule = rule_of(name, **parameters)
    total = rule.combine(updates_of(rows))
    assert total.flagged == ()
    np.testing.assert_allclose(vector(total), value)
    rows[3] = -50.0
    total = rule.combine(updates_of(rows))
    np.testing.assert_allclose(vector(total), value, atol=10 if "clipping" in name else 1e-3)
    # Zeros have no direction that another one could be far from; beside them it is cut to nothing.
    assert total.flagged == (() if name == "flame" and value == 0 else ("c3",))


def test_flame_takes_all_that_are_as_near_into_its_group():
    rows = np.repeat([[1.0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, -1], [-1, 1, -1, 1, -1, 1]], [3, 5, 3], axis=0)
    cosines = np.array([[one @ other / 6 for other in rows] for one in rows])
    assert largest_group(torch.tensor(1 - cosines), 6) == list(range(8))
    np.testing.assert_allclose(vector(rule_of("flame").combine(updates_of(rows))), [1, 1, 1, 1, 1, -0.25])


def rooted(name: str, rows: np.ndarray, loss: Any = None, **parameters: Any) -> Total:
    params = {"w": torch.zeros(3, dtype=torch.float64), "layers.0.b": torch.zeros(1, 3, dtype=torch.float64)}
    seen = Gathering(Party("", 0), len(rows), params, trusted="c0", loss=loss)
    return rule_of(name, **parameters).for_round(seen).combine(updates_of(rows))


@pytest.mark.parametrize("name", ["fltrust", "loss_gate"])
@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_clients_does_not_matter_to_rules_with_rows_of_the_servers_own(name: str, seed: int):
    rng = np.random.default_rng(seed)
    rows, order = rng.normal(0.5, 1, (9, 6)), rng.permutation(9)
    params = {"w": torch.zeros(3, dtype=torch.float64), "layers.0.b": torch.zeros(1, 3, dtype=torch.float64)}

    def loss(changed: dict[str, torch.Tensor]) -> float:
        return float(sum(((params | changed)[one] - 1).square().sum() for one in NAMES))

    rule = rule_of(name).for_round(Gathering(Party("", 0), 9, params, trusted="c0", loss=loss))
    sent = updates_of(rows)
    plain, turned = rule.combine(sent), rule.combine([sent[place] for place in order])
    np.testing.assert_allclose(vector(turned), vector(plain), atol=1e-12)
    assert set(turned.flagged) == set(plain.flagged)


def test_fltrust_follows_the_servers_own_update_whatever_the_majority_sends():
    rng = np.random.default_rng(0)
    rows = rng.normal(1, 0.2, (10, 6))
    rows[4:] *= -1e6
    total = rooted("fltrust", rows)
    assert total.flagged == tuple(f"c{i}" for i in range(4, 10))
    honest = rows[1:4]
    length, cosines = np.linalg.norm(rows[0]), honest @ rows[0] / np.linalg.norm(honest, axis=1)
    expected = (cosines / np.linalg.norm(honest, axis=1)) @ honest / cosines.sum() * length
    np.testing.assert_allclose(vector(total), expected, rtol=1e-6)
    against = rows.copy()
    against[1:] = -np.abs(against[1:])
    assert not np.abs(vector(rooted("fltrust", against))).any()


def test_fltrust_without_the_servers_own_update_is_a_round_that_is_too_small():
    seen = Gathering(Party("", 0), 4, trusted="public")
    assert rule_of("fltrust").for_round(seen).combine(updates_of(np.ones((4, 6)))).clients == ()


def test_the_loss_gate_counts_what_an_update_does_on_the_servers_rows():
    goal = torch.linspace(-1, 1, 6, dtype=torch.float64)
    asked = []

    def loss(changed: dict[str, torch.Tensor]) -> float:
        asked.append(changed)
        params = {"w": torch.zeros(3), "layers.0.b": torch.zeros(1, 3)} | changed
        return float((torch.cat([params[name].reshape(-1).double() for name in NAMES]) - goal).square().sum())

    rng = np.random.default_rng(0)
    rows = 0.5 * goal.numpy() + rng.normal(0, 0.05, (9, 6))
    rows[5:] *= -3
    rows[4] *= 1e9  # a good direction, and so large that alone it would be a loss
    total = rooted("loss_gate", rows, loss)
    assert total.flagged == tuple(f"c{i}" for i in range(5, 9))
    assert len(asked) == 9  # once before, and every update but the server's own
    np.testing.assert_allclose(vector(total), 0.5 * goal.numpy(), atol=0.2)
    # A high power leaves the best alone; that of a gain as such would be infinite, or 0.
    best = rooted("loss_gate", rows, lambda changed: 1e3 * loss(changed), power=5000.0)
    worst = rooted("loss_gate", rows, lambda changed: 1e-3 * loss(changed), power=5000.0)
    assert np.isfinite(vector(best)).all()
    np.testing.assert_allclose(vector(best), vector(worst))
    assert np.abs(vector(best)).sum() > 1
    nothing = rooted("loss_gate", rows, lambda changed: float("inf"))
    assert (nothing.clients, nothing.streams) == ((), {})
    assert "the loss on the server's own rows" in nothing.reason


@pytest.mark.parametrize("values", [None, (0.0, 1.0, 3.0)], ids=["unlike", "alike"])
def test_bulyan_averages_the_values_nearest_to_the_median_of_those_it_chose(values: tuple[float, ...] | None):
    """Against the definition, one coordinate after the other; of 0, 0, 0, 1, 3, 3, 3 too, where 1 is one of them."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (15, 12)) if values is None else rng.choice(values, (15, 100))
    total = rule_of("bulyan", attackers=3).combine(updates_of(rows))
    chosen = rows[[i for i in range(15) if f"c{i}" not in total.flagged]]
    assert len(chosen) == 9
    expected = []
    for column in chosen.T:
        near = np.argsort(np.abs(column - np.median(column)), kind="stable")[:3]
        expected.append(column[near].mean())
    np.testing.assert_allclose(vector(total), expected, rtol=1e-12)
