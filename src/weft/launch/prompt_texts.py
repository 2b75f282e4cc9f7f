"""Text files that a run names are read where the run is submitted; only their text is sent to sites.

A site takes values and opens nothing: a path that a run names would be read on the site's machine, not on its author's.
"""

from __future__ import annotations

from pathlib import Path

from weft.config import RunConfig
from weft.errors import ConfigError

LONGEST = 250
"""Characters that a path may have; what is longer is a text."""


def with_prompt_texts(config: RunConfig) -> RunConfig:
    """Return the run with `prompt_candidates` that are files of texts, one a line, replaced by these texts.

    Raises:
        ConfigError: a file that cannot be read.
    """
    texts: list[str] = []
    for word in config.prompt_candidates:
        path = Path(word).expanduser()
        if len(word) < LONGEST and path.suffix == ".txt" and path.is_file():
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError):
                raise ConfigError(
                    f"prompt_candidates names '{word}', which cannot be read as UTF-8: save it as UTF-8 text."
                ) from None
            texts += [line.strip() for line in lines if line.strip()]
        else:
            texts.append(word)
    return config if texts == config.prompt_candidates else config.model_copy(update={"prompt_candidates": texts})
