"""A run from its configuration to its files: what it needs is checked and loaded, then its rounds begin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from weft.config import RunConfig
from weft.core.files import write_atomic
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.launch import compose, provenance, rank_group
from weft.launch.client import ClientBuilder
from weft.launch.client_memory import DiskMemory
from weft.launch.data_warnings import check_alone, tell
from weft.launch.disk_full import disk_in_words
from weft.launch.extend import CHANGEABLE, check_rounds, describe_extension, say_changed
from weft.launch.paths import absolute, with_whole_paths
from weft.launch.prompt_texts import with_prompt_texts
from weft.launch.run import Run
from weft.launch.template_date import dated, keep_template
from weft.launch.tokenizer import with_tokenizer
from weft.launch.trainer import Trainer
from weft.models.group import join_group
from weft.models.scratch import shape_of
from weft.models.starting import from_adapter
from weft.runs import fingerprints
from weft.runs.layout import RunDir
from weft.runs.progress import Progress
from weft.runs.trackers import Trackers, resolve


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = True,
    as_json: bool = False,
    said: Sequence[str] = (),
) -> Run:
    """Run a configuration to its end and return the finished run.

    Args:
        config: the run.
        resume: go on with the run in its directory.
        overwrite: delete the run in its directory.
        quiet: show no progress.
        as_json: show it as JSON lines.
        said: sentences about the configuration, told before the first round.

    Raises:
        ConfigError: a mistake in the configuration or the data; nothing was changed.
        KeyboardInterrupt: the round under way was dropped, the ones before it are committed.
    """
    if config.runtime == "nvflare":
        raise ConfigError("A run of sites is handed to their server: write `weft submit RUN.yaml`, or `weft up`.")
    config = with_whole_paths(with_prompt_texts(config), absent=resume)
    former = check_rounds(config) if resume else None
    config = from_adapter(config)
    resolve(config.report_to)
    if config.from_scratch:
        shape_of(config)
    builder = ClientBuilder(config)
    if not config.trains_tokenizer:
        builder.config = dated(config, builder.tokenizer, resume=resume)
    with join_group(config.parallel, config.device) as builder.group:
        if builder.group is not None and not builder.group.is_leader:
            rank_group.follow(builder)
            return Run(Path(config.output_dir))
        with disk_in_words(config):
            return _train(builder, Ways(resume, overwrite, quiet, as_json, former, said))


class Ways(NamedTuple):
    """How a run is begun and shown."""

    resume: bool
    overwrite: bool
    quiet: bool
    as_json: bool
    former: JsonObject | None = None
    """The keys of the run that is resumed."""
    said: Sequence[str] = ()


def _train(builder: ClientBuilder, ways: Ways) -> Run:
    config, plan, group = builder.config, builder.plan, builder.group
    with (
        RunDir.create(
            config.output_dir,
            absolute(config.model_dump(mode="json")) | {"accept_changed": False},
            resume=ways.resume,
            overwrite=ways.overwrite,
            volatile=CHANGEABLE,
            defaults={name: field.default for name, field in RunConfig.model_fields.items()},
            resolve=absolute,
        ) as run,
        Progress(config.num_rounds, quiet=ways.quiet, as_json=ways.as_json) as progress,
    ):
        builder.note = progress.note
        if said := describe_extension(config, plan, ways.former, max(run.rounds, default=0)):
            progress.note(said)
        config = builder.config = with_tokenizer(config, run.path / "tokenizer", progress.note, run.secret)
        keep_template(config, run, builder.tokenizer)
        if group is not None:
            rank_group.begin(config, group)
        now = provenance.all_of(config, builder.tokenizer)
        say_changed(config, run, now, progress.note)
        population = builder.read(DiskMemory(run), report=progress.tokenizing)
        check_alone(config, population)
        write_atomic(run.split_file, (json.dumps(population.split, indent=1) + "\n").encode())
        host, values = builder.host(reference=run.reference_file, conditions=compose.conditions(config))
        fingerprints.keep(run, now, max(run.rounds, default=0))
        with Trackers(config.report_to, run.path, config.model_dump(mode="json"), progress.note) as trackers:
            training = Trainer(config, run, host, population, progress, trackers, group)
            tell(config, population, plan.algorithm, progress)  # when nothing is refused any more
            for sentence in ways.said:
                progress.note(sentence)
            progress.split(population.split)
            training.run_all(values)
        return Run(run.path)
