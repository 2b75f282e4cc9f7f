"""Weft: federated training of large language models on data that may not leave its owners.

    import weft
    run = weft.train(model_name_or_path=..., dataset_name=..., use_peft=True, output_dir="out")
    run.summary, run.metrics, run.model, run.tokenizer

Importing this imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Unpack

    from weft.config import RunConfig
    from weft.launch.run import Run
    from weft.typed import Keys

__all__ = ["open_run", "train"]


def train(
    config: str | os.PathLike[str] | Mapping[str, Any] | RunConfig | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **keys: Unpack[Keys],
) -> Run:
    """Run a configuration and return the finished run.

    Rows may be given as lists of dicts, pandas data frames or `datasets.Dataset`s wherever a name or path of data is
    taken (dataset_name, eval_dataset_name, public_data, clients={name: rows}), a model and its tokenizer as objects
    of transformers (model=, tokenizer=). They are written to `$WEFT_CACHE/given`, under names that follow from their
    content, and the run is one of these files: it is resumed like any other.

    Args:
        config: the path of a run file, its keys as a dict, or the typed object.
        resume: go on with the run in `output_dir`; without a config by its own keys, overridden by `keys`.
        overwrite: delete the run that is in `output_dir`.
        quiet: show no progress.
        **keys: keys of a run, which override those of `config`.

    Raises:
        weft.errors.ConfigError: a mistake in the configuration or the data, in one sentence.
    """
    from weft.config import RunConfig, canonical, gather, read_file, settle
    from weft.errors import ConfigError
    from weft.launch.objects import ObjectInputs
    from weft.launch.train import train as run
    from weft.verbs import check_adapter, saved_keys

    ways: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "quiet": quiet}
    over = canonical(keys)
    if isinstance(config, RunConfig):
        if not over:
            return run(config, **ways)
        config = config.model_dump()
    if not isinstance(config, Mapping):
        config = read_file(config) if config is not None else saved_keys(over) if resume else {}
    with ObjectInputs() as objects:
        given, judged = gather(config, over)
        given = objects.with_names(given)
        if "recipe" in judged:
            raise ConfigError("recipe is what `weft pretrain` fills in: from Python write the keys that it stands for.")
        typed, said = settle(given, [key for key in judged if key in given])
        check_adapter(typed, judged)
        objects.keep()
        return run(typed, notes=[*([said] if said else []), *objects.notes], **ways)


def open_run(path: str | os.PathLike[str], *, round: int | None = None, accept_changed: bool = False) -> Run:
    """Open the run in a directory.

    Args:
        path: the directory.
        round: whose weights are meant, of the rounds that have a checkpoint; None: the newest.
        accept_changed: use them although the base or the tokenizer is not what the run was made from.
    """
    from weft.launch.run import Run

    return Run(Path(path), round=round, accept_changed=accept_changed)
