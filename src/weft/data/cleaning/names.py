"""Names and places in running text, as Presidio finds them by a spaCy pipeline that is on the machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from weft.errors import ConfigError, MissingExtra

PIECE = 50_000
"""Characters that are read at a time: spaCy takes a million, and memory for them."""
LEAST_SCORE = 0.5
"""Presidio's score from which on something is masked; what its spaCy recognizer finds has 0.85."""


class Span(NamedTuple):
    """Where something stands in a text, and its kind in Presidio's words, such as PERSON."""

    start: int
    end: int
    kind: str


Finder = Callable[[str], Iterable[Span]]


def finder_of(pipeline: str, kinds: frozenset[str]) -> Finder:
    """Return what finds these kinds in a text.

    Nothing is downloaded: Presidio would fetch a pipeline that is not there, and its recognizers of addresses a list
    of domains, so that only the one of names is used.

    Args:
        pipeline: a spaCy pipeline, the name of an installed package or a folder.
        kinds: of Presidio's spaCy recognizer.

    Raises:
        MissingExtra: Presidio is not installed.
        ConfigError: the pipeline is not there, or a kind is none of its recognizer's.
    """
    try:
        import spacy
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import SpacyNlpEngine
        from presidio_analyzer.predefined_recognizers import SpacyRecognizer
    except ImportError:
        raise MissingExtra("presidio-analyzer", "presidio", "personal_data.presidio") from None
    try:
        language = spacy.load(pipeline)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"personal_data.presidio names the spaCy pipeline '{pipeline}', which cannot be loaded "
            f"({type(error).__name__}): install it (`python -m spacy download en_core_web_sm`), or name its folder."
        ) from None
    known = set(SpacyRecognizer.ENTITIES)
    if strange := sorted(kinds - known):
        raise ConfigError(
            f"personal_data.kinds holds '{strange[0]}', which Presidio does not find: write some of "
            f"{', '.join(sorted(known))} with a plus between them."
        )
    engine: Any = SpacyNlpEngine(models=[{"lang_code": language.lang, "model_name": pipeline}])
    engine.nlp = {language.lang: language}
    recognizer = SpacyRecognizer(supported_language=language.lang, supported_entities=sorted(kinds))
    registry = RecognizerRegistry(recognizers=[recognizer], supported_languages=[language.lang])
    analyzer = AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[language.lang])

    def find(text: str) -> list[Span]:
        found = analyzer.analyze(text, language=language.lang, entities=sorted(kinds), score_threshold=LEAST_SCORE)
        return [Span(one.start, one.end, one.entity_type) for one in found]

    return find


def masked(text: str, find: Finder, counts: Counter[str]) -> str:
    """Return a text with the kinds in brackets in the place of what was found; `counts` receives them."""
    pieces: list[str] = []
    for piece in _pieces(text):
        at = 0
        for start, end, kind in sorted(find(piece)):
            if start < at:  # what overlaps with something before is masked already
                continue
            pieces += [piece[at:start], f"[{kind}]"]
            counts[kind.lower()] += 1
            at = end
        pieces.append(piece[at:])
    return "".join(pieces)


def _pieces(text: str) -> Iterable[str]:
    """Yield a text in pieces, cut between words where there are some."""
    at = 0
    while len(text) - at > PIECE:
        cut = text.rfind(" ", at, at + PIECE) + 1 or at + PIECE
        yield text[at:cut]
        at = cut
    yield text[at:]
