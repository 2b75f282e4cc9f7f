"""Checks of the keys of cleaning, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft import kinds, plugins
from weft.errors import ConfigError

if TYPE_CHECKING:
    from weft.keys import RunConfig


def check(config: RunConfig) -> None:
    """Refuse cleaners that there are not, parameters of none of them, and a cleaner without its model.

    Raises:
        ConfigError: with the remedy.
    """
    for name in config.clean:
        kinds.check_part("clean", name)
    if len(set(config.clean)) < len(config.clean):
        raise ConfigError("clean names a cleaner twice: leave one of them out.")
    names = [plugins.public_name(name) for name in config.clean]
    for key in config.clean_args:
        cleaner, dot, parameter = key.rpartition(".")
        if not dot or not parameter or cleaner not in names:
            raise ConfigError(
                f"clean_args holds '{key}', and parameters are those of the cleaners in clean "
                f"({', '.join(names) or 'none'}): write CLEANER.NAME=VALUE, such as near_duplicates.threshold=0.9."
            )
    if "perplexity" in config.clean and (config.from_scratch or config.endpoint or config.parallel != "none"):
        raise ConfigError(
            "The cleaner perplexity asks the starting model, which has to be pretrained and in this process: leave "
            "perplexity out of --clean, or leave out --size, --endpoint and --parallel."
        )
