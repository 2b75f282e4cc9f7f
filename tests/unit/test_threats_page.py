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


def paper() -> list[list[str]]:
    """Return the rows of the table of the position paper's threats: threat, answer, module, test, measured."""
    return [row for row in rows() if len(row) == 5 and "`weft." in row[2]]


def test_every_threat_of_the_paper_has_a_module_a_test_and_a_measurement():
    found = paper()
    assert len(found) == 11
    for threat, _, modules, tests, measured in found:
        assert "test_" in tests, threat
        assert re.search(r"\d|\]\(audits\.md|not measured", measured), threat
        for module in re.findall(r"`(weft\.[\w.]+)`", modules):
            place = ROOT / "src" / module.replace(".", "/")
            assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file(), module


def test_the_shares_that_were_measured_stand_where_they_were_measured():
    """A share of the table that no page of measurements has was never measured, or is an earlier one."""
    measured = " ".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("benchmarks.md", "log.md"))
    known = " ".join(measured.split())
    shares = [share for row in paper() for share in re.findall(r"\d+ %|\d\.\d\d|\d+ of \d{3}", row[4])]
    assert len(shares) > 20
    assert not [share for share in shares if share not in known]
