"""How a word of a prompt is perturbed: typing mistakes and words of similar meaning, as somebody writes who may."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from weft.models.resident import Resident

WORD = re.compile(r"[^\W\d_]{3,}")
"""A word that is perturbed: letters alone, three or more; numbers, links and signs stay."""
KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
SIMILAR = {
    frozenset(words.split())
    for words in (
        "buy purchase|sell offload|rise climb gain advance|rises climbs gains advances|fall drop decline slip",
        "falls drops declines slips|up higher|down lower|big large|small little|good fine|bad poor|good strong",
        "increase grow|increased grew|decrease shrink|report account|reports accounts|says states|said stated",
        "company firm business|companies firms businesses|shares stocks|share stock|market exchange|cut reduce",
        "cuts reduces|raise lift|raises lifts|raised lifted|begin start|begins starts|end finish|ends finishes",
        "show display|shows displays|help aid|helps aids|large major|price value|prices values|profit earnings",
        "profits earnings|loss deficit|losses deficits|quick fast|see view|ask request|asks requests|new fresh",
        "old former|first initial|last final|near close|make create|makes creates|get obtain|gets obtains",
        "keep hold|keeps holds|give offer|gives offers|think believe|thinks believes|likely probable|after following",
    )
    for words in words.split("|")
}
"""Groups of words that may stand for each other."""
NEIGHBOURS = 8
"""Nearest words of the model's embedding that are tried."""


class Edit(NamedTuple):
    """A part of a text, and what stands in its place."""

    begin: int
    end: int
    text: str


def misspelt(word: str, seed: int) -> list[str]:
    """Return typing mistakes in a word: two letters swapped, one left out, one doubled, a key beside, a look-alike."""
    chance = random.Random(f"{seed} {word}")
    at = chance.randrange(1, len(word) - 1)
    swapped = word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :]
    variants = [swapped, word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]]
    row = next((row for row in KEYS if word[at].lower() in row), "")
    if row:
        place = row.index(word[at].lower())
        variants.append(word[:at] + row[place - 1 if place else 1] + word[at + 1 :])
    look = str.maketrans("oilsaeOILSAE", "011543011543")
    variants.append(word[:at] + word[at].translate(look) + word[at + 1 :])
    return list(dict.fromkeys(variant for variant in variants if variant != word))


class Synonyms:
    """Words of similar meaning: a short list, and the nearest neighbours of a word in the model's own embedding."""

    def __init__(self, model: Resident) -> None:
        """Read the words of the vocabulary and their directions, once."""
        tokenizer: Any = model.tokenizer
        table = model.base.get_input_embeddings().weight.detach().float().cpu().numpy()
        texts = [tokenizer.decode([number]) for number in range(min(len(tokenizer), len(table)))]
        marks = tokenizer.convert_ids_to_tokens(list(range(len(texts))))
        begins = [str(mark)[:1] in ("\u0120", "\u2581") for mark in marks]
        self.words: dict[str, int] = {}
        for number, text in enumerate(texts):
            if begins[number] and WORD.fullmatch(text.strip()):
                self.words.setdefault(text.strip(), number)
        numbers = np.array(list(self.words.values()), dtype=np.int64)
        self.names = list(self.words)
        chosen = table[numbers] if len(numbers) else np.zeros((0, table.shape[1]), dtype=np.float32)
        chosen = chosen - chosen.mean(0, keepdims=True) if len(chosen) else chosen
        self.directions = chosen / np.maximum(1e-9, np.linalg.norm(chosen, axis=1, keepdims=True))
        self.places = {name: place for place, name in enumerate(self.names)}

    def of(self, word: str) -> list[str]:
        """Return words to try in the place of one, those of the list first; capitals stay capitals."""
        plain = word.lower()
        listed = [other for group in SIMILAR if plain in group for other in sorted(group - {plain})]
        place = self.places.get(word, self.places.get(plain))
        near: list[str] = []
        if place is not None:
            order = np.argsort(-(self.directions @ self.directions[place]), kind="stable")[: 4 * NEIGHBOURS]
            near = [self.names[other] for other in order if self._differs(self.names[other], plain)][:NEIGHBOURS]
        shaped = [other.capitalize() if word[:1].isupper() else other for other in [*sorted(listed), *near]]
        return list(dict.fromkeys(shaped))

    @staticmethod
    def _differs(other: str, plain: str) -> bool:
        """Return whether a neighbour is another word, and not another form of the same one."""
        return other.lower()[:4] != plain[:4]
