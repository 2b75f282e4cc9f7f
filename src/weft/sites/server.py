"""The server's side of a run whose clients are sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from weft import config as configuration
from weft.config import RunConfig
from weft.core.tensors import num_bytes
from weft.core.types import Failure, Probe, ServerState, Tensors
from weft.errors import ConfigError
from weft.federation.compatibility import check
from weft.federation.plan import Plan
from weft.federation.scores import expected_scores
from weft.federation.state import expected_streams, to_use
from weft.json_types import JsonObject
from weft.keys.privacy import CLIENT
from weft.launch import compose, provenance
from weft.launch.best import read_tasks
from weft.launch.client import ClientBuilder
from weft.launch.disk_full import explain_full_disk
from weft.launch.extend import changeable, report_changes
from weft.launch.federated import Evaluated, evaluated_run
from weft.launch.mixtures import named_domains
from weft.launch.population import Population
from weft.launch.privacy_plan import warn_of_noise
from weft.launch.run import Run
from weft.launch.run_tasks import RunTasks
from weft.launch.trainer import Trainer
from weft.models.fingerprint import fingerprint
from weft.models.resident import Resident
from weft.runs import fingerprints
from weft.runs.layout import RunDir
from weft.runs.progress import Progress
from weft.runs.start import SITES
from weft.runs.text import contamination_lines
from weft.runs.trackers import Trackers
from weft.runtimes.mailbox import Packed
from weft.runtimes.remote import RemoteSites, Transport
from weft.sites import endpoints as asked
from weft.sites import part_files
from weft.sites.handshake import Handshake, Terms, shake_hands
from weft.sites.rejoin import Rejoin
from weft.sites.signatures import checker


def serve(
    keys: JsonObject,
    transport: Transport,
    sites: list[str],
    version: str,
    *,
    resume: bool = False,
    parts: Path | None = None,
    endpoints: Path | None = None,
    authority: Path | None = None,
    hear: Callable[[JsonObject], None] = lambda _: None,
) -> Run:
    """Run a configuration with sites as its clients, and return the finished run.

    Args:
        keys: the run's keys, with `output_dir`.
        transport: carries bytes to the sites.
        sites: the connected sites.
        version: Weft's version here.
        resume: resume the run in `output_dir`, if there is one, from its newest checkpoint.
        parts, endpoints: folder of the files, and list of the addresses, that runs may name; None: they name none.
        authority: file of the certificate that the sites' signatures are checked by; None: they are not.
        hear: called with entries for the run's status: the sites, every round, every evaluation.

    Raises:
        ConfigError: a mistake in the configuration, or too many sites refuse.
        RunError: too few sites can be reached, or answered.
    """
    keys = configuration.canonical(keys)  # a job need not come from `weft submit`, and sites hash full names
    notes: list[str] = []  # of the builder, until there is a Progress to print them
    builder = _builder(asked.at_server(part_files.at_server(keys, parts), endpoints), notes.append)
    config, rejoin = builder.config, Rejoin(Path(builder.config.output_dir) / SITES, resume=resume)
    tasks = read_tasks(config, builder.plan)
    rejoin.check(config.sites, sites, config.rejoin_timeout)  # before the model is loaded: it may be often
    base, past = fingerprint(builder.model), evaluated_run(builder)
    with (
        explain_full_disk(config, "weft submit"),
        RunDir.create(
            config.output_dir,
            config.model_dump(mode="json") | {"accept_changed": False},
            resume=resume and RunDir(config.output_dir).holds_run,
            overwrite=False,
            volatile=changeable(config),
            resolve=lambda saved: part_files.at_server(saved, parts),
        ) as run,
        Progress(config.num_rounds, quiet=False, as_json=True) as progress,
        Trackers(config.report_to, run.path, config.model_dump(mode="json"), progress.note) as trackers,
    ):
        birth = _birth(builder, tasks, run, notes, progress.note, past)
        remote = _remote(config, transport, f"{run_id(keys)} {birth}", authority, progress.note)
        terms = Terms(keys, base, birth, version, _largest_cohort(builder), config.min_clients, past)
        agreement = shake_hands(remote, terms, rejoin.order(config.sites, sites), sites, progress.note)
        rejoin.keep(rows := agreement.rows_of_participants())
        hear({"sites": rows, "refused": agreement.refused, "statistics": agreement.statistics})
        population = _settle(builder, remote, agreement)
        host, values = builder.host(conditions=compose.conditions(config))
        parties = (config, run, host, population, progress, trackers, None, tasks)
        training = Trainer(*parties, begin=lambda _: nullcontext(remote), listener=hear, evaluated=past and past.state)
        hear({"undelivered": _send_result(training.run_all(values), builder.plan, remote, rows)})
        return Run(run.path)


def _remote(
    config: RunConfig, transport: Transport, signed_as: str, authority: Path | None, note: Callable[[str], None]
) -> RemoteSites:
    """Return the runtime; `signed_as`: the run's id and birth, which sites sign with what they send."""
    limits = config.silence_timeout, lambda: (1, 1), config.turn_timeout
    name, checked = signed_as.rpartition(" ")[0], checker(authority, signed_as)
    return RemoteSites(transport, name, *limits, note=note, checked=checked)


def _birth(
    builder: ClientBuilder,
    tasks: RunTasks,
    run: RunDir,
    notes: Iterable[str],
    note: Callable[[str], None],
    evaluated: Evaluated | None,
) -> str:
    """Note what there is, and what the run is made of and was not when it began; return the id of its begin."""
    for sentence in notes:
        note(sentence)
    tasks.check_template(builder.tokenizer)
    current = provenance.at_server(builder.config, builder.tokenizer) | tasks.fingerprints()
    current |= {} if evaluated is None else evaluated.made_from(builder.config)
    report_changes(builder.config, run, current, note)
    return fingerprints.keep(run, current, max(run.rounds, default=0))


def _largest_cohort(builder: ClientBuilder) -> int:
    """Return the most clients whose updates are averaged together; of groups the fewest of one."""
    config = builder.config
    return (config.group_size or config.sample_clients) if builder.plan.algorithm.buffer is None else 1


def _settle(builder: ClientBuilder, remote: RemoteSites, agreement: Handshake) -> Population:
    """Make plan and runtime respect what the sites agreed to, and return the sites as the run's population."""
    plan, model = builder.plan, builder.model

    def why_not(name: str, raw: Packed) -> str:
        before = list(agreement.rows)
        why = agreement.why_not(name, raw)
        if agreement.rows != before:  # the first handshake may have claimed few, so that nothing was said
            warn_of_one(agreement.rows_of_participants(), plan.max_client_share, remote.note)
        return why

    remote.handshake, remote.why_not = agreement.requests.get, why_not
    remote.largest = lambda: largest(plan, model)
    rows = agreement.rows_of_participants()
    check(replace(plan, sampled=plan.sampled or builder.config.sample_clients < len(rows)))
    warn_of_one(rows, plan.max_client_share, remote.note)
    for sentence in contamination_lines(agreement.contamination):
        remote.note(sentence)
    least = len(rows) if builder.config.privacy_unit == CLIENT else min(filter(None, agreement.units), default=0)
    warn_of_noise(builder.config, plan, model.masters, least, remote.note)
    remote.in_order = not plan.over_selected  # with over-selection the first replies count
    if plan.algorithm.shares and plan.algorithm.buffer is None:
        # A round without any update is repeated: where a site is a whole client, that is an outage.
        builder.plan = replace(plan, cohorts=agreement.cohorts, quorum=max(1, plan.quorum))
    population = agreement.population(agreement.left_out(builder.config))
    builder.take(population := replace(population, domains=named_domains(builder.config)))
    return population


def warn_of_one(rows: Mapping[str, int], share: float, note: Callable[[str], None]) -> None:
    """Note that one site has more rows than all others together, by its own word, and what limits its weight."""
    most, total = max(rows, key=lambda name: rows[name]), sum(rows.values())
    if len(rows) > 2 and share == 1.0 and 2 * rows[most] > total:
        note(
            f"the site '{most}' says that it has {rows[most]} of {total} rows, so the mean is mostly its update: write "
            "such as --max_client_share 0.5 to limit its weight."
        )


def _builder(keys: JsonObject, note: Callable[[str], None]) -> ClientBuilder:
    """Return the builder of the run's parts; ConfigError for a mistake, or for a run that would bring code."""
    config = configuration.build(keys)
    if config.trust_remote_code:
        raise ConfigError("The run trusts remote code, and no code travels to sites or their server.")
    return ClientBuilder(config, note=note)


def _send_result(state: ServerState, plan: Plan, remote: RemoteSites, sites: Iterable[str]) -> dict[str, str]:
    """Send every site the result of the run, which the site writes to its disk; return why it did not reach some."""
    undelivered: dict[str, str] = {}
    if not state.round:  # it was only evaluated
        return undelivered
    params, extra = to_use(plan.algorithm, state)
    for reply in remote.exchange([Probe(site, state.round, params, extra, export=True) for site in sites]):
        if isinstance(reply, Failure):
            remote.note(f"the site '{reply.client}' did not get the result: {reply.reason}.")
            undelivered[reply.client] = reply.reason
    return undelivered


def run_id(keys: JsonObject) -> str:
    """Return the id of a run, by which sites name the folder of its state."""
    return str(keys["output_dir"]).rstrip("/").rsplit("/", 1)[-1]


def largest(plan: Plan, model: Resident) -> tuple[int, int]:
    """Return the most bytes and the most tensors that an honest reply of a client has; larger ones are not read."""
    values: Tensors = {name: value for name, value in model.masters.items() if plan.sharing.travels(name)}
    sizes, counts = [], []
    for round in range(2 * plan.period):
        size, count = plan.protection.largest(plan.codec.largest(expected_streams(plan, values, round)))
        sizes.append(size)
        counts.append(count)
    if plan.score_places:
        scores = expected_scores(plan)
        size, count = plan.protection.largest((num_bytes(scores), len(plan.score_places)))
        sizes.append(size)
        counts.append(count)
    return max(sizes) + (1 << 20) + 512 * max(counts), max(counts)  # room for metrics, and for the header of a tensor
