"""The site client: it accepts or refuses a run, and answers the run's messages with work on rows that never leave.

Errors that are sent hold no data: those that Weft raises on purpose are sentences without any; of others only the type
is sent. The full error is in the site's own log.
"""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from weft.config import RunConfig, build
from weft.core.files import caused_by_full_disk, full_disk
from weft.core.types import Failure, Probe, ProtectionRequest, Reply, Task, Tensors, Undo, Update
from weft.core.wire import pack, unpack
from weft.core.wire_format import Raw
from weft.errors import BadUpdate, ConfigError, WeftError
from weft.federation.client_host import ClientHost
from weft.json_types import JsonObject
from weft.launch import provenance
from weft.launch.client import ClientBuilder
from weft.launch.client_memory import DiskMemory
from weft.launch.contamination import counts_at_site
from weft.launch.data_statistics import at_site
from weft.launch.data_warnings import warning_lines
from weft.launch.results import write_weights
from weft.launch.template_date import with_template_date
from weft.models.fingerprint import fingerprint
from weft.models.load import has_pickle_files
from weft.models.resident import Resident
from weft.runs.fingerprints import digest_of
from weft.runs.layout import RunDir
from weft.runtimes.mailbox import UNKNOWN_RUN, Packed
from weft.sites.agreement import agreement, few_rows, own_config, refusal, smaller_cohort, wrong_model
from weft.sites.bounds import DAY, WORK, Bounds, Day, Spent
from weft.sites.departure import Departure
from weft.sites.kit_key import common_of
from weft.sites.policy import SitePolicy
from weft.sites.reports import counts_of, reportable
from weft.sites.requests import Refused, name_of, read_run
from weft.sites.run_state import changed, former_run
from weft.sites.signing import Sign, certificate, signer, unsigned
from weft.sites.site_ledger import RELEASES, Releases, SiteBudget, take
from weft.sites.token_folder import token_folder

log = logging.getLogger("weft.site")
UNLIKE = "sites are sent unlike messages in this run, so its sealed sums do not show a server that lies to one site"
HANDSHAKE_BYTES = 16 << 20
"""Longest handshake that is read."""


class SiteClient:
    """Answers the messages to one site, as bytes: first a handshake in JSON, then those of `weft.core.wire`."""

    def __init__(self, policy: SitePolicy, folder: Path, name: str, version: str, kit: Path | None = None) -> None:
        """Start without a run.

        Args:
            policy: the site policy.
            folder: holds the folders of the site's runs.
            name: the site's name in the federation.
            version: Weft's version here.
            kit: the site's start-up kit, with which it signs; None: it has none.
        """
        self.policy, self.folder, self.name, self.version, self.kit = policy, folder, name, version, kit
        self.client_host: ClientHost | None = None
        self.run, self.place, self.config = "", folder, RunConfig.model_construct()
        self.bounds: Bounds | None = None
        self.agreed: JsonObject = {}
        self.budget: SiteBudget | None = None
        self.releases: Releases | None = None
        self.sign: Sign = unsigned
        self.departure = Departure(folder, "")
        self._steps = 0
        self._answered: Task | None = None

    def progress(self) -> int:
        """Return the number of forward passes so far: it grows while the model works."""
        return self._steps

    def work(self, raw: Raw) -> Packed:
        """Return the answer to a message; errors are answers too, so that the process survives any message."""
        if bytes(raw[:1]) == b"{":  # a handshake; packed messages begin otherwise
            try:
                if len(raw) > HANDSHAKE_BYTES:
                    raise Refused(f"the handshake is longer than {HANDSHAKE_BYTES} bytes")
                request = json.loads(bytes(raw))
                step = self.hear_cohort if "cohort" in request else self.handshake
                return json.dumps(step(request)).encode()
            except (Refused, Spent) as error:
                log.warning("refused: %s", error)
                return json.dumps({"refused": str(error)}).encode()
            except Exception as error:
                log.exception("the site cannot take part")
                reason = "its data or model cannot be used" if isinstance(error, ConfigError) else "it failed"
                return json.dumps({"refused": self._reason(error, reason)}).encode()
        return self._answer(raw)

    def handshake(self, request: JsonObject) -> JsonObject:
        """Accept a run or refuse it, and load its data and model.

        Args:
            request: `run` (the run's keys), `id`, `index` (the site's number), `clients` (size of a cohort), `base`
                (hash of the server's base model), `birth` (identifies the run among runs of the same `id`), and
                `evaluated` (`birth` and `rounds` of the run that is evaluated, if one is).

        Returns:
            The counts of `counts_of`; `agreed`, the hash of what server and site must agree on; `least`, the
            smallest cohort that the site policy accepts; `key`, which tells the key that sites have in common.

        Raises:
            Refused: the site policy forbids the run, or the site has another model or another Weft.
        """
        keys, config = read_run(request["run"])
        why = refusal(self.policy, config, int(request["clients"]))
        if why is not None:
            raise Refused(why)
        run, birth = RunDir(self.folder / name_of(request)), str(request.get("birth", ""))
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.client_host is not None:
            self.client_host.head_start.drop()
        self.client_host = self._answered = None
        rules, day = self.policy.accept, Day(self.folder / DAY, self.policy.accept.max_hours_per_day)
        day.count(0.0)
        self.bounds = bounds = Bounds(run.path / WORK, config, rules.max_hours, birth=birth, day=day)
        # Refused before the model is loaded: handshakes are work too, and a server may repeat them.
        if (spent := bounds.spent()) is not None:
            raise Refused(spent)
        self.budget = SiteBudget.of(self.policy.ledger, config, run.path.name, birth)
        if self.budget is not None and (why := self.budget.refusal()) is not None:
            raise Refused(why)
        self.departure = Departure(run.path, birth)
        if (why := self.departure.reason()) is not None:
            raise Refused(why)
        run.path.mkdir(exist_ok=True)
        with bounds.work(None):
            return self._begin(run, keys, config, request)

    def _begin(self, run: RunDir, keys: JsonObject, config: RunConfig, request: JsonObject) -> JsonObject:
        """Load the data and the model of a run that the policy accepts; returns and raises as `handshake` does."""
        tokens = self.policy.token_cache or str(token_folder(self.folder))
        place = {"output_dir": str(self.folder), "token_cache": tokens}
        own = own_config(self.policy, keys, self.name)
        local = build(own | place)
        builder, base = self._model(config, local, str(request["base"]))
        local = builder.config = with_template_date(local, builder.tokenizer, folder=run.path)
        current = provenance.data_of(local) | provenance.tokenizer_of(local, builder.tokenizer)
        birth, protection = str(request.get("birth", "")), builder.plan.protection
        terms = {"accept_changed": self.policy.accept_changed, "shared_key": protection.shares_key}
        if (why := changed(run, current, base, birth, **terms)) is not None:
            raise Refused(why)
        # From other rows, or by other keys, a site's secret gives other numbers: two answers that differ in the
        # scale of their noise alone would tell what it hides.
        named, rows = f"{request['id']} {birth}", digest_of(current | {"keys": json.dumps(own, sort_keys=True)})
        common = common_of(self.kit, protection, named, builder.shared_names)
        former = former_run(self.folder, config, builder.plan, request.get("evaluated"))
        memory = DiskMemory(run, at_site=True, rows=rows, kit_key=common, former=former)
        population = builder.read(memory, first=int(request["index"]))
        log.info(population.account.summary())
        for line in warning_lines(local, population):
            log.warning(line)
        trained = population.trained
        why = few_rows(self.policy, builder.plan, len(trained.train[0]), trained.domains or (), config.num_rounds)
        if why is not None:
            raise Refused(why)
        host, _ = builder.host(reference=run.reference_file)
        counts = counts_of(local, host)
        report, export = partial(reportable, self.policy), self._export
        # A round may be one step on one row.
        summed = host.plan.local.rows_in_metrics(counts["rows"], host.plan.objective.reuse)
        needed = protection.sum_only and common is None
        if protection.sum_only and not builder.plan.sends_alike:
            log.warning(UNLIKE)
        certified = certificate(self.kit, named, needed=needed)
        self.sign, identity = signer(certified), certified if needed else None
        least = self.policy.accept.min_clients or 0
        trained = replace(
            host.train_clients, reportable=partial(report, rows=summed), export=export, identity=identity, least=least
        )
        evaluated = replace(host.eval_clients, reportable=partial(report, rows=counts["held"]), export=export)
        self.releases = Releases.of(run.path / RELEASES, host, local, birth, memory)
        self.client_host = replace(host, train_clients=trained, eval_clients=evaluated)
        self.run, self.place, self.config = str(request["id"]), run.path, local
        accept = self.policy.accept
        tested = counts_at_site(
            local, population.trained, builder.tokenizer, self.policy.task_data, accept.min_report_rows
        )
        rules = (accept.min_report_rows, accept.statistics_noise) if accept.statistics else None
        self.agreed = {
            **counts,
            "contamination": tested,
            "statistics": at_site(local, population, builder.tokenizer, rules, self.folder),
            "agreed": agreement(keys, base, self.version),
            "least": least,
            "key": "" if common is None else protection.fingerprint(common.key),
        }
        return self.agreed

    def _model(self, config: RunConfig, local: RunConfig, expected: str) -> tuple[ClientBuilder, str]:
        """Return what builds the site's clients, and its model's hash; Refused for another model than `expected`."""
        builder = ClientBuilder(local, note=log.info)
        why = smaller_cohort(self.policy, builder.plan)
        if why is not None:
            raise Refused(why)
        if local.endpoint is None and has_pickle_files(local):
            raise Refused("the model here is in pickle files (.bin), and a site loads safetensors only")
        builder.model.base.register_forward_pre_hook(self._step)
        # The hash is computed here: a server's word about its model proves nothing about this one.
        base = fingerprint(builder.model)
        why = wrong_model(self.policy, config, base)
        if why is not None:
            raise Refused(why)
        if base != expected:
            raise Refused("the base model here is not the server's: its weights have another hash")
        return builder, base

    def hear_cohort(self, request: JsonObject) -> JsonObject:
        """Take note of how many clients a round has, after all sites have answered the handshake.

        Args:
            request: `id` of the run, `cohort`: the most clients of a round.

        Returns:
            The handshake's counts again.

        Raises:
            Refused: too few, by the site policy; or the site was restarted and has not agreed to this run.
        """
        count, least = int(request["cohort"]), self.policy.accept.min_clients or 0
        if self.client_host is None or str(request["id"]) != self.run:
            raise Refused("it was restarted during the handshake")
        if count < least:
            raise Refused(f"a round has {count} clients, and this site asks for {least} at least")
        log.info("%d clients take part in a round of the run '%s'", count, self.run)
        return self.agreed

    def go_on(self) -> None:
        """Begin the next round, where the run has a delay; called when the answer to a task is on its way."""
        task, self._answered = self._answered, None
        if task is None or self.client_host is None or self.bounds is None or self.bounds.spent() is not None:
            return
        self.client_host.go_on(task, within=partial(self.bounds.work, None))

    def _step(self, *_: object) -> None:
        """Note that the model works; raise Spent where the policy's hours end in the middle of a message."""
        self._steps += 1
        if self.bounds is not None:
            self.bounds.step()

    def _answer(self, raw: Raw) -> Packed:
        if self.client_host is None:
            return UNKNOWN_RUN
        assert self.bounds is not None
        try:
            message = unpack(raw, run=self.run, max_tensors=1 << 20)
        except BadUpdate as error:  # answered too: no message may end the site's process
            log.warning("the server %s", error)
            return pack(Failure(self.name, 0, "cannot read the message"), self.run)
        if not isinstance(message, (Task, Probe, Undo, ProtectionRequest)):
            return pack(Failure(self.name, message.round, "was sent no message that a site answers"), self.run)
        if message.client != self.name:
            return pack(Failure(self.name, message.round, "was sent a message for another site"), self.run)
        try:
            why = self.departure.reason() or self.bounds.refusal(message)
            if why is None and isinstance(message, Task):  # before anything of the site's rows can leave it
                why = take(self.budget, self.releases, message)
            if why is not None:
                log.warning("refused: %s", why)
                reply: Reply = Failure(message.client, message.round, why, left=self.departure.reason() is not None)
            else:
                with self.bounds.work(message):
                    reply = self.sign(self.client_host.reply(message))
                self._answered = message if isinstance(message, Task) and isinstance(reply, Update) else None
                if isinstance(reply, Failure):
                    log.warning("round %d: this site %s", message.round + 1, reply.reason)
                    if reply.left:
                        self.departure.leave(message.round)
        except Exception as error:
            log.exception("round %d", message.round)
            reply = Failure(message.client, message.round, self._reason(error, "the site failed"))
        return pack(reply, self.run)

    def _reason(self, error: Exception, what: str) -> str:
        """Return the reason to send for an error: no data and no path of the site."""
        if caused_by_full_disk(error):
            folders = [self.folder, self.place, Path(tempfile.gettempdir())]
            log.error("%s: make room there; the server asks this site again in the next round.", full_disk(folders))
            return "its disk is full; its own log says which"
        if isinstance(error, WeftError):
            return f"{what}; its own log says more"
        return f"{what} ({type(error).__name__}); its own log says more"

    def _export(self, model: Resident, side: Tensors) -> None:
        """Write the model that the run leaves at the site: its personal model if it has one, else the shared one."""
        write_weights(self.config, model, model.values() | model.fixed | side, self.place)
