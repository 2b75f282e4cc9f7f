"""Training a tokenizer: on public text, or federated, on sums of the clients' counts of frequent words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from weft.config import RunConfig
from weft.core.libraries import Tokenizer
from weft.core.secret import Secret
from weft.data.load import resolve_source
from weft.data.texts import text_sources
from weft.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as BytePairs
    from tokenizers.pre_tokenizers import PreTokenizer

MOST = 50_000_000
"""The most words that a tokenizer is trained on; beyond that, all counts are scaled down."""


def train_on_public_text(config: RunConfig) -> Tokenizer:
    """Return a tokenizer trained on the public text that a run names; DataError if it cannot be read."""
    source = resolve_source(config.tokenizer_text or "", config.local_data_dir)
    documents = (document for text in text_sources(source, token=config.token or None) for document in text.documents())
    return train_tokenizer((document.text for document in documents if document.text is not None), config.vocab_size)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer of at most `vocab_size` tokens; the same texts give the same tokenizer."""
    return _to_transformers(byte_pairs(texts, vocab_size))


def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer whose tokens are bytes."""
    return train_tokenizer([], 259)


def words_of(texts: Iterable[str], least: int) -> dict[str, int]:
    """Return what a client sends: how often it has each word that it has at least `least` times.

    Words are what byte-level BPE never joins: letters, digits or signs with the space before them.
    """
    from tokenizers import pre_tokenizers

    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text[first:last] for _, (first, last) in split.pre_tokenize_str(text))
    # NUL separates words in `_repeat_words`.
    return {word: count for word, count in counts.items() if count >= least and "\0" not in word}


def common_words(
    client_counts: Sequence[dict[str, int]], clients: int, noise: float, secret: Callable[[], Secret]
) -> dict[str, int]:
    """Return the sums of the words that at least `clients` clients sent, in alphabetical order.

    Args:
        client_counts: word -> count of each client.
        clients: how many clients must have sent a word.
        noise: scale b of the discrete Laplace noise that is added to each sum, P(z) ~ exp(-|z| / b); sums that
            fall under 1 are left out.
        secret: returns the secret of the party that adds up; the noise is drawn from it.

    Raises:
        DataError: no word is left.
    """
    sums: Counter[str] = Counter()
    num_senders: Counter[str] = Counter()
    for counts in client_counts:
        sums.update(counts)
        num_senders.update(counts.keys())
    # Sorted, so that the noise of a word does not depend on the order in which counts arrive.
    frequent = {word: sums[word] for word in sorted(sums) if num_senders[word] >= clients}
    if noise:
        noises = secret().laplace(len(frequent), noise, "tokenizer")
        frequent = {
            word: count for word, z in zip(frequent, noises, strict=True) if (count := frequent[word] + int(z)) > 0
        }
    if not frequent:
        raise DataError(
            f"No word was sent by {clients} clients, so there is nothing to train a tokenizer on: write a smaller "
            "--tokenizer_min_count or --tokenizer_min_clients."
        )
    return frequent


def tokenizer_of_words(words: dict[str, int], vocab_size: int, most: int = MOST) -> Tokenizer:
    """Return the tokenizer that `train_tokenizer` would make of a text with so many of each word.

    With more than `most` words in all, the counts are scaled down by one factor.
    """
    from tokenizers import pre_tokenizers

    split_at_nul = pre_tokenizers.Split("\0", "removed")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = byte_pairs(_repeat_words(words, most), vocab_size, pre_tokenizers.Sequence([split_at_nul, byte_level]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _to_transformers(tokenizer)


def _repeat_words(words: dict[str, int], most: int) -> Iterator[str]:
    """Yield every word as often as it is counted, separated by NUL."""
    share = min(1.0, most / sum(words.values()))
    for word, count in words.items():
        remaining = max(1, round(count * share))
        while remaining > 0:
            yield f"{word}\0" * min(remaining, 1000)
            remaining -= 1000


def _to_transformers(tokenizer: BytePairs) -> Tokenizer:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    # A text begins with <s>, so that its first token is predicted too.
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast: Tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    return fast


def byte_pairs(texts: Iterable[str], vocab_size: int, words: PreTokenizer | None = None) -> BytePairs:
    """Return a byte-level BPE of the `tokenizers` library, with `<s>`, `</s>` and `<pad>` as its first tokens.

    Args:
        texts: to train it on.
        vocab_size: tokens at most.
        words: the pre-tokenizer that splits the texts into words [byte-level BPE's].
    """
    from tokenizers import Tokenizer as BytePairs
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = BytePairs(models.BPE())
    tokenizer.pre_tokenizer = words or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
