"""Rows in another language, as py3langid tells it; its model is in the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from weft.data.cleaning.cleaner import Cleaner, Sample, Tools
from weft.errors import ConfigError, MissingExtra


@dataclass(frozen=True)
class Language(Cleaner):
    """Leaves out rows whose language is none of those to keep; rows with few letters are kept."""

    keep: str = "en"
    """Codes of ISO 639-1, a plus between them: en+de."""
    least: int = 60
    """Letters from which on a language is told."""
    certainty: float = 0.9
    """Probability of another language from which on a row is left out."""

    def start(self) -> None:
        """Refuse codes that no language has, and a machine without py3langid."""
        known = {str(code) for code in self._identifier.labels}
        if strange := [code for code in self.keep.split("+") if code not in known]:
            raise ConfigError(
                f"language.keep holds '{strange[0]}', which is no code that is known: write such as en or en+de "
                f"({', '.join(sorted(known))})."
            )

    def faults(self, samples: Sequence[Sample], tools: Tools) -> dict[int, str]:
        """Return the rows in another language."""
        kept, reasons = set(self.keep.split("+")), {}
        for number, sample in enumerate(samples):
            if sum(map(str.isalpha, sample.text)) < self.least:
                continue
            language, probability = self._identifier.classify(sample.text)
            if language not in kept and probability >= self.certainty:
                reasons[number] = f"language {language}"
        return reasons

    @cached_property
    def _identifier(self) -> Any:
        try:
            from py3langid import langid
        except ImportError:
            raise MissingExtra("py3langid", "clean", "The cleaner language") from None
        return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
