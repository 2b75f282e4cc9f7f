"""Rows of fill-in-the-middle and of prefixes, against rows worked out by hand and against Code Llama's template."""

from __future__ import annotations

import numpy as np
import pytest

from weft.data.infilling import Infilling, after_prefix, two_places
from weft.errors import ConfigError
from weft.keys.pretraining import mixture_shares, tasks_of
from weft.objectives.pretraining import PretrainingTasks

BOS, EOS, PRE, SUF, MID = 1, 2, 90, 91, 92
INFILLING = Infilling(PRE, SUF, MID, (BOS,), EOS)


def row(*ids: int, unlearnt: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return np.array(ids, dtype=np.int32), np.arange(len(ids)) >= unlearnt


def shown(made: tuple[np.ndarray, np.ndarray]) -> tuple[list[int], list[int]]:
    """Return the tokens, and those of them that are learnt."""
    ids, learn = made
    return ids.tolist(), ids[learn].tolist()


def test_a_whole_document_is_rearranged_as_by_hand():
    """<s> 11 12 13 14 15 </s> with the middle 13 14; the end of the document ends the middle, and is there once."""
    document = row(BOS, 11, 12, 13, 14, 15, EOS)
    assert shown(INFILLING.rearranged(document, 3, 5)) == (
        [BOS, PRE, 11, 12, SUF, 15, MID, 13, 14, EOS],
        [11, 12, 15, 13, 14, EOS],
    )
    assert shown(INFILLING.rearranged(document, 3, 5, suffix_first=True)) == (
        [BOS, PRE, SUF, 15, MID, 11, 12, 13, 14, EOS],
        [15, 11, 12, 13, 14, EOS],
    )
    assert shown(INFILLING.rearranged(document, 3, 5, middle_only=True)) == (
        [BOS, PRE, 11, 12, SUF, 15, MID, 13, 14, EOS],
        [13, 14, EOS],
    )


def test_a_piece_within_a_document_keeps_what_the_row_before_learnt_unlearnt():
    """The piece begins with the last token of the one before (11), which moves with the prefix and is not learnt."""
    piece = row(11, 12, 13, 14)
    assert shown(INFILLING.rearranged(piece, 2, 3)) == ([PRE, 11, 12, SUF, 14, MID, 13, EOS], [12, 14, 13, EOS])
    # In the middle it is not learnt either, wherever the middle goes.
    assert shown(INFILLING.rearranged(piece, 0, 2)) == ([PRE, SUF, 13, 14, MID, 11, 12, EOS], [13, 14, 12, EOS])
    assert shown(INFILLING.rearranged(piece, 4, 4, suffix_first=True)) == (
        [PRE, SUF, MID, 11, 12, 13, 14, EOS],
        [12, 13, 14, EOS],
    )


def test_without_a_token_before_texts_nothing_stays_in_front():
    bare = Infilling(PRE, SUF, MID, (), EOS)
    assert shown(bare.rearranged(row(11, 12, 13, EOS), 1, 2)) == ([PRE, 11, SUF, 13, MID, 12, EOS], [13, 12, EOS])


def test_the_suffix_alone_is_learnt_after_a_prefix():
    assert shown(after_prefix(row(BOS, 11, 12, 13, EOS), 3)) == ([BOS, 11, 12, 13, EOS], [13, EOS])


@pytest.mark.parametrize("suffix_first", [False, True])
def test_the_beginning_is_the_prompt_that_code_llama_takes(suffix_first: bool):
    """transformers' own template of Code Llama, of both orders, is what stands before the middle."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import CodeLlamaTokenizer

    words = {
        "<unk>": 0,
        "<s>": BOS,
        "</s>": EOS,
        "a": 11,
        "b": 12,
        "c": 13,
        "▁<PRE>": PRE,
        "▁<SUF>": SUF,
        "▁<MID>": MID,
    }
    words |= {"▁": 3, "▁<EOT>": 93, "<FILL_ME>": 94}
    theirs = CodeLlamaTokenizer(vocab=words, merges=[])
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["▁<PRE>", "▁<SUF>", "▁<MID>"])
    theirs._tokenizer = backend
    theirs.set_infilling_processor(False, suffix_first=suffix_first)
    backend.normalizer = normalizers.Sequence([])  # theirs writes spaces as Llama 2 does; the template is asked for
    prompt = backend.encode("a b", "c").ids
    made, learn = INFILLING.rearranged(
        row(BOS, 11, 12, 77, 78, 13, EOS), 3, 5, suffix_first=suffix_first, middle_only=True
    )
    assert prompt == made[: np.flatnonzero(learn)[0]].tolist()


def objective(spm_share: float = 0.5, **shares: float) -> PretrainingTasks:
    return PretrainingTasks(shares=shares, spm_share=spm_share, infilling=INFILLING)


def kind(made: tuple[np.ndarray, np.ndarray], whole: tuple[np.ndarray, np.ndarray]) -> str:
    if PRE in made[0]:
        at = made[0].tolist().index(PRE)
        return "spm" if made[0][at + 1] == SUF else "psm"
    return "causal" if made[1].sum() == whole[1].sum() else "prefix"


def test_tasks_have_their_shares_within_three_deviations_and_no_token_is_lost():
    rows = [row(BOS, *np.random.default_rng(place).integers(10, 80, 40), EOS) for place in range(3000)]
    made = objective(fim=0.5, prefix=0.2, causal=0.3).act(None, rows, 7)
    kinds = [kind(new, old) for new, old in zip(made, rows, strict=True)]
    # A prefix of no token makes a causal row, once in 41; an empty prefix in PSM looks like SPM, once in about 40.
    for name, share in (("spm", 0.25 + 0.25 * 2 / 43), ("psm", 0.25 * 41 / 43), ("prefix", 0.2 * 40 / 41)):
        deviation = (share * (1 - share) * len(rows)) ** 0.5
        assert abs(kinds.count(name) - share * len(rows)) < 3.5 * deviation, name
    for new, old in zip(made, rows, strict=True):
        assert sorted(set(new[0].tolist()) - {PRE, SUF, MID}) == sorted(set(old[0].tolist()))
        assert len(new[0]) - len(old[0]) in (0, 3)
        if PRE in new[0]:
            assert sorted(new[0][new[1]].tolist()) == sorted(old[0][old[1]].tolist())


def test_draws_follow_from_the_seed_and_the_row_alone():
    rows = [row(BOS, *range(10, 30), EOS), row(BOS, *range(30, 60), EOS), row(BOS, 11)]
    tasks = objective(fim=1.0)
    made, again = tasks.act(None, rows, 3), tasks.act(None, rows[::-1], 3)[::-1]
    assert [shown(one) for one in made] == [shown(one) for one in again]
    assert [shown(one) for one in made] != [shown(one) for one in tasks.act(None, rows, 4)]
    assert shown(made[2]) == shown(rows[2])  # one token of text: too short to be cut


def test_places_are_uniform_over_all_pairs():
    rng = np.random.default_rng(0)
    found = [two_places(rng, 0, 3) for _ in range(8000)]
    counts = {pair: found.count(pair) / len(found) for pair in set(found)}
    # Two of 4 places with replacement: an equal pair has 1/16, another one 2/16.
    for (first, last), share in counts.items():
        assert share == pytest.approx(1 / 16 if first == last else 2 / 16, abs=0.012)
    assert len(counts) == 10


def test_shares_of_tasks_and_mixtures_are_read_or_refused_in_a_sentence():
    assert tasks_of("causal") == {"causal": 1.0}
    assert tasks_of("fim") == {"fim": 1.0}
    assert tasks_of("fim=0.5,prefix=0.2") == pytest.approx({"causal": 0.3, "fim": 0.5, "prefix": 0.2})
    assert mixture_shares("a=0.25, b=0.75") == {"a": 0.25, "b": 0.75}
    assert mixture_shares("temperature") is None
    for text, said in (
        ("fmi=0.5", "did you mean 'fim'"),
        ("prefx", "did you mean 'prefix'"),
        ("fim=0.7,prefix=0.7", "add up to 1.4"),
        ("causal=0.2,fim=0.2", "add up to 0.4"),
        ("fim=much", "no name=number"),
        ("fim=0.1,fim=0.2", "twice"),
        ("fim=-0.1", "number from 0"),
        ("fim=0", "leave 'fim' out"),
    ):
        with pytest.raises(ConfigError, match=said):
            tasks_of(text)
    for text, said in (("a=0.5,b=0.4", "add up to 0.9"), ("temprature", "did you mean 'temperature'")):
        with pytest.raises(ConfigError, match=said):
            mixture_shares(text)
