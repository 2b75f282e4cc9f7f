"""What one client can do to a round's mean: the norm of its update and its share of the weight are limited."""

from __future__ import annotations

import tracemalloc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import weft
from support.results import weights
from support.updates import PLAN, STATE, update
from weft import config as configuration
from weft.core.exchange import Protection, Runtime
from weft.core.types import DELTA, SCALARS, ServerState, Update
from weft.errors import ConfigError, RunError
from weft.federation.compatibility import check
from weft.federation.loop import Rounds, run_rounds
from weft.federation.outliers import capped, norms
from weft.federation.round import run_round
from weft.federation.sampling import Selection
from weft.federation.spool import Spool
from weft.federation.state import Participant
from weft.launch import compose

LIMITED = replace(PLAN, max_update_norm=100.0)
GOOD = ("a", "b")


def plan_of(**keys: object):
    return compose.plan(configuration.build({"dataset_name": "any"} | keys))


def times(given: Update, factor: float) -> Update:
    """An update, multiplied."""
    return replace(given, streams={DELTA: {name: value * factor for name, value in given.streams[DELTA].items()}})


class Sends(Runtime):
    """Hands over updates in their order."""

    def __init__(self, *updates: Update) -> None:
        self.updates = updates

    def exchange(self, messages):
        yield from self.updates


def cohort(*clients: str, rows: float = 10.0) -> list[Participant]:
    return [Participant(client, 4, rows=rows) for client in clients]


def largest(state: ServerState) -> float:
    return max(float(value.abs().max()) for value in state.params.values())


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("factor", [150.0, 1e6, 1e8])
def test_an_update_far_above_the_median_is_its_clients_failure(place: int, factor: float):
    """In the first round, among three sites, whichever answers first."""
    sent = [update(client, seed=number) for number, client in enumerate(GOOD)]
    huge = times(update("huge", seed=7), factor)
    honest, _ = run_round(LIMITED, STATE, cohort(*GOOD), Sends(*sent))
    ruined, _ = run_round(PLAN, STATE, cohort(*GOOD, "huge"), Sends(*sent[:place], huge, *sent[place:]))
    state, record = run_round(LIMITED, STATE, cohort(*GOOD, "huge"), Sends(*sent[:place], huge, *sent[place:]))
    assert largest(ruined) > 30  # the control: without a limit one client moves the model
    assert record.clients == GOOD
    assert all(torch.equal(state.params[name], value) for name, value in honest.params.items())
    median, size = sorted(norms(one.streams)[DELTA].value for one in (*sent, huge))[1:]
    assert record.failures == {
        "huge": f"its delta has a norm of {size:.3g}, above 100 times the round's median of {median:.3g}"
    }
    assert record.bad == []
    assert record.sums["tokens"] == 10.0


def test_numbers_that_only_just_fit_into_a_float_are_refused_without_any_limit():
    """3e38 was admitted, and the run ended "normally" with a model of 1.7e38."""
    for size in (3e38, -3e38, 1.1e9):
        value = torch.full((8,), size)
        sent = update("huge")
        huge = replace(sent, streams={DELTA: sent.streams[DELTA] | {"norm": value}})
        state, record = run_round(PLAN, STATE, cohort("a", "huge"), Sends(update("a"), huge))
        assert record.bad == ["huge"]
        assert f"sent a number of size {abs(size):.3g}" in record.failures["huge"]
        assert largest(state) < 10
    scalars = replace(update("huge"), streams=update("huge").streams | {SCALARS: {"step_ratio": torch.tensor(3e38)}})
    nova = plan_of(fed_alg="fednova")
    state, record = run_round(nova, STATE, cohort("huge"), Sends(scalars))
    assert record.bad == ["huge"]


def test_without_a_limit_and_with_honest_clients_not_a_bit_changes():
    sent = [times(update(f"c{number}", seed=number), factor) for number, factor in enumerate((0.01, 1, 1, 3, 40))]
    plain, _ = run_round(PLAN, STATE, cohort(*(one.client for one in sent)), Sends(*sent))
    state, record = run_round(LIMITED, STATE, cohort(*(one.client for one in sent)), Sends(*sent))
    assert not record.failures
    assert all(torch.equal(state.params[name], value) for name, value in plain.params.items())


def test_of_two_updates_and_of_a_median_of_zero_none_is_refused():
    two = [update("a"), times(update("b", seed=1), 1e4)]
    _, record = run_round(LIMITED, STATE, cohort("a", "b"), Sends(*two))
    assert record.clients == ("a", "b")
    still = [times(update(client), 0.0) for client in "abc"]
    _, record = run_round(LIMITED, STATE, cohort(*"abcd"), Sends(*still, update("d")))
    assert record.clients == tuple("abcd")


def test_a_large_delta_does_not_hide_behind_a_larger_control_variate():
    plan = replace(plan_of(fed_alg="scaffold"), max_update_norm=100.0)
    state = replace(plan.algorithm.init(STATE.params), round=4)

    def sent(client: str, seed: int, factor: float = 1.0) -> Update:
        whole = update(client, seed=seed)
        control = {name: value * 1e5 for name, value in whole.streams[DELTA].items()}
        return replace(whole, streams=times(whole, factor).streams | {"control": control})

    updates = [sent("a", 0), sent("b", 1), sent("c", 2, 1e4)]
    _, record = run_round(plan, state, cohort(*"abc"), Sends(*updates))
    assert record.clients == ("a", "b")
    assert record.failures["c"].startswith("its delta has a norm of ")
    control = times(update("c", seed=2), 1e8).streams[DELTA]
    lies = replace(sent("c", 2), streams=sent("c", 2).streams | {"control": control})
    _, record = run_round(plan, state, cohort(*"abc"), Sends(*updates[:2], lies))
    assert record.failures["c"].startswith("its control has a norm of ")


def test_single_numbers_that_multiply_the_mean_are_judged_by_their_names():
    plan = replace(plan_of(fed_alg="fednova"), max_update_norm=10.0)

    def sent(client: str, ratio: float) -> Update:
        return replace(update(client), streams=update(client).streams | {SCALARS: {"step_ratio": torch.tensor(ratio)}})

    _, record = run_round(plan, STATE, cohort(*"abc"), Sends(sent("a", 1.0), sent("b", 0.5), sent("c", 101.0)))
    assert record.failures == {
        "c": "its step_ratio has a norm of 101, above 100 times the round's median of 1",
    }


def test_over_selected_clients_replace_those_that_are_refused():
    updates = [times(update("a", seed=1), 1e6), *(update(client, seed=number) for number, client in enumerate("bcdef"))]
    _, record = run_round(LIMITED, STATE, cohort(*"abcdef"), Sends(*updates), max_updates=4)
    assert record.clients == tuple("bcde")
    assert set(record.failures) == {"a"}
    assert record.over_selected == ("f",)


def test_updates_that_wait_for_the_median_wait_in_a_file_and_not_in_memory():
    alive: list[weakref.ref] = []
    most = 0

    class Streaming(Runtime):
        def exchange(self, messages):
            nonlocal most
            for message in messages:
                sent = update(message.client)
                alive.append(weakref.ref(sent.streams[DELTA]["norm"]))
                yield sent
                del sent
                most = max(most, sum(one() is not None for one in alive))

    names = [f"client_{n}" for n in range(50)]
    state, record = run_round(LIMITED, STATE, cohort(*names), Streaming())
    assert len(record.clients) == 50
    assert most <= 2
    assert torch.equal(state.params["norm"], update("any").streams[DELTA]["norm"])


def test_a_spool_returns_every_kind_of_tensor_to_the_last_bit():
    values = {
        "float": torch.randn(3, 5)[:, 1:4],
        "half": torch.randn(7).bfloat16(),
        "double": torch.tensor(1.0, dtype=torch.float64) / 3,
        "bytes": torch.arange(9, dtype=torch.uint8).reshape(3, 3),
        "empty": torch.zeros(0, 4),
        "nan": torch.tensor([float("nan"), -0.0]),
    }
    sent = Update("c", 4, 4, {"one": values, "two": {}}, 3.5, {"tokens": 2.0}, 1)
    with Spool() as spool:
        spool.add(update("first"))
        spool.add(sent)
        spool.add(replace(sent, streams={"one": {"meta": torch.ones(2, device="meta")}}))
        back = spool.read(1)
        assert replace(back, streams={}) == replace(sent, streams={}) == spool.head(1)
        assert back.streams.keys() == sent.streams.keys()
        for name, value in values.items():
            found = back.streams["one"][name]
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            raw = [one.contiguous().reshape(-1).view(torch.uint8) for one in (found, value)]
            assert torch.equal(*raw)
        assert spool.read(2).streams["one"]["meta"].is_meta


def test_a_spool_of_large_updates_leaves_memory_flat():
    tracemalloc.start()
    with Spool() as spool:
        for number in range(40):
            delta = {"w": torch.full((1_000_000,), float(number))}
            spool.add(Update(f"c{number}", 0, 0, {DELTA: delta}, 1.0))
        assert all(float(spool.read(number).streams[DELTA]["w"][-1]) == number for number in range(40))
        _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 150 << 20  # of 160 MB, at most the 64 MiB before the file is one on disk, twice while it is copied


@pytest.mark.parametrize(
    ("weights", "share", "expected"),
    [
        ([60e6, 10, 10], 0.5, [20, 10, 10]),
        ([10, 60e6, 10, 10], 0.4, [10, 20, 10, 10]),
        ([60e6, 60e6, 10, 10], 0.4, [40, 40, 10, 10]),  # 40 of 100 each
        ([3, 2, 1], 0.5, [3, 2, 1]),
        ([4, 2, 1], 0.5, [3, 2, 1]),
        ([9, 3, 1], 0.4, [2, 2, 1]),  # both the first and the second are cut
        ([5, 1], 0.5, [1, 1]),
        ([7, 1, 1], 1 / 3, [3, 3, 3]),
        ([7, 1, 1], 0.1, [3, 3, 3]),  # three clients cannot have a tenth each
        ([7], 0.5, [7]),
        ([], 0.5, []),
    ],
)
def test_shares_worked_out_by_hand(weights: list[float], share: float, expected: list[float]):
    assert capped(weights, share) == pytest.approx(expected)


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=9), st.floats(0.05, 1.0))
def test_no_share_is_above_the_limit_and_the_order_of_weights_stays(weights: list[float], share: float):
    found = capped(weights, share)
    most = max(share, 1 / len(weights))
    assert max(found) <= most * sum(found) * (1 + 1e-9)
    if share * len(weights) >= 1.001:
        assert all(value <= weight for value, weight in zip(found, weights, strict=True))
        cut = [value for value, weight in zip(found, weights, strict=True) if value < weight]
        assert all(value == pytest.approx(max(found)) for value in cut)


def test_sixty_million_claimed_rows_do_not_own_the_mean():
    """The rows of the handshake are the site's word, and so is the largest weight that is admitted."""
    sent = [update("a", seed=1), update("b", seed=2), update("liar", seed=3, weight=60e6)]
    asked = [*cohort("a", "b"), Participant("liar", 4, rows=60e6)]
    owned, _ = run_round(PLAN, STATE, asked, Sends(*sent))
    deltas = [one.streams[DELTA]["norm"] for one in sent]
    torch.testing.assert_close(owned.params["norm"], deltas[2], atol=1e-4, rtol=1e-4)  # the control
    state, _ = run_round(replace(PLAN, max_client_share=0.5), STATE, asked, Sends(*sent))
    torch.testing.assert_close(state.params["norm"], deltas[0] / 4 + deltas[1] / 4 + deltas[2] / 2)
    _, record = run_round(PLAN, STATE, cohort("a", "b", "liar"), Sends(*sent))
    assert record.bad == ["liar"]  # more rows than were agreed on


class _Hidden(Protection):
    sum_only = True


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"max_update_norm": 100.0, "protection": _Hidden()},
            "leave out --max_update_norm, or write",
        ),
        ({"max_client_share": 0.5, "protection": _Hidden()}, "leave out --max_client_share"),
        ({"max_client_share": 0.5, "algorithm": plan_of(fed_alg="scaffold").algorithm}, "leave out --max_client_share"),
        ({"max_update_norm": 9.0, "algorithm": plan_of(fed_alg="local").algorithm}, "leave out --max_update_norm"),
    ],
)
def test_limits_are_refused_where_they_mean_nothing(changes: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        check(replace(PLAN, **changes))


def test_sites_have_a_generous_limit_and_simulations_none():
    def limit(**keys: object) -> float:
        return plan_of(**keys).max_update_norm

    assert limit() == 0
    sites = {"dataset_name": None, "runtime": "nvflare"}
    assert limit(**sites) == 100
    assert limit(**sites, max_steps=-1, num_train_epochs=2) == 10_000
    assert limit(**sites, max_update_norm=0) == 0
    assert limit(max_update_norm=7) == 7
    words = {"prompt_method": "text", "prompt_candidates": ["x"], "fed_alg": "fedtext"}
    assert limit(**sites, **words) == 0
    with pytest.raises(ConfigError, match="FedText sends candidates with their scores"):
        limit(**words, max_update_norm=7)
    with pytest.raises(ConfigError, match="the median update itself is refused"):
        limit(max_update_norm=0.5)


def test_a_model_that_leaves_the_range_of_floats_is_not_kept():
    sent = [replace(update(client), streams={DELTA: dict.fromkeys(["w"], torch.full((1,), 1e9))}) for client in "ab"]
    most = ServerState({"w": torch.full((1,), torch.finfo(torch.float32).max)}, round=4)
    kept, _ = run_round(PLAN, most, cohort("a", "b"), Sends(*sent))
    assert torch.equal(kept.params["w"], most.params["w"])  # 1e9 is less than the last digit of such a number
    with pytest.raises(RunError, match="not finite"):
        run_round(replace(PLAN, algorithm=_Doubles()), most, cohort("a", "b"), Sends(*sent))


class _Doubles(type(PLAN.algorithm)):
    """A server step that doubles the model."""

    def step(self, state, total):
        return replace(state, params={name: 2 * value for name, value in state.params.items()}, round=state.round + 1)


class Answers(Runtime):
    """Clients that answer every task; one of them with a large update."""

    def exchange(self, messages):
        for task in messages:
            given = update(task.client, round=task.round, base_version=task.base_version, attempt=task.attempt)
            yield times(given, 1e6 if task.client == "c" else 1.0)


def test_a_client_that_is_refused_for_its_norm_is_asked_again():
    """With a limit that is tight, an honest one may be refused; it is not set aside for good."""
    how = Rounds(5, Selection(1, 3), 0, rows=[10, 10, 10], max_bad_updates=2)
    begun = replace(STATE, round=0)
    done = list(run_rounds(LIMITED, begun, Answers(), how, clients=["a", "b", "c"], eval_clients=[]))
    assert [set(one.record.failures) for one in done] == [{"c"}] * 5


METHODS: dict[str, dict[str, object]] = {
    "control variates": {"fed_alg": "scaffold"},
    "clusters": {"cluster": 2},
    "other ranks": {"client_ranks": [2, 4]},
    "other depths": {"client_layers": [1, 2]},
    "a buffer": {"fed_alg": "fedbuff"},
    "one number a tensor": {"fed_alg": "fedadamw"},
    "sums along directions": {"fed_alg": "fedkseed", "fed_args": {"seeds": 8}},
    "weights by loss": {"client_weight": "minimax"},
}


@pytest.mark.parametrize("method", METHODS)
def test_limits_that_nobody_meets_change_no_bit_of_any_method(keys, tmp_path: Path, method: str):
    given = keys | METHODS[method] | {"num_clients": 4, "sample_clients": 4, "num_rounds": 2, "eval_every": 0}
    plain = weft.train(given | {"output_dir": str(tmp_path / "plain")}, quiet=True)
    limit = {"max_update_norm": 1e6, "output_dir": str(tmp_path / "limited")}
    limited = weft.train(given | limit, quiet=True)
    assert (limited.path / "metrics.jsonl").read_bytes() == (plain.path / "metrics.jsonl").read_bytes()
    results = [
        {path.relative_to(run.path): path.read_bytes() for path in run.path.glob("**/adapter_model.safetensors")}
        for run in (plain, limited)
    ]
    assert results[0]
    assert results[0] == results[1]


def test_a_share_that_is_limited_weighs_the_mean_of_a_run(keys, tmp_path: Path):
    """With a limit of one third, three clients weigh the same, as with --client_weight uniform."""
    given = keys | {"num_clients": 3, "sample_clients": 3, "num_rounds": 1, "dataset_sample": 40, "eval_every": 0}
    given |= {"split_strategy": "dirichlet", "split_alpha": 0.5}
    runs = {
        name: weights(weft.train(given | changes | {"output_dir": str(tmp_path / name)}, quiet=True))
        for name, changes in {
            "uniform": {"client_weight": "uniform"},
            "limited": {"max_client_share": 0.3333},
            "size": {},
        }.items()
    }
    for name, value in runs["uniform"].items():
        torch.testing.assert_close(runs["limited"][name], value)
    assert not all(torch.equal(runs["size"][name], value) for name, value in runs["uniform"].items())
