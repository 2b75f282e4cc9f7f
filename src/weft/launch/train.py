"""A run from its configuration to its files: what it needs is checked and loaded, then its rounds begin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from weft.config import RunConfig
from weft.core.files import write_atomic
from weft.errors import ConfigError
from weft.federation.plan import Plan
from weft.launch import compose, provenance, rank_group
from weft.launch.client import equip, prepare_process, resident
from weft.launch.client_memory import DiskMemory
from weft.launch.data_warnings import check_alone, tell
from weft.launch.disk_full import disk_in_words
from weft.launch.extend import CHANGEABLE, check_rounds, describe_extension, say_changed
from weft.launch.paths import absolute, with_whole_paths
from weft.launch.population import populate
from weft.launch.prompt_texts import with_prompt_texts
from weft.launch.run import Run
from weft.launch.template_date import dated, keep_template
from weft.launch.tokenizer import with_tokenizer
from weft.launch.trainer import Trainer
from weft.models.group import RankGroup, joined
from weft.models.load import load_model_config
from weft.models.scratch import shape_of
from weft.models.starting import from_adapter
from weft.models.tokenizer import check_fits, load_tokenizer
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
    prepare_process(config)
    resolve(config.report_to)
    plan = compose.plan(config)
    if config.from_scratch:
        shape_of(config)
    tokenizer = None
    if not config.trains_tokenizer:
        tokenizer = load_tokenizer(config)
        if config.endpoint is None:
            check_fits(config, tokenizer, load_model_config(config))
        config = dated(config, tokenizer, resume=resume)
    with joined(config.parallel, config.device) as group:
        if group is not None and not group.leads:
            rank_group.follow(config, plan, group)
            return Run(Path(config.output_dir))
        with disk_in_words(config):
            return _train(config, plan, tokenizer, group, Ways(resume, overwrite, quiet, as_json, former, said))


class Ways(NamedTuple):
    """How a run is begun and shown."""

    resume: bool
    overwrite: bool
    quiet: bool
    as_json: bool
    former: dict[str, Any] | None = None
    """The keys of the run that is resumed."""
    said: Sequence[str] = ()


def _train(config: RunConfig, plan: Plan, tokenizer: Any, group: RankGroup | None, ways: Ways) -> Run:
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
        if said := describe_extension(config, plan, ways.former, max(run.rounds, default=0)):
            progress.note(said)
        config = with_tokenizer(config, run.path / "tokenizer", progress.note)
        tokenizer = tokenizer or load_tokenizer(config)
        keep_template(config, run, tokenizer)
        if group is not None:
            rank_group.begin(config, group)
        now = provenance.all_of(config, tokenizer)
        say_changed(config, run, now, progress.note)
        population = populate(
            config,
            tokenizer,
            DiskMemory(run),
            rows=plan.objective.rows,
            pool=plan.algorithm.pools_data,
            report=progress.tokenizing,
        )
        check_alone(config, population)
        write_atomic(run.split_file, (json.dumps(population.split, indent=1) + "\n").encode())
        model = resident(config, tokenizer, plan, group, progress.note)
        equip(config, plan, population, model, run.reference_file, progress.note)
        fingerprints.keep(run, now, max(run.rounds, default=0))
        with Trackers(config.report_to, run.path, config.model_dump(mode="json"), progress.note) as trackers:
            training = Trainer(config, run, plan, population, model, progress, trackers, group)
            tell(config, population, plan.algorithm, progress)  # when nothing is refused any more
            for sentence in ways.said:
                progress.note(sentence)
            progress.split(population.split)
            training.run_all()
        return Run(run.path)
