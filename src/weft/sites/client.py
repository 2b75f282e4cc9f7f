"""What runs at a site: it agrees to a run or refuses it, and answers the run's messages on rows that never leave.

Errors that are sent hold no data: those that Weft raises on purpose are sentences without any, of others only the kind
is told; the whole is in the site's own log.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from weft.config import RunConfig, build
from weft.core.types import Failure, Probe, ProtectionRequest, Reply, Task, Tensors, Undo
from weft.core.wire import Raw, pack, unpack
from weft.errors import BadUpdate, ConfigError, WeftError
from weft.federation.client_host import ClientHost
from weft.launch import provenance
from weft.launch.client import ClientBuilder
from weft.launch.client_memory import DiskMemory
from weft.launch.data_warnings import warning_lines
from weft.launch.results import write_weights
from weft.launch.template_date import with_template_date
from weft.models.fingerprint import fingerprint
from weft.models.load import pickled
from weft.models.resident import Resident
from weft.runs import checkpoint, fingerprints
from weft.runs.fingerprints import Fingerprints
from weft.runs.layout import RunDir, path_component
from weft.runtimes.mailbox import WHO
from weft.sites.bounds import WORK, Bounds
from weft.sites.policy import SitePolicy, agreement, own_config, refusal, reportable, wrong_model

log = logging.getLogger("weft.site")


class Refused(WeftError):
    """The site takes no part; the message holds none of its data."""


class SiteClient:
    """Answers for one site. Messages are bytes: a hello in JSON first, then those of `weft.core.wire`."""

    def __init__(self, policy: SitePolicy, folder: Path, name: str, version: str) -> None:
        """Take the site's policy, a folder of its own, its name as the others know it, and Weft's version here."""
        self.policy, self.folder, self.name, self.version = policy, folder, name, version
        self.client_host: ClientHost | None = None
        self.run, self.place, self.config = "", folder, RunConfig.model_construct()
        self.bounds: Bounds | None = None
        self._steps = 0

    def progress(self) -> int:
        """Return how many passes of the model there have been: it grows while there is work."""
        return self._steps

    def work(self, raw: Raw) -> bytes:
        """Answer a message; whatever goes wrong is an answer too."""
        if bytes(raw[:1]) == b"{":
            try:
                return json.dumps(self.handshake(json.loads(bytes(raw)))).encode()
            except Refused as error:
                log.warning("refused: %s", error)
                return json.dumps({"refused": str(error)}).encode()
            except WeftError as error:
                log.exception("the site cannot take part")
                said = "its data or model cannot be used" if isinstance(error, ConfigError) else "it failed"
                return json.dumps({"refused": f"{said}; the site's own log says more"}).encode()
            except Exception as error:
                log.exception("the site cannot take part")
                return json.dumps({"refused": f"it failed ({type(error).__name__}); its own log says more"}).encode()
        return self._answer(raw)

    def handshake(self, words: dict[str, Any]) -> dict[str, Any]:
        """Read the run, agree to it, and load data and model.

        Args:
            words: `run` (its keys), `id`, `index` (the site's number), `clients` (of a round), `base` (the hash of the
                server's model).

        Returns:
            How many rows there are to train on and held out, and the hash of what both must agree on.

        Raises:
            Refused: the law of the site, or another model or version.
        """
        keys = dict(words["run"])
        config = _known(keys)
        why = refusal(self.policy, config, int(words["clients"]))
        if why is not None:
            raise Refused(why)
        own = build(own_config(self.policy, keys, self.name) | {"output_dir": str(self.folder)})
        builder = ClientBuilder(own, note=log.info)
        if own.endpoint is None and pickled(own):
            raise Refused("the model here is in pickle files (.bin), and a site loads safetensors only")
        base = fingerprint(builder.model)
        why = wrong_model(self.policy, config, base)
        if why is not None:
            raise Refused(why)
        if base != words["base"]:
            raise Refused("the base model here is not the server's: its weights have another hash")
        run = RunDir(self.folder / path_component(str(words["id"])))
        run.path.mkdir(parents=True, exist_ok=True)
        own = builder.config = with_template_date(own, builder.tokenizer, folder=run.path)
        marks = provenance.data_of(own) | provenance.tokenizer_of(own, builder.tokenizer)
        self._compare(run, marks, base, str(words.get("birth", "")))
        population = builder.read(DiskMemory(run), first=int(words["index"]))
        log.info(population.account.summary())
        for line in warning_lines(own, population):
            log.warning(line)
        host, _ = builder.host(reference=run.reference_file)
        report, export = partial(reportable, self.policy), self._export
        trained = replace(host.trained, reportable=report, export=export)
        evaluated = replace(host.evaluated, reportable=report, export=export)
        self.client_host = replace(host, trained=trained, evaluated=evaluated)
        builder.model.model.register_forward_pre_hook(self._step)
        self.bounds = Bounds(run.path / WORK, own, self.policy.accept.max_hours)
        self.run, self.place, self.config = str(words["id"]), run.path, own
        return {
            "rows": len(population.trained.train[0]),
            "held": len(population.evaluated.held[0]),
            "agreed": agreement(keys, base, self.version),
            "least": self.policy.accept.min_clients or 0,
        }

    def _compare(self, run: RunDir, now: Fingerprints, base: str, birth: str) -> None:
        """Refuse to go on with a run on other rows than those that it began with here; what they are stays here."""
        other = fingerprints.birth_of(run) != birth
        if other:  # what is here is of another run of this name
            checkpoint.rewind(run, 0)
            run.reference_file.unlink(missing_ok=True)
            (run.path / WORK).unlink(missing_ok=True)
        changed = [] if other else fingerprints.changed_names(run, now)
        if changed and not self.policy.accept_changed:
            log.warning("%s changed since the run began", " and ".join(changed))
            raise Refused(
                "its rows or its tokenizer are not those that the run began with, and its site.yaml has no "
                "accept_changed: true"
            )
        now = now | {"the base": base}  # the server's to compare
        if fingerprints.changed_names(run, now):
            run.reference_file.unlink(missing_ok=True)
        fingerprints.keep(run, now, 0, birth)

    def _step(self, *_: object) -> None:
        self._steps += 1

    def _answer(self, raw: Raw) -> bytes:
        if self.client_host is None:
            return WHO
        assert self.bounds is not None
        try:
            message = unpack(raw, run=self.run, tensors=1 << 20)
        except BadUpdate as error:  # whatever comes is answered: a site's process does not end by it
            log.warning("the server %s", error)
            return pack(Failure(self.name, 0, "cannot read the message"), self.run)
        if not isinstance(message, (Task, Probe, Undo, ProtectionRequest)):
            return pack(Failure(self.name, message.round, "was sent no message that a site answers"), self.run)
        try:
            why = self.bounds.refusal(message)
            if why is not None:
                log.warning("refused: %s", why)
                reply: Reply = Failure(message.client, message.round, why)
            else:
                with self.bounds.work(message):
                    reply = self.client_host.reply(message)
        except WeftError:
            log.exception("round %d", message.round)
            reply = Failure(message.client, message.round, "the site failed; its own log says more")
        except Exception as error:
            log.exception("round %d", message.round)
            said = f"the site failed ({type(error).__name__}); its own log says more"
            reply = Failure(message.client, message.round, said)
        return pack(reply, self.run)

    def _export(self, model: Resident, side: Tensors) -> None:
        """Write down the model that the run leaves here: the site's own where it has one, else the shared one."""
        write_weights(self.config, model, model.values() | model.fixed | side, self.place)


def _known(keys: dict[str, Any]) -> RunConfig:
    """Return the run as it was sent, checked; Refused for one that is not known here."""
    try:
        return build(keys)
    except ConfigError as error:
        raise Refused(f"the run cannot be read by the Weft here ({error})") from None
