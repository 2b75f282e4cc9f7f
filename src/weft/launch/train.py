"""A run from its configuration to its files: what it needs is checked and loaded, then its rounds begin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from weft.config import RunConfig
from weft.core.files import write_atomic
from weft.data.skew import split_text
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.launch import compose, provenance, rank_group
from weft.launch.best import read_tasks
from weft.launch.budgets import check_first_round, deciding_units, guarantee_of
from weft.launch.client import ClientBuilder
from weft.launch.client_memory import DiskMemory
from weft.launch.contamination import counts_of, read_items
from weft.launch.data_statistics import simulated
from weft.launch.data_warnings import check_only_client, print_warnings
from weft.launch.disk_full import explain_full_disk
from weft.launch.extend import changeable, check_rounds, describe_extension, report_changes
from weft.launch.libraries import import_libraries
from weft.launch.own_files import check_own_files
from weft.launch.paths import absolute, with_whole_paths
from weft.launch.privacy_plan import warn_of_noise
from weft.launch.prompt_texts import with_prompt_texts
from weft.launch.run import Run
from weft.launch.run_tasks import RunTasks
from weft.launch.template_date import keep_template, with_template_date
from weft.launch.tokenizer import with_tokenizer
from weft.launch.trainer import Trainer
from weft.models.group import join_group
from weft.models.scratch import shape_of
from weft.models.starting import from_adapter
from weft.runs import fingerprints
from weft.runs.layout import RunDir
from weft.runs.metrics import plain
from weft.runs.progress import Progress
from weft.runs.trackers import Trackers, resolve
from weft.tasks.contamination import ItemGrams


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = True,
    as_json: bool = False,
    notes: Sequence[str] = (),
    imported: Callable[[], None] = lambda: None,
    shared: Path | None = None,
) -> Run:
    """Run a configuration to its end and return the finished run.

    Args:
        config: the run.
        resume: go on with the run in its directory.
        overwrite: delete the run in its directory.
        quiet: show no progress.
        as_json: show it as JSON lines.
        notes: sentences about the configuration, printed before the first round.
        imported: called once the libraries are imported, before rows and weights are loaded.
        shared: a folder in which the runs of a study keep what they have in common; None: the run stands alone.

    Raises:
        ConfigError: a mistake in the configuration or the data; nothing was changed.
        KeyboardInterrupt: the round under way was dropped, the ones before it are committed.
    """
    if config.runtime == "nvflare":
        raise ConfigError("A run of sites is submitted to their server: write `weft submit RUN.yaml`, or `weft up`.")
    config = with_whole_paths(with_prompt_texts(config), absent_too=resume)
    former_config = check_rounds(config) if resume else None
    config = from_adapter(config)
    # Mistakes that need neither data nor model are found first, before the directory is touched.
    resolve(config.report_to)
    if config.from_scratch:
        shape_of(config)
    builder = ClientBuilder(config)
    builder.shared = shared
    tasks, items = read_tasks(config, builder.plan), read_items(config)
    import_libraries(config)
    imported()
    if not config.trains_tokenizer:
        builder.config = with_template_date(config, builder.tokenizer, resume=resume)
    with join_group(config.parallel, config.device) as builder.group:
        if builder.group is not None and not builder.group.is_leader:
            rank_group.follow(builder)
            return Run(Path(config.output_dir))
        with explain_full_disk(config):
            return _train(builder, StartOptions(resume, overwrite, quiet, as_json, former_config, notes), tasks, items)


class StartOptions(NamedTuple):
    """How a run is begun and shown."""

    resume: bool
    overwrite: bool
    quiet: bool
    as_json: bool
    former_config: JsonObject | None = None
    """The keys of the run that is resumed."""
    notes: Sequence[str] = ()
    """Sentences about the configuration, printed before the first round."""


def _train(builder: ClientBuilder, options: StartOptions, tasks: RunTasks, items: Mapping[str, ItemGrams]) -> Run:
    config, plan, group = builder.config, builder.plan, builder.group
    with (
        RunDir.create(
            config.output_dir,
            absolute(config.model_dump(mode="json")) | {"accept_changed": False},
            resume=options.resume,
            overwrite=options.overwrite,
            volatile=changeable(config),
            defaults={name: field.default for name, field in RunConfig.model_fields.items()},
            resolve=absolute,
        ) as run,
        Progress(config.num_rounds, quiet=options.quiet, as_json=options.as_json) as progress,
    ):
        builder.note = progress.note
        if change := describe_extension(config, plan, options.former_config, max(run.rounds, default=0)):
            progress.note(change)
        config = builder.config = with_tokenizer(config, run.path / "tokenizer", progress.note, run.secret)
        keep_template(config, run, builder.tokenizer)
        if group is not None:
            rank_group.begin(config, group)
        tasks.check_template(builder.tokenizer)
        current = provenance.all_of(config, builder.tokenizer) | tasks.fingerprints()
        report_changes(config, run, current, progress.note)
        population = builder.read(DiskMemory(run), report=progress.tokenizing)
        check_only_client(config, population)
        check_own_files(config, plan, builder.tokenizer)
        compose.check_cohort(plan, config, population)
        check_first_round(guarantee_of(config, plan.privacy, deciding_units(config, population.trained)))
        if config.data_statistics:
            population.split["statistics"] = simulated(config, population, builder.tokenizer)
        if items:
            population.split["contamination"] = counts_of(items, population.trained, builder.tokenizer)
        write_atomic(run.split_file, split_text(plain(population.split)).encode())
        host, values = builder.host(reference=run.reference_file, conditions=compose.conditions(config))
        # After all that can refuse the run: a start that is refused must not replace the record.
        fingerprints.keep(run, current, max(run.rounds, default=0))
        with Trackers(config.report_to, run.path, config.model_dump(mode="json"), progress.note) as trackers:
            trainer = Trainer(config, run, host, population, progress, trackers, group, replace(tasks, config=config))
            print_warnings(config, population, plan.algorithm, progress)  # when nothing is refused any more
            warn_of_noise(config, plan, host.model.masters, deciding_units(config, population.trained), progress.note)
            for sentence in options.notes:
                progress.note(sentence)
            progress.split(population.split)
            trainer.run_all(values)
        return Run(run.path)
