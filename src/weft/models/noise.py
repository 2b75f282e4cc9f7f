"""What libraries say of themselves, which no user could mend: kept quiet here, and nowhere else.

Each warning is named by its words, so that one that is new is seen. Weft's own are WeftWarning and never hidden.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

KNOWN: dict[str, tuple[str, type[Warning]]] = {
    "transformers asks models for a property that it renamed": (".*is_gradient_checkpointing.*", FutureWarning),
    "peft is told by the layers that weights lie the other way round, and turns them": (
        "fan_in_fan_out is set to",
        UserWarning,
    ),
    "peft says so of prompts whatever positions are given; those that count are the model's own": (
        "Position ids are not supported",
        UserWarning,
    ),
    "a merge unties what is tied, and says how": (
        "Model (has|with) `tie_word_embeddings",
        UserWarning,
    ),
    "and that what it unties is tied no longer": ("Input and output embeddings are no longer tied", UserWarning),
    "bitsandbytes computes in 16 bits, as its users know who ask for 8": (
        "MatMul8bitLt: inputs will be cast from",
        UserWarning,
    ),
}
"""Why a warning means nothing to a user -> how it begins, and its category."""

OF_PEFT: dict[str, tuple[str, type[Warning]]] = {
    "peft hands transformers its cache by the former name": (".*past_key_values.* is deprecated", FutureWarning),
    "and by both": (".*[Bb]oth .past_key_values. and .cache. are set", FutureWarning),
}
"""What is known only where peft calls transformers: from Weft's own calls it would be a fault of Weft's."""


def ignore_known() -> None:
    """Add a filter for each warning that is known."""
    for begins, category in KNOWN.values():
        warnings.filterwarnings("ignore", message=begins, category=category)


def hush() -> None:
    """Silence libraries in this process: progress bars, words about casts, the warnings that are known."""
    import transformers.utils.logging as talk

    talk.set_verbosity_error()
    talk.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    ignore_known()


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Ignore the known warnings inside, around calls of peft, and put the filters back."""
    with warnings.catch_warnings():
        ignore_known()
        for begins, category in OF_PEFT.values():
            warnings.filterwarnings("ignore", message=begins, category=category)
        yield
