"""The demo's base model: a byte-level BPE tokenizer trained on public lines, and a random Llama of 0.5 M parameters.

Both are ordinary Hugging Face folders, so the trainer loads them as it loads any model. This module does not
depend on the content of the lines.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from weft.core.files import follow_umask
from weft.core.libraries import Tokenizer
from weft.data.vocabulary import byte_pairs

VOCABULARY = 1280
LONGEST = 128

# A generation prompt ends without a space, because the first token of an answer begins with one.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}A: {{ message['content'] }}{{ eos_token }}"
    "{% elif message['role'] == 'user' %}Q: {{ message['content'] }}\n"
    "{% else %}{{ message['content'] }}\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


def make_base(directory: Path, glossary: Iterable[str], seed: int = 0) -> None:
    """Save a tokenizer trained on the lines of `glossary`, and a Llama drawn from `seed`, in the folder `directory`.

    The same lines and the same seed give the same files; torch's own generator is left as it was.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = make_tokenizer(glossary)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    follow_umask(directory)


def make_tokenizer(lines: Iterable[str]) -> Tokenizer:
    """A fast tokenizer of at most `VOCABULARY` tokens, with `<s>`, `</s>`, `<pad>` and a short chat template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer: Tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_pairs(lines, VOCABULARY),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=LONGEST,
        chat_template=CHAT_TEMPLATE,
    )
    return tokenizer
