"""docs/threats.md: every test that it names is there, every threat has an answer, and every audit stands in it."""

from __future__ import annotations

import re

import pytest

from support.paths import ROOT
from weft import registry

PAGE = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
FILES = {path.name: path for path in (ROOT / "tests").glob("*/test_*.py")}


def rows() -> list[list[str]]:
    """Return the cells of all rows of the page's tables, without their heads."""
    lines = PAGE.splitlines()
    tables = [line for line, after in zip(lines, [*lines[1:], ""], strict=True) if not after.startswith("|---")]
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in tables
        if line.startswith("|") and not line.startswith("|---")
    ]


def test_every_test_that_is_named_is_there():
    named = re.findall(r"((?:\w+/)*)(test_\w+\.py)", PAGE)
    assert len(named) > 70
    for folder, name in named:
        assert name in FILES, name
        place = folder.removeprefix("tests/").strip("/")
        assert place in ("", FILES[name].parent.name), f"{folder}{name}"


def test_no_cell_is_empty():
    found = rows()
    assert len(found) > 50
    assert not [row for row in found if len(row) < 2 or not all(row)]


@pytest.mark.parametrize("audit", list(registry.AUDITS))
def test_every_audit_answers_a_threat_and_is_explained(audit: str):
    assert f"`{audit}`" in PAGE
    assert f"`{audit}`" in (ROOT / "docs" / "audits.md").read_text(encoding="utf-8")
