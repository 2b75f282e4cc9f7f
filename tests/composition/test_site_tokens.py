"""Tokenized private text stays in the site's own folder."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from support.fake_sites import NAMES, FakeSites
from support.rows import colour_rows, write_rows
from weft.sites.server import serve


def test_tokenized_text_lies_in_the_sites_folder_and_not_in_the_home_folder(
    run, sites: FakeSites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WEFT_CACHE", str(tmp_path / "home"))
    for name, policy in sites.policies.items():
        rows = [{"text": f"{name}: {row['instruction']} {row['output']}"} for row in colour_rows(40)]
        write_rows(Path(policy.data.path), rows)
    left = {key: value for key, value in run.items() if key not in ("choices", "template")}
    serve(left | {"objective": "causal_lm", "seq_length": 32, "num_rounds": 1}, sites, list(NAMES), "1")
    assert not any(path.suffix == ".tokens" for path in (tmp_path / "home").rglob("*"))
    for name in NAMES:
        folder = tmp_path / "work" / name / ".tokens"
        assert list(folder.rglob("*.tokens")), name
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
