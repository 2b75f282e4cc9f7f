"""The day that chat templates with a clock write: one for a whole run, so that a run that goes on has the same."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from weft.config import RunConfig
from weft.core.files import write_atomic
from weft.core.libraries import Tokenizer
from weft.data.templates import CLOCK
from weft.errors import ConfigError
from weft.runs.layout import RunDir


def today() -> str:
    """Return the day, as 2026-01-31."""
    return date.today().isoformat()


def dated(config: RunConfig, tokenizer: Tokenizer, *, resume: bool = False, kept_in: Path | None = None) -> RunConfig:
    """Return the configuration with the day that its chat template writes, if that has a clock and none is named.

    Args:
        config: the run.
        tokenizer: of the model.
        resume: the day is that of the run in its directory.
        kept_in: a folder that keeps the day in a file, where no configuration is kept.
    """
    if config.template_date is not None or CLOCK not in str(getattr(tokenizer, "chat_template", None) or ""):
        return config
    if kept_in is not None:
        return config.model_copy(update={"template_date": _kept(kept_in / "day")})
    run = RunDir(config.output_dir)
    kept = run.read_config().get("template_date") if resume and run.holds_run else None
    return config.model_copy(update={"template_date": kept or today()})


def _kept(file: Path) -> str:
    if not file.is_file():
        write_atomic(file, today().encode())
    return file.read_text(encoding="utf-8")


def keep_template(config: RunConfig, run: RunDir, tokenizer: Tokenizer) -> None:
    """Keep a copy of the user's own template with the run; ConfigError if it has changed since the run began."""
    if config.prompt_template is None:
        return
    text = str(tokenizer.chat_template).encode()
    if run.template_file.is_file() and run.template_file.read_bytes() != text:
        raise ConfigError(
            f"The template '{config.prompt_template}' has changed since the run began: put the run's own "
            f"'{run.template_file}' in its place, or begin a new run."
        )
    write_atomic(run.template_file, text)
