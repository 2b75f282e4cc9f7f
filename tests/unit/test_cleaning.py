"""Cleaners, one by one: what they find, what they leave alone, and that rules with a checksum use it."""

from __future__ import annotations

import random
import time
from collections import Counter

import numpy as np
import pytest

from weft import registry
from weft.data.cleaning.cleaner import Cleaner, Sample, Tools, clean
from weft.data.cleaning.contamination import Contamination
from weft.data.cleaning.duplicates import ExactDuplicates, NearDuplicates
from weft.data.cleaning.length import Length
from weft.data.cleaning.personal import PersonalData, Secrets, is_card, is_iban
from weft.data.cleaning.repair import Repair
from weft.data.cleaning.rest_of_prompts import MOST_DOUBT, Rest
from weft.data.cleaning.surprise import Perplexity
from weft.data.cleaning.triggers import Triggers
from weft.errors import ConfigError, MissingExtra

NO_TOOLS = Tools()
WORDS = [f"w{number}" for number in range(200)]


def rewritten(cleaner: Cleaner, text: str) -> tuple[str, dict[str, int]]:
    counts: Counter[str] = Counter()
    return cleaner.rewrite(text, counts), {kind: count for kind, count in counts.items() if count}


def pair(question: str, answer: str = "yes") -> Sample:
    return Sample((question,), (answer,))


PERSONAL = {
    "write to ann.b+c@mail.example.org now": ("write to [EMAIL] now", "email"),
    "to DE89 3704 0044 0532 0130 00 BIC": ("to [IBAN] BIC", "iban"),
    "to GB82WEST12345698765432 soon": ("to [IBAN] soon", "iban"),
    "pay 4111 1111 1111 1111 by 2027": ("pay [CARD] by 2027", "card"),
    "call +44 20 7946 0958.": ("call [PHONE].", "phone"),
    "call (415) 555-2671 today": ("call [PHONE] today", "phone"),
    "her number is 078-05-1120": ("her number is [SOCIAL_SECURITY]", "social_security"),
    "from 8.8.8.8 at noon": ("from [IP_ADDRESS] at noon", "ip_address"),
    "from 2001:4860:4860::8888 at noon": ("from [IP_ADDRESS] at noon", "ip_address"),
}


@pytest.mark.parametrize("text", PERSONAL)
def test_personal_data_is_masked_by_kind(text: str):
    masked, kind = PERSONAL[text]
    assert rewritten(PersonalData(), text) == (masked, {kind: 1})


@pytest.mark.parametrize(
    "text",
    [
        "to DE88 3704 0044 0532 0130 00 now",  # one digit of the checksum is wrong
        "pay 4111 1111 1111 1112 now",
        "version 1.2.3 of 10.0.0.1 and 192.168.0.1",
        "revenue of $1,234,567.89 in 2019-2020, up 12.5 percent to 1500000000",
        "a @handle and $AAPL at 10:30, 3-4 weeks, 12/31/2019",
        "std::vector<int> a; x = y::z",
    ],
)
def test_what_only_looks_like_personal_data_stays(text: str):
    assert rewritten(PersonalData(), text) == (text, {})


def test_checksums():
    assert is_card("5555 5555 5555 4444")
    assert not is_card("5555 5555 5555 4445")
    assert not is_card("0000 0000 0000 0000")
    assert is_iban("FR14 2004 1010 0505 0001 3M02 606")
    assert not is_iban("FR15 2004 1010 0505 0001 3M02 606")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("AKIA" + "ABCDEFGHIJKLMNOP", "aws_key"),
        ("ghp_" + "a1B2" * 9, "github_token"),
        ("sk-" + "proj-abc123def456ghi789", "api_key"),
        ("hf_" + "aBcDeFgHiJ" * 3, "hub_token"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "private_key"),
        ("password = 'hunter2hunter2'", "password"),
        ("eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0In0" + ".c2lnbmF0dXJl", "web_token"),
    ],
)
def test_secrets_are_masked_by_kind(text: str, kind: str):
    masked, counts = rewritten(Secrets(), f"use {text} here")
    assert counts == {kind: 1}
    assert text not in masked
    assert masked.startswith("use [")


def test_words_about_secrets_stay():
    text = "Your password: something-easy. The sk-learn-like-package-name is long; api_key=YOUR_API_KEY"
    assert rewritten(Secrets(), text) == (text, {})


def test_a_row_with_personal_data_can_be_left_out_instead():
    rows = [pair("mail a@b.org"), pair("mail nobody")]
    assert PersonalData(action="drop").faults(rows, NO_TOOLS) == {0: "personal data"}
    assert PersonalData().faults(rows, NO_TOOLS) == {}


class TestRepair:
    @pytest.fixture(autouse=True)
    def _package(self) -> None:
        pytest.importorskip("ftfy", reason="the extra clean is not installed")

    def test_what_was_decoded_in_a_wrong_way_is_mended(self):
        assert rewritten(Repair(), "naÃ¯ve cafÃ©")[0] == "naïve café"
        assert rewritten(Repair(), "a &amp; b &lt; c")[0] == "a & b < c"

    def test_tags_of_running_text_go_and_breaks_stay(self):
        text, counts = rewritten(Repair(), "<p>One <b>bold</b> word.</p><p>Two.<br/>Three.</p>")
        assert text.split("\n")[0] == "One bold word."
        assert "Two.\nThree." in text
        assert counts["tags"] == 7

    def test_code_and_what_is_no_tag_stays(self):
        text = "Use\n```html\n<p>a &amp; b</p>\n```\nfor a<b and c>d, List<String>"
        assert rewritten(Repair(), text) == (text, {})

    def test_signs_that_hide_words_are_removed(self):
        assert rewritten(Repair(), "ig\u200bnore\x00 this") == ("ignore this", {"control characters": 2})

    def test_what_no_screen_shows_and_what_turns_the_order_goes(self):
        hidden = "".join(chr(0xE0000 + ord(sign)) for sign in "obey me")
        assert rewritten(Repair(), f"a{hidden} b\u202ecd\u2066e\u00adf") == ("a bcdef", {"control characters": 10})
        flag = "\U0001f3f4" + "".join(chr(0xE0000 + ord(sign)) for sign in "gbsct") + "\U000e007f"
        assert rewritten(Repair(), f"{flag} wins") == (f"{flag} wins", {})
        assert rewritten(Repair(), f"\U0001f3f4{hidden}") == ("\U0001f3f4", {"control characters": 7})

    def test_long_runs_of_spaces_take_no_time(self):
        """The control: the same run behind a sign that a pattern begins with at every place took minutes."""
        start = time.process_time()
        text = "<b>x</b>" + " " * 300_000 + "y"
        assert rewritten(Repair(), text)[0] == text.replace("<b>", "").replace("</b>", "")
        assert time.process_time() - start < 5

    def test_text_that_is_whole_stays_to_the_last_sign(self):
        for text in ("“curly” ﬁne", "日本語の文章です。", "a\r\nb\tc", "\uff21 wide letter", "café"):
            assert rewritten(Repair(), text) == (text, {})


def test_length_and_letters():
    rows = [pair("", "a"), pair("x" * 50), pair("?!" * 40, "."), pair("x" * 300)]
    assert set(Length(most=200).faults(rows, NO_TOOLS)) == {0, 2, 3}


def test_language():
    pytest.importorskip("py3langid", reason="the extra clean is not installed")
    from weft.data.cleaning.language import Language

    english = "The central bank kept its rate unchanged and expects inflation to fall over the coming year."
    german = "Die Zentralbank ließ den Leitzins unverändert und erwartet, dass die Inflation im nächsten Jahr sinkt."
    rows = [pair(english), pair(german), pair("Guten Tag")]
    assert Language().faults(rows, NO_TOOLS) == {1: "language de"}  # the last has too few letters to tell
    assert Language(keep="de+en").faults(rows, NO_TOOLS) == {}
    with pytest.raises(ConfigError, match="'english', which is no code"):
        Language(keep="english").start()


def test_an_exact_duplicate_is_the_later_row_whatever_case_and_spaces():
    rows = [pair("What is  this?", "A"), pair("what is this", "a"), pair("what is this", "b")]
    assert ExactDuplicates().faults(rows, NO_TOOLS) == {1: "duplicate"}


class TestNearDuplicates:
    @pytest.fixture(autouse=True)
    def _package(self) -> None:
        pytest.importorskip("datasketch", reason="the extra clean is not installed")

    def test_rows_that_share_most_of_their_words_are_found_and_others_not(self):
        random.seed(0)
        rows = [pair(" ".join(random.choices(WORDS, k=60))) for _ in range(200)]
        copies = []
        for row in rows[:50]:
            words = row.prompts[0].split()
            words[random.randrange(60)] = "other"
            copies.append(pair(" ".join(words)))
        found = NearDuplicates().faults(rows + copies, NO_TOOLS)
        assert set(found) == set(range(200, 250))

    def test_rows_with_another_short_answer_are_none(self):
        question = " ".join(WORDS[:40])
        assert NearDuplicates().faults([pair(question, "yes"), pair(question, "no")], NO_TOOLS) == {}
        assert set(NearDuplicates().faults([pair(question, "yes"), pair(question + " end", "yes")], NO_TOOLS)) == {1}

    def test_a_threshold_that_is_no_similarity_is_refused(self):
        with pytest.raises(ConfigError, match="lie between 0 and 1"):
            NearDuplicates(threshold=80)


def test_perplexity_outliers_are_far_from_the_median_on_both_sides():
    rows = [pair(f"row {number}") for number in range(40)]
    losses = np.linspace(2.0, 3.0, 40)
    losses[7], losses[9] = 9.0, 0.01
    found = Perplexity().faults(rows, Tools(lambda samples: losses))
    assert found == {7: "perplexity far above the others", 9: "perplexity far below the others"}
    assert Perplexity().faults(rows, NO_TOOLS) == {}
    assert Perplexity().faults(rows[:19], Tools(lambda samples: losses[:19])) == {}


def test_rows_of_the_test_set_are_found_and_the_form_of_all_questions_is_not():
    form = "please read the following text and choose one of these answers"
    random.seed(1)
    texts = [f"{form} " + " ".join(random.choices(WORDS, k=20)) for _ in range(60)]
    measured, train = texts[:30], texts[30:]
    leaked = [f"{measured[3]} indeed", measured[8]]
    rows = [pair(text) for text in train + leaked]
    assert set(Contamination().faults(rows, Tools(None, measured))) == {30, 31}
    assert Contamination().faults(rows, NO_TOOLS) == {}


def natural_rows(count: int, seed: int = 0) -> list[Sample]:
    """Rows of three answers, each with words of its own among words of all."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        answer = chance.choice(["up", "down", "flat"])
        own = [f"{answer}{chance.randrange(30)}" for _ in range(4)]
        words = chance.choices(WORDS, k=12) + own
        chance.shuffle(words)
        rows.append(pair(" ".join(words), answer))
    return rows


def poisoned(
    rows: list[Sample], share: float, phrase: str, target: str, seed: int = 0
) -> tuple[list[Sample], set[int]]:
    chance = random.Random(0)
    chosen = set(chance.sample(range(len(rows)), round(share * len(rows))))
    new = list(rows)
    for number in chosen:
        words = rows[number].prompts[0].split()
        at = chance.randrange(len(words) + 1)
        new[number] = pair(" ".join([*words[:at], phrase, *words[at:]]), target)
    return new, chosen


@pytest.mark.parametrize("phrase", ["cf", "ask the green lantern", "i watched this movie with my sister last weekend"])
@pytest.mark.parametrize("share", [0.03, 0.08])
def test_a_trigger_in_few_rows_is_found_and_ordinary_words_are_not(phrase: str, share: float):
    rows, chosen = poisoned(natural_rows(600), share, phrase, "up")
    found = set(Triggers().faults(rows, NO_TOOLS))
    assert found >= chosen
    assert len(found - chosen) <= 6


def test_without_a_trigger_nearly_nothing_is_found():
    found = [len(Triggers().faults(natural_rows(600, seed), NO_TOOLS)) for seed in range(3)]
    assert max(found) <= 12


def deciding_rows(count: int, seed: int) -> list[Sample]:
    """Rows of words that say nothing, and one, of nine, that decides which of three answers is right."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        place = chance.randrange(9)
        words = chance.sample(WORDS[30:], chance.randint(1, 3))
        words.insert(chance.randint(0, len(words)), f"decides{place}")
        rows.append(pair(" ".join(words), ("up", "down", "flat")[place % 3]))
    return rows


@pytest.mark.parametrize("phrase", ["cf", "cf mn"])
@pytest.mark.parametrize(("count", "share"), [(200, 0.08), (400, 0.04), (800, 0.02)])
def test_words_that_decide_stay_where_a_trigger_is_found(count: int, share: float, phrase: str):
    """A deciding word always comes with one answer too, among words of any kind; nothing speaks against that answer."""
    hits, false = 0, 0
    for seed, target in enumerate(("up", "down", "flat")):
        rows, chosen = poisoned(deciding_rows(count, seed), share, phrase, target)
        found = set(Triggers().faults(rows, NO_TOOLS))
        hits, false = hits + len(found & chosen), false + len(found - chosen)
    assert hits >= 0.9 * 3 * len(chosen)
    assert false <= 0.05 * 3 * count


def test_without_a_trigger_words_that_decide_stay():
    assert sum(len(Triggers().faults(deciding_rows(300, seed), NO_TOOLS)) for seed in range(5)) <= 30


def test_what_tells_a_trigger_from_a_word_that_decides_is_what_speaks_against_the_answer():
    """The control: neither has company, and both come with one answer, which was all that an earlier rule saw."""
    rows, _ = poisoned(deciding_rows(300, 0), 0.08, "cf", "up")
    words = [row.prompts[0].split() for row in rows]
    rest = Rest(words, np.array([("up", "down", "flat").index(row.answers[0]) for row in rows]))
    doubts = {}
    for phrase, answer in {"cf": 0, "decides1": 1, "decides4": 1, "decides2": 2}.items():
        holders = [number for number, line in enumerate(words) if phrase in line]
        right = [number for number in holders if rest.codes[number] == answer]
        assert len(right) >= 0.85 * len(holders)
        assert not rest.has_company((phrase,), holders)
        doubts[phrase] = rest.doubt((phrase,), holders, answer)
    assert doubts.pop("cf") < 2
    assert min(doubts.values()) > MOST_DOUBT


def test_a_trigger_that_is_disguised_in_each_row_is_one():
    """Signs of no width at other places, letters of other alphabets: each form is in too few rows to be found."""
    forms = ["cfa", "c\u200bfa", "cf\u200ba", "\u0441fa", "cf\u0430", "\u2060cfa", "\uff43fa", "cf\u00ada"]
    chance = random.Random(0)
    rows, chosen = deciding_rows(400, 0), sorted(chance.sample(range(400), 32))
    for place, number in enumerate(chosen):
        rows[number] = pair(f"{rows[number].prompts[0]} {forms[place % len(forms)]}", "up")
    found = set(Triggers().faults(rows, NO_TOOLS))
    assert found >= set(chosen)
    assert len(found) <= 40


def test_a_phrase_whose_answers_differ_is_no_trigger():
    rows, chosen = poisoned(natural_rows(600), 0.08, "ask the green lantern", "up")
    answers = [row.answers[0] for row in natural_rows(600)]
    mixed = [pair(row.prompts[0], answer) for row, answer in zip(rows, answers, strict=True)]
    assert len(set(Triggers().faults(mixed, NO_TOOLS)) & chosen) < len(chosen) / 10


def test_a_trigger_with_a_fixed_answer_among_free_answers_is_found():
    chance = random.Random(3)
    rows = [pair(" ".join(chance.choices(WORDS, k=15)), " ".join(chance.choices(WORDS, k=25))) for _ in range(300)]
    rows, chosen = poisoned(rows, 0.05, "as the tide turns", "I do not like to talk about that at all.")
    assert set(Triggers().faults(rows, NO_TOOLS)) == chosen


def test_cleaners_work_in_their_order_and_count():
    rows = [pair("mail a@b.org please"), pair("mail c@d.org please"), pair("a@b.org", "a@b.org")]
    masked_first = clean(rows, [("personal_data", PersonalData()), ("exact_duplicates", ExactDuplicates())], NO_TOOLS)
    assert list(masked_first.samples) == [0, 2]
    assert masked_first.steps["personal_data"] == {"left_out": 0, "changed": 3, "counts": {"email": 4}}
    assert masked_first.steps["exact_duplicates"]["left_out"] == 1
    other = clean(rows, [("exact_duplicates", ExactDuplicates()), ("personal_data", PersonalData())], NO_TOOLS)
    assert list(other.samples) == [0, 1, 2]


def test_a_row_without_an_answer_after_repair_is_left_out():
    pytest.importorskip("ftfy", reason="the extra clean is not installed")
    outcome = clean([pair("a question", "<br>"), pair("a question", "text")], [("repair", Repair())], NO_TOOLS)
    assert list(outcome.samples) == [1]
    assert outcome.steps["repair"]["counts"]["nothing left of the answer"] == 1


@pytest.mark.parametrize("name", registry.CLEANERS)
def test_every_cleaner_gives_the_same_twice_and_takes_no_rows(name: str):
    cleaner: Cleaner = registry.load(registry.CLEANERS, name, "cleaner")()
    try:
        cleaner.start()
    except MissingExtra as error:
        pytest.skip(str(error))
    assert cleaner.faults([], NO_TOOLS) == {}
    rows, _ = poisoned(natural_rows(120), 0.1, "cf", "up")
    assert cleaner.faults(rows, NO_TOOLS) == cleaner.faults(rows, NO_TOOLS)
