"""Weft: federated training of large language models on data that may not leave its owners.

    import weft
    run = weft.train(model_name_or_path=..., dataset_name=..., use_peft=True, output_dir="out")
    run.summary, run.metrics, run.model, run.tokenizer
    run.plot(), run.report()                             # in a notebook they are shown below the cell
    weft.evaluate(run, tasks=["pubmedqa"]), weft.compare(run, "other")   # pandas data frames

Importing this imports nothing heavy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Unpack

    import pandas

    from weft.config import RunConfig
    from weft.launch.run import Run
    from weft.typed import Keys

__all__ = ["compare", "evaluate", "open_run", "sweep", "train"]


def train(
    config: str | os.PathLike[str] | Mapping[str, object] | RunConfig | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **keys: Unpack[Keys],
) -> Run:
    """Run a configuration and return the finished run.

    Rows may be lists of dicts, pandas data frames or `datasets.Dataset`s in place of any name or path of data
    (dataset_name, eval_dataset_name, public_data, clients={name: rows}); a model and its tokenizer may be objects of
    transformers (model=, tokenizer=). They are written to `$WEFT_CACHE/given`, under names that follow from their
    content, and the run reads these files: it can be resumed like any other.

    Args:
        config: the path of a run file, its keys as a dict, or the typed object.
        resume: resume the run in `output_dir`; without a config with its own keys, overridden by `keys`.
        overwrite: delete an existing run in `output_dir` first.
        quiet: print no progress.
        **keys: keys of a run, which override those of `config`.

    Raises:
        weft.errors.ConfigError: a mistake in the configuration or the data.
        weft.errors.Interrupted: Ctrl-C, or a notebook's stop; the finished rounds are kept. It is a KeyboardInterrupt.
    """
    from weft.config import RunConfig, canonical, gather, read_file, settle
    from weft.errors import ConfigError
    from weft.launch.interrupted import interruptible as run
    from weft.launch.objects import ObjectInputs
    from weft.verbs import check_adapter, saved_keys

    overrides = canonical(keys)
    if isinstance(config, RunConfig):
        if not overrides:
            return run(config, resume=resume, overwrite=overwrite, quiet=quiet)
        config = config.model_dump()
    if not isinstance(config, Mapping):
        config = read_file(config) if config is not None else saved_keys(overrides) if resume else {}
    with ObjectInputs() as objects:
        values, explicit_keys = gather(config, overrides)
        values = objects.with_names(values)
        if "recipe" in explicit_keys:
            raise ConfigError("recipe is what `weft pretrain` fills in: from Python write the keys that it stands for.")
        resolved, notice = settle(values, [key for key in explicit_keys if key in values])
        check_adapter(resolved, explicit_keys)
        objects.keep()
        return run(
            resolved,
            notes=[*([notice] if notice else []), *objects.notes],
            resume=resume,
            overwrite=overwrite,
            quiet=quiet,
        )


def open_run(path: str | os.PathLike[str], *, round: int | None = None, accept_changed: bool = False) -> Run:
    """Open the run in a directory.

    Args:
        path: the directory.
        round: a round with a checkpoint; None: the newest.
        accept_changed: use the weights although the base model or the tokenizer has changed since.
    """
    from weft.launch.run import Run

    return Run(Path(path), round=round, accept_changed=accept_changed)


def sweep(
    study: str | os.PathLike[str] | Mapping[str, object],
    *,
    output_dir: str | os.PathLike[str] | None = None,
    keys: Mapping[str, object] | None = None,
    arms: Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    processes: int = 1,
    retry: bool = False,
    quiet: bool = False,
) -> pandas.DataFrame:
    """Make the runs of a study that are not done, write its table, picture and page, and return the table.

    Args:
        study: a study file, or what would stand there as a dict (docs/studies.md).
        output_dir: directory of the study, instead of the file's.
        keys: keys of all runs, instead of the base's and the grid's.
        arms: the only ones that are wanted.
        metrics: instead of the file's.
        processes: how many runs are made at a time.
        retry: try runs again that failed.
        quiet: print no progress.

    Returns:
        A row for each arm, point of the grid and metric: `mean` and `deviation` over seeds, `difference` from the
        baseline paired by seed with the 95 % interval `low` to `high`, `bytes` and `seconds` of a seed.

    Raises:
        weft.errors.ConfigError: a mistake in the study, or it was begun with other keys.
        weft.errors.RunError: the disk is full; what is done is kept.
    """
    import pandas

    from weft.studies.study import read_study
    from weft.studies.sweep import check
    from weft.studies.sweep import sweep as make

    def note(sentence: str) -> None:
        if not quiet:
            print(f"weft: {sentence}", file=sys.stderr, flush=True)

    read = read_study(study, keys=keys, arms=arms, metrics=metrics, output_dir=output_dir)
    command = f"weft.sweep({study if isinstance(study, Mapping) else os.fspath(study)!r}, ...)"
    return pandas.DataFrame(make(check(read), processes=processes, retry=retry, note=note, command=command).records)


def evaluate(
    model: str | os.PathLike[str] | Run,
    tasks: str | Sequence[str],
    *,
    quiet: bool = True,
    **flags: object,
) -> pandas.DataFrame:
    """Score a run or a model on tasks, as `weft evaluate` does, and return a row for each task and metric.

    Args:
        model: a run, its directory, a hub name, or the folder of a model or an adapter.
        tasks: names of tasks or suites, or files.
        quiet: print no progress.
        **flags: flags of `weft evaluate` by their names, such as task_data, limit, num_fewshot, output_dir.

    Returns:
        task, metric, score, low and high (the 95 % interval, missing where there is none), n (items), main (whether
        the metric stands for the task).

    Raises:
        weft.errors.ConfigError: there is no such task, model or flag.
    """
    from weft.commands.evaluation_frame import frame

    return frame(_path(model), [tasks] if isinstance(tasks, str) else list(tasks), quiet=quiet, flags=flags)


def compare(
    *runs: str | os.PathLike[str] | Run,
    metric: str | None = None,
    html: str | os.PathLike[str] | None = None,
) -> pandas.DataFrame:
    """Return finished runs side by side: a row for runs that differ in their seed alone, and each kind of score.

    Args:
        *runs: runs, or their directories.
        metric: what the page begins with; without `html`: a metric that a run must have.
        html: where to write the page of `weft compare --html`; None: nowhere.

    Returns:
        The columns of `weft compare --csv`, those without any value left out.

    Raises:
        weft.errors.ConfigError: a directory holds no finished run, or no run has the metric.
    """
    from weft.errors import ConfigError
    from weft.launch.compared import Opened, to_frame

    if not runs:
        raise ConfigError("weft.compare was given no run: name one or more, such as weft.compare('a', 'b').")
    opened = Opened.of([_path(run) for run in runs])
    if html is not None:
        opened.write_page(Path(html), metric)
    elif metric is not None:
        opened.check_metric(metric)
    return to_frame(opened.rows())


def _path(run: str | os.PathLike[str] | Run) -> str:
    """Return the directory of a run, or a name as it is."""
    return os.fspath(run) if isinstance(run, str | os.PathLike) else str(run.path)
