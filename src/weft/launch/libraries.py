"""The libraries of a run, imported at one go and without looking for garbage meanwhile.

Imports make some 500,000 objects that live as long as the process. Python's collector goes through all of them again
and again while they come, a sixth of the time from a command to its first round.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

from weft.config import RunConfig


@contextlib.contextmanager
def uncollected() -> Iterator[Callable[[], None]]:
    """Pause Python's garbage collector; for processes that exist for one run, not for those of somebody else.

    Yields a function that ends the pause, once. What is there at that moment stays to the end of the process and is
    never looked through again (`gc.freeze`), so it has to be called before rows and weights are loaded. Without a
    call the collector goes on at the end of the context, as it was.
    """
    was_on, ended = gc.isenabled(), False
    gc.disable()

    def end() -> None:
        nonlocal ended
        if not ended:
            gc.freeze()
            if was_on:
                gc.enable()
        ended = True

    try:
        yield end
    finally:
        if not ended and was_on:
            gc.enable()


def import_libraries(config: RunConfig) -> None:
    """Import what loading and training this run's model needs of transformers and peft."""
    if config.endpoint is not None:
        return
    from transformers import (  # noqa: F401
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        PreTrainedModel,
        masking_utils,
        modeling_layers,
    )

    if not config.adapts:
        return
    from weft.models.quantised import without_probing

    if config.load_in_8bit or config.load_in_4bit:
        return
    with without_probing():
        import peft  # noqa: F401
