"""Names and places by Presidio: what is masked, in long texts too, and what is said where something is missing."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path

import pytest

from weft.data.cleaning.cleaner import Sample, Tools
from weft.data.cleaning.names import PIECE, Span, masked
from weft.data.cleaning.personal import PersonalData
from weft.errors import ConfigError, MissingExtra

HERE = importlib.util.find_spec("presidio_analyzer") is not None


def ann(text: str) -> list[Span]:
    return [Span(one.start(), one.end(), "PERSON") for one in re.finditer("Ann Smith|Smith|Ann", text)]


def test_what_is_found_is_masked_by_its_kind_and_counted():
    counts: Counter[str] = Counter()
    assert masked("Ann Smith met Ann.", ann, counts) == "[PERSON] met [PERSON]."
    assert counts == {"person": 2}
    assert masked("nobody", ann, counts) == "nobody"


def test_spans_that_overlap_are_masked_once():
    def both(text: str) -> list[Span]:
        return [Span(4, 9, "LOCATION"), Span(0, 9, "PERSON")]

    assert masked("Ann Smith met", both, Counter()) == "[PERSON] met"


def test_long_texts_are_read_in_pieces_and_lose_nothing():
    seen = []

    def find(text: str) -> list[Span]:
        seen.append(len(text))
        return ann(text)

    text = "word " * (PIECE // 2) + "Ann Smith " + "x" * (2 * PIECE)
    assert masked(text, find, Counter()) == text.replace("Ann Smith", "[PERSON]")
    assert max(seen) <= PIECE
    assert len(seen) >= 4


@pytest.mark.skipif(HERE, reason="Presidio is installed")
def test_without_presidio_its_extra_is_named_and_the_rules_work():
    with pytest.raises(MissingExtra, match=r"presidio-analyzer.*weft\[presidio\]"):
        PersonalData(presidio="en_core_web_sm").start()
    PersonalData().start()
    assert PersonalData().rewrite("mail a@b.org", Counter()) == "mail [EMAIL]"


@pytest.fixture
def pipeline(tmp_path: Path) -> str:
    """A small spaCy pipeline that knows a person and a place by rules: no statistics, nothing downloaded."""
    pytest.importorskip("presidio_analyzer", reason="the extra presidio is not installed")
    spacy = pytest.importorskip("spacy")
    language = spacy.blank("en")
    ruler = language.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": "Ann Smith"}, {"label": "GPE", "pattern": "Vienna"}])
    language.to_disk(tmp_path / "pipeline")
    return str(tmp_path / "pipeline")


def test_presidio_finds_what_the_pipeline_knows(pipeline: str):
    counts: Counter[str] = Counter()
    text = "Ann Smith of Vienna writes from a@b.org."
    cleaner = PersonalData(presidio=pipeline)
    cleaner.start()
    assert cleaner.rewrite(text, counts) == "[PERSON] of [LOCATION] writes from [EMAIL]."
    assert counts == {"person": 1, "location": 1, "email": 1}
    assert PersonalData(presidio=pipeline, kinds="PERSON").rewrite(text, counts).startswith("[PERSON] of Vienna")
    assert PersonalData().rewrite(text, counts) == "Ann Smith of Vienna writes from [EMAIL]."  # the control
    rows = [Sample(("Who?",), ("Ann Smith",)), Sample(("Who?",), ("nobody",))]
    dropping = PersonalData(presidio=pipeline, action="drop")
    assert dropping.faults(rows, Tools()) == {0: "personal data"}


def test_a_pipeline_or_a_kind_that_is_not_there_is_refused(pipeline: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="'no_such_pipeline', which cannot be loaded"):
        PersonalData(presidio="no_such_pipeline").start()
    with pytest.raises(ConfigError, match="'NAME', which Presidio does not find"):
        PersonalData(presidio=pipeline, kinds="PERSON+NAME").start()
