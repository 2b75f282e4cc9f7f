"""The bound of an update, the noise on a sum, and what follows from both."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.aggregation.mean import Mean
from weft.core.party import Party
from weft.core.secret import Secret
from weft.core.types import BOUND, DELTA, Total, Update
from weft.errors import ClientFailed
from weft.privacy.gaussian import BELOW, NORM, Gaussian, clip, norm_of

SERVER = Secret(bytes(range(32)))
numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def party(name: str = "", round: int = 0, attempt: int = 0, secret: Secret = SERVER, **memory) -> Party:
    return Party(name, round, attempt, memory, lambda: secret)


def update(*streams: dict[str, torch.Tensor], client: str = "c") -> Update:
    return Update(client, 0, 0, {f"stream{i}": values for i, values in enumerate(streams)}, 1.0)


def total_of(updates: list[Update], population: float = 0.0) -> Total:
    return replace(Mean().combine(updates), population_weight=population)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(numbers, min_size=1, max_size=5), min_size=1, max_size=4),
    st.sampled_from(DTYPES),
    st.floats(1e-6, 1e6),
)
def test_the_bound_holds_for_every_update_whatever_it_holds(values, dtype, bound):
    """All streams together, in every number format; what is not finite is refused, and zeros stay zeros."""
    streams = [{"w": torch.tensor(row, dtype=torch.float64).to(dtype)} for row in values]
    gaussian = Gaussian(bound, 0.0)
    if not all(torch.isfinite(stream["w"]).all() for stream in streams):
        with pytest.raises(ClientFailed, match="not finite"):
            gaussian.on_client(update(*streams), party("c"))
        return
    sent, _ = gaussian.on_client(update(*streams), party("c"))
    flat = torch.cat([value.double() for values in sent.streams.values() for value in values.values()])
    assert float(flat.norm()) <= bound * (1 + 1e-12)
    # The server scales what a client sends in spite of the bound, and leaves alone what keeps to it.
    arrived = gaussian.on_arrival(update(*streams), {})
    assert norm_of(arrived.streams) <= bound
    assert all(torch.equal(gaussian.on_arrival(sent, {}).streams[n]["w"], sent.streams[n]["w"]) for n in sent.streams)


@pytest.mark.parametrize("value", [1e30, 3e38, 1e-30, 0.0])
def test_huge_and_tiny_updates_are_bounded_without_overflow(value: float):
    streams = {"a": {"w": torch.full((1000,), value)}, "b": {"w": torch.full((3,), -value)}}
    clipped = clip(streams, norm_of(streams), 0.5)
    assert norm_of(clipped) <= 0.5
    if value > 1:
        assert norm_of(clipped) == pytest.approx(0.5, rel=1e-3)
        assert torch.all(clipped["a"]["w"] > 0)  # its direction is kept


def test_the_noise_has_the_stated_deviation_on_every_coordinate():
    """A million draws, 1 %; z C on the sum, whatever the number of clients."""
    size, cohort = 1_000_000, 10
    gaussian = Gaussian(0.5, 1.3, cohort=cohort)
    total = Total({DELTA: {"w": torch.zeros(size)}}, ("a", "b"), 2.0, 100.0)
    noisy, _ = gaussian.on_server(total, party())
    drawn = noisy.streams[DELTA]["w"].double() * cohort
    assert float(drawn.std()) == pytest.approx(1.3 * 0.5, rel=0.01)
    assert abs(float(drawn.mean())) < 5 * 0.65 / math.sqrt(size)
    # Gaussian in the tails too: 0.27 % lie beyond three deviations.
    assert float((drawn.abs() > 3 * 0.65).double().mean()) == pytest.approx(0.0027, rel=0.1)


def test_noise_of_clients_in_shares_is_the_servers_noise():
    size, cohort = 250_000, 4
    gaussian = Gaussian(0.5, 1.3, noise_at="client", cohort=cohort, shares=cohort)
    quiet = [update({"w": torch.zeros(size)}, client=name) for name in "abcd"]
    sent = [gaussian.on_client(one, party(one.client, secret=Secret.random()))[0] for one in quiet]
    noisy, _ = gaussian.on_server(total_of(sent, 4.0), party())
    assert float(noisy.streams["stream0"]["w"].std()) * cohort == pytest.approx(1.3 * 0.5, rel=0.01)
    # One share alone is too little: the control.
    assert float(sent[0].streams["stream0"]["w"].std()) == pytest.approx(0.65 / 2, rel=0.01)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=1, max_size=6),
    st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3),
)
def test_neighbours_differ_by_the_bound_at_most(others, one):
    """One client more or less changes the sum by C, and so the result by C / cohort: the divisor is fixed."""
    gaussian, bound, cohort = Gaussian(2.0, 0.0, cohort=5), 2.0, 5
    updates = [update({"w": torch.tensor(values)}, client=f"c{i}") for i, values in enumerate([*others, one])]
    sent = [gaussian.on_client(each, party(each.client))[0] for each in updates]
    with_it, _ = gaussian.on_server(total_of(sent, 10.0), party())
    without, _ = gaussian.on_server(total_of(sent[:-1], 10.0), party())
    change = with_it.streams["stream0"]["w"].double() - without.streams["stream0"]["w"].double()
    assert float(change.norm()) * cohort <= bound + 1e-5
    assert with_it.weight == without.weight == cohort


def test_weights_of_updates_do_not_change_what_a_client_adds():
    """The server caps weights at 1; a smaller one makes the client's own part smaller, and nobody else's."""
    gaussian = Gaussian(1.0, 0.0, cohort=2)
    one, two = update({"w": torch.tensor([0.5])}), update({"w": torch.tensor([0.25])})
    noisy, _ = gaussian.on_server(total_of([one, replace(two, weight=1e-3)], 2.0), party())
    assert float(noisy.streams["stream0"]["w"]) == pytest.approx((0.5 + 0.25e-3) / 2)


def test_the_noise_follows_from_the_secret_the_round_and_the_sum():
    gaussian, total = Gaussian(1.0, 1.0), Total({DELTA: {"w": torch.ones(50), "v": torch.ones(50)}}, ("a",), 1.0, 1.0)

    def noise(whose: Party, of: Total = total) -> torch.Tensor:
        noisy, _ = gaussian.on_server(of, whose)
        return noisy.streams[DELTA]["w"] - of.streams[DELTA]["w"]

    first = noise(party())
    assert torch.equal(first, noise(party()))
    other = Total({DELTA: {"w": torch.ones(50), "v": torch.full((50,), 1.0000001)}}, ("a",), 1.0, 1.0)
    for changed in (
        noise(party(round=1)),
        noise(party(attempt=1)),
        noise(party(secret=Secret.random())),
        noise(party(), other),
        gaussian.on_server(total, party())[0].streams[DELTA]["v"] - 1,
    ):
        assert abs(float(torch.corrcoef(torch.stack([first, changed]))[0, 1])) < 0.6


def test_an_adaptive_bound_goes_to_the_quantile_of_the_norms():
    norms = torch.linspace(0.5, 1.5, 51)
    for noise in (0.0, 0.5):
        gaussian, memory = Gaussian("adaptive", noise, cohort=51), {}
        for round in range(200):
            told = gaussian.told(memory)[BOUND]
            sent = [
                gaussian.on_client(update({"w": norm[None]}, client=str(i)), replace(party(str(i)), told=told))[0]
                for i, norm in enumerate(norms)
            ]
            _, memory = gaussian.on_server(total_of(sent, 51.0), party(round=round, **memory))
        assert float(memory[BOUND][NORM]) == pytest.approx(1.0, rel=0.1), noise


def test_the_count_of_norms_and_the_sum_cost_together_what_the_noise_multiplier_says():
    """z^-2 = z_1^-2 + (2 s)^-2 (Andrew et al. 2021, theorem 1)."""
    for noise, cohort in ((1.0, 100), (0.3, 1000), (20.0, 3)):
        gaussian = Gaussian("adaptive", noise, cohort=cohort)
        sums, counts = gaussian._deviations(2.0)
        assert (sums / 2.0) ** -2 + (2 * counts) ** -2 == pytest.approx(noise**-2)
        assert sums / 2.0 < 1.03 * noise


def test_a_client_refuses_a_bound_that_cannot_be():
    gaussian = Gaussian("adaptive", 1.0)
    for value in (math.nan, math.inf, 0.0, -1.0):
        with pytest.raises(ClientFailed, match="no bound"):
            gaussian.on_client(update({"w": torch.ones(2)}), replace(party("c"), told={NORM: torch.tensor(value)}))
    # A client that counts itself a million times counts once.
    lying = replace(update({"w": torch.ones(2)}), streams={BOUND: {BELOW: torch.tensor(1e6)}})
    assert float(gaussian.on_arrival(lying, {}).streams[BOUND][BELOW]) == 0.5
