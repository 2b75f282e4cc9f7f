"""Warnings of libraries that a user can do nothing about: hidden here, and nowhere else.

Each is matched by its text, so that new warnings stay visible. Weft's own are WeftWarning and never hidden.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

WARNINGS: dict[str, tuple[str, type[Warning]]] = {
    "transformers asks models for a property that it renamed": (".*is_gradient_checkpointing.*", FutureWarning),
    "peft corrects fan_in_fan_out itself where a layer stores its weight transposed": (
        "fan_in_fan_out is set to",
        UserWarning,
    ),
    "peft warns of positions before every prompt; the base model's own are right": (
        "Position ids are not supported",
        UserWarning,
    ),
    "a merge unties tied embeddings, which Weft writes into the configuration": (
        "Model (has|with) `tie_word_embeddings",
        UserWarning,
    ),
    "the same, after untying": ("Input and output embeddings are no longer tied", UserWarning),
    "bitsandbytes multiplies in 16 bits, as is documented for 8-bit weights": (
        "MatMul8bitLt: inputs will be cast from",
        UserWarning,
    ),
}
"""Why a warning is hidden -> regular expression of its beginning, and its category."""

PEFT_WARNINGS: dict[str, tuple[str, type[Warning]]] = {
    "peft passes transformers its cache by the old name": (".*past_key_values.* is deprecated", FutureWarning),
    "peft passes the cache by the old and the new name": (
        ".*[Bb]oth .past_key_values. and .cache. are set",
        FutureWarning,
    ),
}
"""Hidden only around calls of peft: from Weft's own calls of transformers they would show a defect of Weft."""


def ignore_warnings() -> None:
    """Add a filter for each warning above."""
    for begins, category in WARNINGS.values():
        warnings.filterwarnings("ignore", message=begins, category=category)


def silence_libraries() -> None:
    """Silence libraries for the whole process: progress bars, messages about casts, and the warnings above."""
    import transformers.utils.logging as talk

    talk.set_verbosity_error()
    talk.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    ignore_warnings()


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Ignore the warnings above inside the context, around calls of peft; restore the filters afterwards."""
    with warnings.catch_warnings():
        ignore_warnings()
        for begins, category in PEFT_WARNINGS.values():
            warnings.filterwarnings("ignore", message=begins, category=category)
        yield
