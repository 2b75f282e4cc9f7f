"""The language of a text, by its letters and its most frequent words: enough to see that two parties' rows differ."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

OTHER = "(other)"
"""Of a text whose language is not known here, or that is too short to tell."""
_FREQUENT = {
    "de": "der die und das ist nicht ein eine mit den von zu dem auf für sich auch werden im wird sind wie oder",
    "en": "the of and to in is that it was for with as on be are this by from at have not you what which how",
    "es": "el los las que y del una por con para es se como lo más pero su no al está son qué este",
    "fr": "le la les et est une des dans que qui pour pas du sur avec ce il au plus sont vous cette ou",
    "it": "il di che è un una per non con del della sono si le da come più anche gli nel questo alla ha",
    "nl": "de het een van en is dat op te niet met voor zijn aan er ook als bij door maar wordt deze naar",
    "pl": "i w na nie się że z do jest to jak o co po ale tak od za przez dla czy są tego",
    "pt": "o os que e do da em um uma para com não é se na por mais as dos como são ou foi",
    "sv": "och att det som en är på för av inte med den till ett har de om var sig från vad kan jag",
}
"""Frequent words of languages in Latin letters."""
_WORDS = {language: frozenset(words.split()) for language, words in _FREQUENT.items()}
_SCRIPTS = {
    "CJK": "zh",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CYRILLIC": "ru",
    "ARABIC": "ar",
    "HEBREW": "he",
    "GREEK": "el",
    "DEVANAGARI": "hi",
    "THAI": "th",
}
"""The first word of a letter's name in Unicode, and the language with most speakers that is written so."""
LANGUAGES = (*sorted({*_WORDS, *_SCRIPTS.values()}), OTHER)
LETTERS = 2000
"""Letters at the beginning of a text that are looked at."""


def language_of(text: str) -> str:
    """Return the code of a text's language, one of `LANGUAGES`.

    A language in another script than the Latin one counts as the language with most speakers that is written so.
    """
    text = text[:LETTERS].lower()
    scripts = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha())
    letters, latin = sum(scripts.values()), scripts["LATIN"]
    if letters and latin < letters / 2:
        kana = scripts["HIRAGANA"] + scripts["KATAKANA"]
        script = "HIRAGANA" if kana > scripts["CJK"] / 10 and kana else scripts.most_common(1)[0][0]
        return _SCRIPTS.get(script, OTHER)
    words = re.findall(r"[^\W\d_]+", text)
    hits = sorted(((sum(word in known for word in words), name) for name, known in _WORDS.items()), reverse=True)
    # Two frequent words at least, and more than of any other language.
    return hits[0][1] if hits[0][0] >= 2 and hits[0][0] > hits[1][0] else OTHER
