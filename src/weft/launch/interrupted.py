"""Training that can be stopped from the keyboard or a notebook: what was done stays, and one sentence says so."""

from __future__ import annotations

from typing import Any

from weft.config import RunConfig
from weft.errors import Interrupted
from weft.launch.run import Run
from weft.launch.train import train
from weft.runs.layout import RunDir


def interruptible(config: RunConfig, **options: Any) -> Run:
    """Run a configuration as `weft.launch.train.train` does, which says more of the arguments and errors.

    Raises:
        Interrupted: it was stopped; the round under way was dropped, the ones before it are committed.
    """
    try:
        return train(config, **options)
    except Interrupted:
        raise
    except KeyboardInterrupt:
        if not RunDir(config.output_dir).holds_run:
            raise Interrupted(
                f"interrupted before a round was done; nothing is left in '{config.output_dir}'."
            ) from None
        raise Interrupted(
            "interrupted; the finished rounds are kept. Go on with: "
            f"weft.train(output_dir={config.output_dir!r}, resume=True)"
        ) from None
