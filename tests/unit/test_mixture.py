"""Shares of domains and the rows that are drawn by them, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weft.training.mixture import BLOCK, SMOOTHING, Mixture, probed

TABLES = {0: [f"code {row}" for row in range(16)], 2: [f"prose {row}" for row in range(64)]}
"""A client that has two of three domains; rows are texts."""


def no_loss(table: object) -> float:
    raise AssertionError("no loss is asked for")


def drawn(mixture: Mixture, tables: dict[int, list[str]], count: int, client: int = 0, round: int = 0):
    return mixture.draw(tables, mixture.shares_of(tables, no_loss), count, 0, client, round)


def test_given_shares_are_divided_among_the_domains_that_a_client_has():
    assert Mixture((0.5, 0.2, 0.3)).shares_of(TABLES, no_loss) == pytest.approx([0.625, 0.375])
    # The public share (number 2) stays as it is; the client's own domain takes the rest.
    assert Mixture((0.5, 0.2, 0.3), public=2).shares_of(TABLES, no_loss) == pytest.approx([0.7, 0.3])


def test_a_share_near_zero_is_the_whole_of_a_client_that_has_no_other_domain():
    only = {0: TABLES[0]}
    assert Mixture((1e-320, 1.0)).shares_of(only, no_loss) == pytest.approx([1.0])
    assert Mixture((1e-320, 0.7, 0.3), public=2).shares_of(TABLES, no_loss) == pytest.approx([0.7, 0.3])


def test_shares_by_temperature_are_powers_of_the_rows():
    """16 and 64 rows: as they are 1 to 4, at temperature 2 as 4 to 8."""
    assert Mixture(temperature=1.0).shares_of(TABLES, no_loss) == pytest.approx([0.2, 0.8])
    assert Mixture(temperature=2.0).shares_of(TABLES, no_loss) == pytest.approx([1 / 3, 2 / 3])


def test_shares_by_excess_loss_are_the_best_answer_under_a_divergence():
    """Losses 3 and 2 against references 2 and 5: excess 1 and 0, since a domain is never behind its reference."""
    losses = {16: 3.0, 64: 2.0}
    mixture = Mixture(temperature=1.0, reference=(2.0, 9.0, 5.0), strength=2.0)
    found = mixture.shares_of(TABLES, lambda table: losses[len(table)])
    first = 0.2 * math.exp(2.0) / (0.2 * math.exp(2.0) + 0.8)
    assert found == pytest.approx(
        [(1 - SMOOTHING) * first + SMOOTHING / 2, (1 - SMOOTHING) * (1 - first) + SMOOTHING / 2]
    )

    def value(share: float) -> float:
        """The objective that the docstring states, for two domains."""
        divergence = share * math.log(share / 0.2) + (1 - share) * math.log((1 - share) / 0.8)
        return share * 1.0 - divergence / 2.0

    grid = np.linspace(0.001, 0.999, 999)
    assert grid[np.argmax([value(share) for share in grid])] == pytest.approx(first, abs=1e-3)


def test_what_is_drawn_has_the_shares_within_three_deviations_at_every_client():
    mixture = Mixture((0.625, 0.0, 0.375))
    for client in range(4):
        draws = [drawn(mixture, TABLES, 50, client, round) for round in range(40)]
        rows = [draw[place] for draw in draws for place in range(50)]
        code = sum(row.startswith("code") for row in rows)
        assert abs(code - 0.625 * len(rows)) < 3 * (len(rows) * 0.625 * 0.375) ** 0.5


def test_every_row_of_a_domain_comes_once_a_pass_over_rounds_and_blocks():
    mixture, seen = Mixture((0.5, 0.0, 0.5)), []
    for round in range(BLOCK + 20):
        draw = drawn(mixture, TABLES, 6, 3, round)
        seen += [draw[place] for place in range(len(draw)) if draw[place].startswith("code")]
    assert len(seen) > 10 * 16
    for start in range(0, len(seen) // 16 * 16, 16):
        assert sorted(seen[start : start + 16]) == sorted(TABLES[0])


def test_counts_are_of_the_rows_that_were_used():
    draw = drawn(Mixture((0.5, 0.0, 0.5)), TABLES, 40)
    used = [draw[place].split()[0] for place in range(24)]
    assert draw.counts(24) == {"mixture/0": used.count("code"), "mixture/2": used.count("prose")}
    again = drawn(Mixture((0.5, 0.0, 0.5)), TABLES, 40)
    assert [draw[place] for place in range(40)] == [again[place] for place in range(40)]


def test_by_excess_loss_no_round_begins_where_another_did():
    mixture = Mixture(reference=(1.0, 1.0, 1.0))
    shares = mixture.shares_of(TABLES, lambda table: 2.0)
    rounds = [mixture.draw(TABLES, shares, 8, 0, 0, round) for round in range(8)]
    pairs = [{(int(domain), int(row)) for domain, row in zip(one.domains, one.rows, strict=True)} for one in rounds]
    assert all(len(pair) == 8 for pair in pairs)  # within a round no row comes twice


def test_a_domain_is_probed_by_rows_spread_over_it():
    assert probed(TABLES[2]) == [f"prose {4 * place}" for place in range(16)]
    assert probed(["a", "b"]) == ["a", "b"]
