"""How many items of a task are among training rows: compared with the definition, and with items that were planted."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from support.paths import DATA
from weft.data.load import whole_rows
from weft.tasks.contamination import COMMON, LONGEST, SHORTEST, grams_of, words_of

TALE = "the old keeper of the lighthouse counted ninety seven ships before the storm came up from the south"


def by_definition(items: list[dict[str, Any]], texts: list[str]) -> set[int]:
    """The same in tuples of words, without hashes."""

    def words(text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())

    def grams(text: str, n: int) -> set[tuple[str, ...]]:
        some = words(text)
        return {tuple(some[i : i + n]) for i in range(len(some) - n + 1)}

    own: list[set[tuple[str, ...]]] = []
    for item in items:
        strings = [value for value in item.values() if isinstance(value, str)]
        n = min(LONGEST, max((len(words(value)) for value in strings), default=0))
        own.append({gram for value in strings for gram in grams(value, n)} if n >= SHORTEST else set())
    counts = Counter(gram for some in own for gram in some)
    most = max(1, min(COMMON, len(items) // 10))
    trained = {gram for text in texts for n in range(SHORTEST, LONGEST + 1) for gram in grams(text, n)}
    return {n for n, some in enumerate(own) if any(counts[gram] <= most and gram in trained for gram in some)}


def test_a_planted_item_is_counted_and_gone_with_its_row():
    items = [{"question": f"Is number {n} mentioned in this? {TALE} for the {n}th time?"} for n in range(3)]
    items[0] = {"question": f"What is told here? {TALE}"}
    grams = grams_of([*items[:1], {"question": "Why do green parrots of the islands sleep on one leg at noon?"}])
    assert (grams.items, grams.compared) == (2, 2)
    rows = ["nothing of that kind", f"Once, {TALE.upper()}; and so on."]
    assert grams.shared(rows) == {0}
    assert grams.shared(rows[:1]) == set()
    # Twelve words of thirteen are none, and neither are thirteen in another order.
    some = TALE.split()
    assert grams.shared([" ".join(some[:12])]) == set()
    assert grams.shared([" ".join(some[:13])]) == {0}
    assert grams.shared([" ".join([some[1], some[0], *some[2:13]])]) == set()


def test_what_many_items_have_is_no_item():
    frame = "Read the following text with care and then answer the question about it in one word:"
    items = [{"prompt": f"{frame} word{n} " + " ".join(f"w{n}x{k}" for k in range(20))} for n in range(40)]
    grams = grams_of(items)
    assert grams.compared == 40
    assert grams.shared([f"{frame} something else entirely"]) == set()
    assert grams.shared([items[7]["prompt"]]) == {7}


def test_short_items_are_not_compared_and_lists_are():
    eight = "one two three four five six seven eight"
    grams = grams_of([{"q": "two words"}, {"choices": ["no", {"text": TALE}]}, {"q": eight}])
    assert (grams.items, grams.compared) == (3, 2)
    assert grams.shared([TALE]) == {1}
    assert grams.shared([f"zero {eight} nine"]) == {2}
    assert grams_of([]).shared([TALE]) == set()
    assert grams_of([{"q": "two words"}]).shared([TALE]) == set()


def test_letters_without_spaces_are_words():
    text = "漢字で書かれた文章はどこにも空白がありません"
    assert words_of("ab_c, \uff24\uff251! 漢字") == ["ab", "c", "de1", "漢", "字"]
    assert grams_of([{"q": text}]).shared([f"彼は{text}と言った"]) == {0}


@pytest.mark.parametrize("name", ["eval/tfns_valid.jsonl.gz", "eval/gsm8k_test.jsonl.gz"])
def test_real_items_as_by_the_definition(name: str, shared_data: Path):
    items = [dict(row) for row in whole_rows(str(DATA / name))][:400]
    planted = [" ".join(str(value) for value in item.values()) for item in items[::7]]
    texts = [json.dumps(row, ensure_ascii=False) for row in whole_rows(str(DATA / name))][400:600] + planted
    found = grams_of(items).shared(texts)
    assert found == by_definition(items, texts)
    assert len(found) > 20
