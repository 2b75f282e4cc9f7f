"""Repair of encoding and markup: broken characters, tags of HTML, control characters."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from weft.data.cleaning.cleaner import Cleaner
from weft.errors import MissingExtra

ATTRIBUTES = r"""(?:\s+[a-zA-Z:-]{1,40}\s*=\s*(?:"[^"<>]{0,500}"|'[^'<>]{0,500}'|[^\s<>"']{1,200})){0,20}\s*/?>"""
TAG = re.compile(
    r"</?(?:p|br|div|span|font|b|i|u|em|strong|a|img|ul|ol|li|hr|center|small|sup|sub|h[1-6]|table|tr|td|th|tbody)"
    + ATTRIBUTES,
    re.IGNORECASE,
)
"""Tags of running text; others, such as those of a program that writes HTML, stay."""
BREAK = re.compile(r"</?(?:p|br|div|li|h[1-6]|tr)" + ATTRIBUTES, re.IGNORECASE)
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u00ad\u200b\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
"""Control characters but tab and line breaks, and signs of no width that only serve to disguise or reorder words."""
TAGS = re.compile("(\U0001f3f4[\U000e0020-\U000e007e]{2,7}\U000e007f)|[\U000e0000-\U000e007f]+")
"""Letters that no screen shows, and a model reads; the flags of England, Scotland and Wales are made of some."""
CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
GAPS = re.compile(r"(?<![ \t])[ \t]++\n|\n{3,}")


@dataclass(frozen=True)
class Repair(Cleaner):
    """Mends what was decoded in a wrong way, and takes markup out of text; blocks of code stay as they are."""

    markup: bool = True
    """Take tags of running text out, where a text has some."""

    def start(self) -> None:
        """Refuse a machine without ftfy."""
        _ = self._ftfy

    def rewrite(self, text: str, counts: Counter[str]) -> str:
        """Return the text, repaired outside blocks of code."""
        pieces, at, before = [], 0, counts["tags"]
        for code in CODE.finditer(text):
            pieces += [self._mend(text[at : code.start()], counts), code.group()]
            at = code.end()
        repaired = "".join([*pieces, self._mend(text[at:], counts)])
        return repaired.strip() if counts["tags"] > before else repaired

    def _mend(self, text: str, counts: Counter[str]) -> str:
        if not text:
            return text
        whole = CONTROL.sub("", text)
        whole = whole if whole.isascii() else TAGS.sub(lambda flag: flag[1] or "", whole)
        counts["control characters"] += len(text) - len(whole)
        # Plain ASCII without an entity has nothing that could have been decoded in a wrong way.
        fixed = whole if whole.isascii() and "&" not in whole else self._ftfy.fix_text(whole, **self._settings)
        counts["broken encoding"] += fixed != whole
        if self.markup and (tags := len(TAG.findall(fixed))):
            counts["tags"] += tags
            fixed = GAPS.sub(_gap, TAG.sub("", BREAK.sub("\n", fixed)))
        return fixed

    @property
    def _settings(self) -> dict[str, object]:
        # Curly quotes, ligatures and wide letters are not broken, and a line break is no matter of the encoding.
        keep = ("uncurl_quotes", "fix_latin_ligatures", "fix_character_width", "fix_line_breaks")
        return dict.fromkeys(keep, False) | {"normalization": "NFC"}

    @cached_property
    def _ftfy(self) -> Any:
        try:
            import ftfy
        except ImportError:
            raise MissingExtra("ftfy", "clean", "The cleaner repair") from None
        return ftfy


def _gap(match: re.Match[str]) -> str:
    return "\n\n" if match.group().startswith("\n") else "\n"
