"""Weft: federated training of large language models on data that may not leave its owners.

    import weft
    run = weft.train({"model_name_or_path": ..., "dataset_name": ..., "use_peft": True, "output_dir": "out"})
    run.summary, run.metrics, run.model, run.tokenizer

Importing this imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from weft.config import RunConfig
    from weft.launch.finished import Run

__all__ = ["open_run", "train"]


def train(
    config: str | Path | dict[str, Any] | RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **keys: Any,
) -> Run:
    """Run a configuration and return the finished run.

    Args:
        config: the path of a run file, its keys as a dict, or the typed object.
        resume: go on with the run in `output_dir`.
        overwrite: delete the run that is in `output_dir`.
        quiet: show no progress.
        **keys: keys that override those of `config`.

    Raises:
        weft.errors.ConfigError: a mistake in the configuration or the data, in one sentence.
    """
    from weft.config import RunConfig, build, read_file
    from weft.launch.train import train as run

    if isinstance(config, RunConfig):
        values = config.model_dump() if keys else None
        typed = build(values | keys) if values is not None else config
    else:
        typed = build((config if isinstance(config, dict) else read_file(config)) | keys)
    return run(typed, resume=resume, overwrite=overwrite, quiet=quiet)


def open_run(path: str | Path, *, round: int | None = None, accept_changed: bool = False) -> Run:
    """Open the run in a directory.

    Args:
        path: the directory.
        round: whose weights are meant, of the rounds that have a checkpoint; None: the newest.
        accept_changed: use them although the base or the tokenizer is not what the run was made from.
    """
    from weft.launch.finished import Run

    return Run(path, round=round, accept_changed=accept_changed)
