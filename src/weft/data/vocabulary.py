"""A tokenizer of one's own, trained on public text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from weft.config import RunConfig
from weft.data.formats import to_examples
from weft.data.load import read_rows, resolve_source


def own_tokenizer(config: RunConfig) -> Any:
    """Return a tokenizer trained on the public text that a run names; DataError if it cannot be read."""
    source = resolve_source(config.tokenizer_text or "", config.local_data_dir)
    made = to_examples(read_rows(source, token=config.token or None), source=source, text_only=True)
    return train_tokenizer((example.answer for example in made.examples), config.vocab_size)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Return a byte-level BPE tokenizer of at most `vocab_size` tokens; the same texts give the same tokenizer."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_pairs(texts, vocab_size)
    # A text begins with <s>, so that its first token is predicted too.
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def byte_pairs(texts: Iterable[str], vocab_size: int) -> Any:
    """Return a byte-level BPE of the `tokenizers` library, with `<s>`, `</s>` and `<pad>` as its first tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
