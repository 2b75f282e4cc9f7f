"""site.yaml, the site policy: the site's data and hardware, and the runs that the site agrees to take part in.

The site itself refuses a run that the policy does not allow, in one sentence; nothing that the server sends can change
the policy.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from weft import plugins
from weft.config import VOLATILE, RunConfig, read_yaml
from weft.core.declarations import declared, names
from weft.core.metrics import WORK, complete
from weft.core.types import Metrics
from weft.errors import ConfigError
from weft.federation.plan import Plan
from weft.json_types import JsonObject
from weft.keys import secrets
from weft.plugins import PartFile
from weft.sites import part_files, run_limits
from weft.sites.policy_names import check_name
from weft.sites.run_keys import AT_SERVER, FROM_RUN, FROM_SITE, ON_DEMAND, forbidden

COUNTS = (*WORK, "learning_rate")
"""Names of the metrics that every site reports: how much work it did."""
NamesT = TypeVar("NamesT", list[str] | None, dict[str, float])


class SiteData(BaseModel):
    """Where a site's rows are."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str
    eval: str | None = None
    split: str | None = None
    """The split of `path` to train on, if it has splits; `eval_split` is the one to evaluate on."""
    eval_split: str | None = None
    instruction_column: str | None = None
    response_column: str | None = None
    chosen_column: str | None = None
    rejected_column: str | None = None
    instruction_prefix: str | None = None
    template: str | None = None
    prompt_template: str | None = None


class AcceptRules(BaseModel):
    """The limits of a site; what is left out is not limited, except for the models."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    models: dict[str, str | None]
    """Model names as runs write them; for each a folder at the site, or a hash (sha256:...), or None."""
    objectives: list[str] | None = None
    trainable: list[str] | None = None
    algorithms: list[str] | None = None
    from_scratch: bool = False
    """Whether models may be trained from scratch."""
    tokenizers: list[str] = []
    """Names of accepted tokenizers, besides the models' own."""
    max_rounds: int | None = Field(None, ge=1)
    max_steps: int | None = Field(None, ge=1)
    """Most optimizer steps in a round; refuses runs that count epochs."""
    max_hours: float | None = Field(None, gt=0)
    """Most hours of work for all runs of one name together, handshakes and evaluations included."""
    max_hours_per_day: float | None = Field(None, gt=0)
    """Most hours of work in a day, for all runs together."""
    min_clients: int | None = Field(None, ge=1)
    protection: list[str] | None = None
    privacy: list[str] | None = None
    max_epsilon: float | None = Field(None, gt=0)
    limits: dict[str, float] = {}
    """The most that a run may ask for, by key, where that is not the default (`weft.sites.run_limits`)."""
    parts: dict[str, str] = {}
    """Paths of the site's files whose parts runs may name, and the SHA-256 of each; a run itself brings no code."""
    min_report_rows: int = Field(10, ge=1)
    """Rows below which nothing that depends on their content is reported: the loss of one row is one person's."""
    report: list[str] | None = None
    """What may be sent besides `COUNTS`: the name of a metric (perplexity, macro_f1) allows all that the metric is
    derived from, and any word allows the numbers whose names begin with it (loss, confusion, reward, ...)."""

    @field_validator("models", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        """Read a list of names as names without a folder or hash."""
        return dict.fromkeys(value) if isinstance(value, list) else value

    @field_validator("parts")
    @classmethod
    def _digests(cls, value: dict[str, str]) -> dict[str, str]:
        """Read sha256:DIGEST, as models have it, as DIGEST."""
        digests = {path: digest.removeprefix("sha256:").lower() for path, digest in value.items()}
        for path, digest in digests.items():
            if not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError(f"'{path}' has no SHA-256 beside it: write the 64 digits that `sha256sum` prints")
        return digests

    @field_validator("objectives", "trainable", "algorithms", "protection", "privacy", "report", "limits")
    @classmethod
    def _check_names(cls, value: NamesT, info: ValidationInfo) -> NamesT:
        """Refuse a name that no run can have: with a typing error, the site would refuse every run, or limit none."""
        for name in value or ():
            check_name(str(info.field_name), name)
        return value


class SitePolicy(BaseModel):
    """The content of a site.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    data: SiteData
    accept: AcceptRules
    device: str = "auto"
    threads: int | None = Field(None, ge=1)
    endpoint: str | None = None
    endpoint_key: str = "OPENAI_API_KEY"
    token_cache: str | None = None
    accept_changed: bool = False
    """Resume a run even if the site's rows or tokenizer have changed since the run started."""

    @model_validator(mode="after")
    def _check_secrets(self) -> SitePolicy:
        """Refuse API keys and passwords: the policy names where they are."""
        why = secrets.fault({"endpoint": self.endpoint, "endpoint_key": self.endpoint_key})
        why = why or secrets.fault({"dataset_name": self.data.path, "eval_dataset_name": self.data.eval})
        if why is not None:
            raise ValueError(why.rstrip("."))
        return self

    @field_validator("data", mode="before")
    @classmethod
    def _path(cls, value: object) -> object:
        """Read a text as data with this path only."""
        return {"path": value} if isinstance(value, str) else value


def read_policy(path: str | Path) -> SitePolicy:
    """Read a site.yaml; relative paths are resolved from its folder.

    Raises:
        ConfigError: the file cannot be read, a value is wrong, or a file that it names does not exist.
    """
    file = Path(path).expanduser()
    try:
        policy = SitePolicy.model_validate(read_yaml(file, f"'{path}'")[1])
    except OSError:
        raise ConfigError(f"There is no '{path}' that can be read: write what this site agrees to into it.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"'{path}': {where} cannot be ({first['msg'].lower()}).") from None
    paths = {name: getattr(policy.data, name) for name in ("path", "eval", "prompt_template")}
    resolved = {
        name: str(file.parent / value) for name, value in paths.items() if value and not Path(value).is_absolute()
    }
    for value in filter(None, (paths | resolved).values()):
        if not Path(value).expanduser().exists():
            raise ConfigError(f"'{path}': there is no data at '{value}': check the path.")
    parts = {str(file.parent / Path(part).expanduser()): digest for part, digest in policy.accept.parts.items()}
    for part, digest in parts.items():
        try:
            plugins.read(PartFile(part, "", digest))
        except ConfigError as error:
            raise ConfigError(f"'{path}': accept.parts: {error}") from None
    accept = policy.accept.model_copy(update={"parts": parts})
    return policy.model_copy(update={"data": policy.data.model_copy(update=resolved), "accept": accept})


def refusal(policy: SitePolicy, run: RunConfig, clients: int) -> str | None:
    """Return the reason to refuse a run, in one sentence that holds none of the site's data; None: the site takes part.

    Args:
        policy: the site policy.
        run: the run as it was sent.
        clients: size of the run's cohorts.
    """
    accept = policy.accept
    keys = {key: getattr(run, key) for key in RunConfig.model_fields}
    why = forbidden(keys, from_scratch=accept.from_scratch, tokenizers=tuple(accept.tokenizers))
    if why is not None:
        return why
    why = part_files.refusal(keys, accept.parts)
    if why is not None:
        return why
    why = run_limits.refusal(keys, accept.limits)
    if why is not None:
        return why
    trainable = "prompt" if run.prompt_method else "lora" if run.use_peft else "full"
    # Names of models may be paths of the site, which it tells nobody.
    models = [] if run.from_scratch else [run.model_name_or_path]
    if run.endpoint is not None:
        models.append(run.endpoint_model or run.model_name_or_path)
    for name in models:
        if name not in accept.models:
            return f"the model '{name}' is not among the models that this site accepts"
    if run.endpoint is not None and policy.endpoint is None:
        return "the run asks a model behind an endpoint, and this site has none"
    limits: list[tuple[str, str, list[str] | None]] = [
        ("the objective", run.objective, accept.objectives),
        ("training of the kind", trainable, accept.trainable),
        ("the algorithm", run.fed_alg, accept.algorithms),
        ("the protection", run.protection, accept.protection),
        ("the privacy", run.privacy, accept.privacy),
    ]
    for what, name, allowed in limits:
        # Files of parts were compared by their content above.
        if allowed is not None and name not in allowed and plugins.parse(name) is None:
            return f"{what} '{name}' is not among what this site accepts ({', '.join(allowed) or 'none'})"
    if accept.max_rounds is not None and run.num_rounds > accept.max_rounds:
        return f"the run has {run.num_rounds} rounds, and this site accepts {accept.max_rounds} at most"
    clients = min(clients, run.sample_clients)  # the first is the server's word, the second is agreed on
    if accept.min_clients is not None and clients < accept.min_clients:
        return f"a round has {clients} clients, and this site asks for {accept.min_clients} at least"
    # No part of Weft gives an epsilon yet, so that every run fails this limit.
    if accept.max_epsilon is not None:
        return f"the run has no differential privacy, and this site asks for an epsilon of {accept.max_epsilon:g}"
    if run.runtime != "nvflare" or run.parallel != "none":
        return "the run is not one for sites"
    if accept.max_steps is not None and not 0 < run.max_steps <= accept.max_steps:
        amount = f"{run.max_steps} steps" if run.max_steps > 0 else f"{run.num_train_epochs} epochs"
        return f"a round has {amount}, and this site accepts {accept.max_steps} steps at most"
    return None


def smaller_cohort(policy: SitePolicy, plan: Plan) -> str | None:
    """Return the reason to refuse a plan in which fewer clients than a round has share a value; None: there is none."""
    if (policy.accept.min_clients or 0) <= 1:
        return None
    ways = {
        "each client trains one of several models (cluster)": plan.algorithm.choice is not None,
        "clients have different layers (client_layers)": bool(plan.sharing.layers),
        "clients have different ranks (client_ranks)": len(set(plan.sharing.ranks)) > 1,
        "the server steps without waiting for a cohort": plan.algorithm.buffer is not None,
    }
    why = next((way for way, holds in ways.items() if holds), None)
    if why is None:
        return None
    return f"{why}, and this site asks that at least {policy.accept.min_clients} clients share every mean"


def own_config(policy: SitePolicy, run: JsonObject, name: str) -> JsonObject:
    """Return the keys by which a site trains: those that it takes from the run, and those of its policy."""
    keys = {key: value for key, value in run.items() if key in FROM_RUN | ON_DEMAND}
    keys = part_files.at_site(keys, policy.accept.parts)
    location = policy.accept.models.get(str(run.get("model_name_or_path")))
    if location and not location.startswith("sha256:"):
        keys["model_name_or_path"] = location
    data = policy.data
    if data.template is not None:
        keys["template"] = data.template
    columns = ("instruction_column", "response_column", "chosen_column", "rejected_column")
    return keys | {
        "runtime": "inprocess",
        "clients": [{"name": name, "data": data.path, "eval": data.eval}],
        **{column: getattr(data, column) for column in columns},
        "dataset_split": data.split,
        "eval_dataset_split": data.eval_split,
        "instruction_prefix": data.instruction_prefix,
        "prompt_template": data.prompt_template,
        "device": policy.device,
        "threads": policy.threads,
        "token_cache": policy.token_cache,
        "endpoint": policy.endpoint if run.get("endpoint") else None,
        "endpoint_key": policy.endpoint_key,
    }


def wrong_model(policy: SitePolicy, run: RunConfig, digest: str) -> str | None:
    """Return the reason to refuse the model at the site, by the hash of its weights; None: the policy accepts it."""
    location = policy.accept.models.get(run.model_name_or_path)
    if location and location.startswith("sha256:") and location.removeprefix("sha256:") != digest:
        return (
            f"the model '{run.model_name_or_path}' here has the hash {digest[:16]}..., and site.yaml asks for another"
        )
    return None


def agreement(run: JsonObject, base: str, version: str) -> str:
    """Return the hash of what server and sites must agree on: Weft's version, the run, and the base model."""
    # Keys that a site sets for itself, or that mean nothing to it, may differ.
    keys = {key: value for key, value in run.items() if key not in VOLATILE | FROM_SITE | AT_SERVER}
    return hashlib.sha256(json.dumps([version, keys, base], sort_keys=True).encode()).hexdigest()


def reportable(policy: SitePolicy, metrics: Metrics, rows: int) -> Metrics:
    """Return the metrics that may be sent: those that `report` names, and those that a metric in `report` needs.

    Args:
        policy: the site policy.
        metrics: counts and sums over the rows that were trained on or evaluated.
        rows: how many different rows these are; with fewer than `min_report_rows` only counts of work are sent.
    """
    report, least = policy.accept.report, policy.accept.min_report_rows
    if rows < least:
        return {name: value for name, value in metrics.items() if name in COUNTS}
    metrics = _without_rare_classes(metrics, least)
    if report is None:
        return metrics
    needed = {name for metric in declared() if metric.name in report for name in metric.pick(metrics)}
    allowed = (*COUNTS, *report)
    return complete({name: value for name, value in metrics.items() if name in needed or name.startswith(allowed)})


def _without_rare_classes(metrics: Metrics, least: int) -> Metrics:
    """Return metrics without families of counts, such as confusion/RIGHT/GIVEN, in which a class has too few rows.

    A class of one row is one person's label, and what the model answers to it. All of the family is left out: the count
    of a class that is missing alone would follow from the number of rows.
    """
    known, classes = names(), dict[tuple[str, str], float]()
    families = {name: pattern for name in metrics if "*" in (pattern := known.pattern(name) or "")}
    for name, pattern in families.items():
        first = name.split("/")[1]
        classes[pattern, first] = classes.get((pattern, first), 0.0) + metrics[name]
    rare = {pattern for (pattern, _), count in classes.items() if 0 < count < least}
    return complete({name: value for name, value in metrics.items() if families.get(name) not in rare})
