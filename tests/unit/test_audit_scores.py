"""Scores of membership, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from weft.audits.blind import blind
from weft.audits.extraction import leaks
from weft.audits.membership import likelihood_ratio, min_k_plus
from weft.audits.participant import held_out
from weft.audits.recall import above, check_control, own_and_next
from weft.audits.settings import CannotAudit
from weft.audits.statistics import auc, share
from weft.audits.tokens import Scored, token_scores
from weft.audits.verbatim import _check_control, _personal
from weft.cli import main
from weft.config import gather, settle
from weft.errors import ConfigError


def test_a_standardised_log_probability_by_hand():
    """Two tokens of 3/4 and 1/4: the mean log is 3/4 ln 3/4 + 1/4 ln 1/4, the variance 3/16 (ln 3)^2."""
    logits = torch.tensor([[math.log(3.0), 0.0]] * 2)
    logps, standard = token_scores(logits, torch.tensor([0, 1]))
    mean = 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    deviation = math.sqrt(3 / 16) * math.log(3)
    assert logps == pytest.approx([math.log(0.75), math.log(0.25)])
    expected = [(math.log(0.75) - mean) / deviation, (math.log(0.25) - mean) / deviation]
    assert standard == pytest.approx(expected, abs=1e-5)
    assert standard == pytest.approx([1 / math.sqrt(3), -math.sqrt(3)], abs=1e-5)


def test_min_k_plus_is_the_mean_of_the_lowest_fifth():
    standard = np.array([3.0, -2.0, 1.0, -4.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert min_k_plus(Scored(standard, standard)) == -3.0
    assert min_k_plus(Scored(standard[:3], standard[:3])) == -2.0


def test_a_likelihood_ratio_by_hand():
    """In 1 and 3 (mean 2), out -1 and 1 (mean 0); four differences of 1, two means taken: a variance of 2."""
    shadows = np.array([[1.0], [3.0], [-1.0], [1.0]])
    inside = np.array([[True], [True], [False], [False]])
    assert likelihood_ratio(np.array([1.0]), shadows, inside) == pytest.approx([0.0])
    assert likelihood_ratio(np.array([2.0]), shadows, inside) == pytest.approx([4 / 4])


def test_the_blind_attacker_sees_a_shift_of_words_and_nothing_in_a_random_split():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 300, 30) for _ in range(200)]
    shifted = [np.append(row, 500 if rng.random() < 0.7 else 501) for row in rows[100:]]
    assert blind(rows[:100], rows[100:], np.random.default_rng(1)).holds(0.5)
    assert not blind(rows[:100], shifted, np.random.default_rng(1)).holds(0.5)
    held = [blind(rows[:100], rows[100:], np.random.default_rng(seed)).holds(0.5) for seed in range(20)]
    assert all(held)


def test_a_number_leaks_however_it_is_written():
    assert leaks("It is 123 456.", "123456")
    assert leaks("1-2-3-4-5-6", "123456")
    assert not leaks("It is 123 and then 45.", "123456")


def test_personal_data_of_a_row_is_found_in_what_was_written():
    row = "Write to ada@example.org, born 03.04.1950, number 482-177."
    assert _personal("ada@example.org has 482-177", row) == {"e-mail address": 1, "number of 6 digits or more": 1}
    assert not _personal("nothing", row)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run"], "write --all, or --tests"),
        (["run", "--all", "--tests", "exposure"], "leave out one of them"),
        (["run", "--tests", "exposures"], "Did you mean 'exposure'?"),
        (["run", "--all", "--shadows", "3"], "shadows come in pairs"),
        (["run", "--all", "--limit", "1"], "write 2 or more"),
        (["no-such-run", "--all"], "There is no run"),
    ],
)
def test_what_cannot_be_meant_is_refused(words, said, capsys):
    assert main(["audit", *words]) == 2
    assert said in capsys.readouterr().err


def test_sites_plant_nothing_because_a_run_says_so(tmp_path):
    given = {"runtime": "nvflare", "sites": ["a", "b"], "canaries": 16}
    with pytest.raises(ConfigError, match="nobody but a site itself"):
        settle(*gather(given, {}))


def test_no_recall_is_printed_where_the_control_is_above_twice_chance():
    check_control(share(6, 100), 0.05)
    with pytest.raises(CannotAudit, match=r"gives 0\.25 \(0\.1. to 0\.3.\) of the words of another, and chance 0\.05"):
        check_control(share(25, 100), 0.05)
    assert above(share(9, 100), share(6, 100)) != above(share(90, 100), share(6, 100)) == []


def test_ends_of_rows_that_are_guessed_are_no_extraction():
    _check_control(share(5, 50))
    with pytest.raises(CannotAudit, match="of rows that were held out the model ends"):
        _check_control(share(20, 50))


def test_words_that_every_row_has_are_no_finding():
    """A recall of no words was 0, with a sentence that nothing had been read."""
    with pytest.raises(CannotAudit, match="No row has a word that the next one lacks"):
        own_and_next([frozenset({1, 2}), frozenset({2, 1})], [frozenset({1, 2}), frozenset({1, 2})])
    step, control = own_and_next([frozenset({1, 2}), frozenset({2, 3})], [frozenset({1, 2}), frozenset({2, 3})])
    assert (step.value, control.value) == (1.0, 0.0)


def test_scores_that_are_no_numbers_are_not_taken_for_chance():
    """They were ties: an area of 0.5, and the sentence "Not above chance"."""
    with pytest.raises(CannotAudit, match="2 of 4 scores are not numbers"):
        auc(np.array([np.nan, 1.0]), np.array([np.nan, 0.5]))
    assert auc(np.array([-np.inf, 1.0]), np.array([-np.inf, 0.5])).value == 0.625


def test_rows_that_somebody_trained_on_are_no_unseen_rows():
    """A held-out row with the content of a training row showed the same gain, as if the model had learnt the kind."""
    rows = [(np.array([number]), np.array([True])) for number in (1, 2, 3, 2, 1, 4)]
    clients = [SimpleNamespace(name="a", train=rows[:1]), SimpleNamespace(name="b", train=rows[1:3])]
    kept = [SimpleNamespace(name="a", held_out=rows[2:3]), SimpleNamespace(name="b", held_out=rows[3:])]
    station = SimpleNamespace(host=SimpleNamespace(train_clients=clients, eval_clients=kept))
    assert [int(row[0][0]) for row in held_out(station, "b")] == [4]
