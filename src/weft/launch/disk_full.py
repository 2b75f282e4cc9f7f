"""The error of a full disk as a sentence: which disk it is, and how to resume once there is room."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weft.config import RunConfig
from weft.core.files import full_disk, is_full
from weft.data.source_kinds import token_cache
from weft.errors import RunError
from weft.runs.layout import RunDir


@contextmanager
def explain_full_disk(config: RunConfig, resume_command: str | None = None) -> Iterator[None]:
    """Turn the error of a disk that is full into one sentence.

    Args:
        config: of the run under way.
        resume_command: the command that resumes it; None: `weft sft --resume` on this machine.

    Raises:
        RunError: one of the disks that the run writes to is full.
    """
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        run = RunDir(config.output_dir)
        folders = [run.path, token_cache(config), Path(tempfile.gettempdir())]
        resume_command = resume_command or f"weft sft --output_dir {shlex.quote(str(run.path))} --resume"
        rounds = run.rounds
        advice = f"then go on with `{resume_command}`: {rounds[-1]} rounds are kept" if rounds else "then start again"
        raise RunError(f"{full_disk(folders)}: make room there, {advice}.") from error
