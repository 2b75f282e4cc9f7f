"""Secrets: 32 bytes of a party, kept where only it reads, and what is drawn from them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from weft.core.secret import BYTES, Secret
from weft.errors import ConfigError

KEY = bytes(range(BYTES))


def test_a_secret_is_kept_with_mode_0600_and_read_again(tmp_path: Path):
    file = tmp_path / "clients" / "a" / "secret.key"
    former = os.umask(0)
    try:
        first = Secret.load_or_create(file)
    finally:
        os.umask(former)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["secret.key"]
    other = Secret.load_or_create(tmp_path / "b")
    assert Secret.load_or_create(file).bytes(16, "x") == first.bytes(16, "x") != other.bytes(16, "x")
    file.chmod(0o644)
    Secret.load_or_create(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert KEY.hex() not in repr(Secret(KEY))


def test_a_secret_that_was_cut_is_refused(tmp_path: Path):
    file = tmp_path / "secret.key"
    file.write_bytes(KEY[:-1])
    with pytest.raises(ConfigError, match="has 31 bytes instead of 32"):
        Secret.load_or_create(file)


def test_what_is_drawn_depends_on_every_word_and_on_the_secret_alone():
    secret = Secret(KEY)
    purposes = [("noise", 1), ("noise", 2), ("noise", "1"), ("noise1",), ("noise", 1, 1), ("mask", 1), ()]
    drawn = [secret.bytes(32, *purpose) for purpose in purposes]
    assert len({*drawn, Secret(KEY[::-1]).bytes(32, "noise", 1)}) == len(purposes) + 1
    assert secret.bytes(64, "noise", 1)[:32] == Secret(KEY).bytes(32, "noise", 1)


def distance(drawn: np.ndarray, cumulative: np.ndarray) -> float:
    """Return Kolmogorov and Smirnov's distance, times the root of the number of draws: 1.63 is exceeded once in 100."""
    count = len(drawn)
    steps = np.arange(count)
    return float(max(((steps + 1) / count - cumulative).max(), (cumulative - steps / count).max()) * count**0.5)


def test_the_ends_of_the_interval_are_never_drawn(monkeypatch: pytest.MonkeyPatch):
    """A logarithm or a quantile of 0 or 1 would be infinite."""
    for ends in (b"\x00", b"\xff"):
        monkeypatch.setattr(Secret, "bytes", lambda self, count, *_, ends=ends: ends * count)
        assert 0 < Secret(KEY).uniform(1)[0] < 1
        assert torch.isfinite(Secret(KEY).normal((2,))).all()


def test_numbers_follow_their_distributions():
    """The draws are fixed, so nothing here is left to chance."""
    secret = Secret(KEY)
    uniform = np.sort(secret.uniform(20_000, "u"))
    assert 0 < uniform[0] < uniform[-1] < 1
    assert distance(uniform, uniform) < 1.63
    normal = secret.normal((100, 200), "normal")
    assert normal.shape == (100, 200)
    ordered = normal.flatten().sort().values
    assert distance(ordered.numpy(), torch.special.ndtr(ordered).numpy()) < 1.63
    found = secret.laplace(20_000, 2.0, "z")
    stop = 1 - np.exp(-1 / 2.0)
    values = np.arange(-12, 13)
    expected = 20_000 * stop / (2 - stop) * (1 - stop) ** abs(values)  # P(z) = tanh(1 / 2b) exp(-|z| / b)
    seen = np.array([(found == value).sum() for value in values])
    assert ((seen - expected) ** 2 / expected).sum() < 43.0  # chi-squared of 24 degrees: once in 100
