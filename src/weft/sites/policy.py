"""site.yaml: a site's own policy. It names the site's data and hardware, and what the site agrees to take part in.

A task outside it is refused by the site itself, in one sentence; nothing that the server sends can change it.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from weft import kinds, plugins, registry
from weft.config import VOLATILE, RunConfig, read_yaml
from weft.core.declarations import declared
from weft.core.metrics import WORK, complete
from weft.core.types import Metrics
from weft.errors import ConfigError
from weft.plugins import PartFile
from weft.registry import nearest
from weft.sites import part_files
from weft.sites.run_keys import AT_SERVER, FROM_RUN, FROM_SITE, ON_DEMAND, forbidden

COUNTS = (*WORK, "learning_rate")
"""What is always said of a turn: how much was done."""
NAMES = {
    "objectives": list(registry.OBJECTIVES),
    "trainable": ["lora", "prompt", "full"],
    "algorithms": list(registry.ALGORITHMS),
}
"""What a policy's lists may hold, beside the parts of packages that are installed here."""
KEYS = {"objectives": "objective", "algorithms": "fed_alg"}
"""The keys of runs that such lists are about, where a package may offer more."""


class SiteData(BaseModel):
    """Where a site's rows are."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str
    eval: str | None = None
    split: str | None = None
    """The part of `path` that is trained on, where it has parts; `eval_split` is the one that is measured on."""
    eval_split: str | None = None
    instruction_column: str | None = None
    response_column: str | None = None
    chosen_column: str | None = None
    rejected_column: str | None = None
    instruction_prefix: str | None = None
    template: str | None = None
    prompt_template: str | None = None


class AcceptRules(BaseModel):
    """What a site agrees to; what is not named is not limited, but for the models."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    models: dict[str, str | None]
    """Names as runs write them; beside each a folder of the site's own, or a hash (sha256:...), or nothing."""
    objectives: list[str] | None = None
    trainable: list[str] | None = None
    algorithms: list[str] | None = None
    from_scratch: bool = False
    """Models that begin from nothing."""
    tokenizers: list[str] = []
    """Names of tokenizers beside the models' own."""
    max_rounds: int | None = Field(None, ge=1)
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps in a round, at most; a run that counts epochs has no such number."""
    max_hours: float | None = Field(None, gt=0)
    """Hours of work for one run, at most, evaluations among them."""
    min_clients: int | None = Field(None, ge=1)
    protection: list[str] | None = None
    privacy: list[str] | None = None
    max_epsilon: float | None = Field(None, gt=0)
    parts: dict[str, str] = {}
    """Files of the site's own with parts that runs may name, and the SHA-256 of each; a run brings no code itself."""
    report: list[str] | None = None
    """What may be sent beside counts: the name of a metric (perplexity, macro_f1) allows all that it is derived from,
    and any word allows what has a name that begins with it (loss, confusion, reward, ...)."""

    @field_validator("models", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """Take a list of names for names without anything beside them."""
        return dict.fromkeys(value) if isinstance(value, list) else value

    @field_validator("parts")
    @classmethod
    def _digests(cls, value: dict[str, str]) -> dict[str, str]:
        """Take sha256:DIGEST, as of models, for DIGEST."""
        made = {path: digest.removeprefix("sha256:").lower() for path, digest in value.items()}
        for path, digest in made.items():
            if not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError(f"beside '{path}' stands no SHA-256: write the 64 digits that `sha256sum` prints")
        return made

    @field_validator("objectives", "trainable", "algorithms")
    @classmethod
    def _known(cls, value: list[str] | None, info: ValidationInfo) -> list[str] | None:
        """Refuse a name that no run can have: a typing error would refuse every run."""
        known = NAMES[str(info.field_name)]
        key = KEYS.get(str(info.field_name))
        for name in value or ():
            if name not in known and not (key and name in plugins.installed_parts(kinds.KINDS[key].group)):
                guess = nearest(name, known)
                meant = f"did you mean '{guess}'?" if guess else f"write one of {', '.join(known)}"
                raise ValueError(f"there is no '{name}': {meant}")
        return value


class SitePolicy(BaseModel):
    """A site's policy."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    data: SiteData
    accept: AcceptRules
    device: str = "auto"
    threads: int | None = Field(None, ge=1)
    endpoint: str | None = None
    endpoint_key: str = "OPENAI_API_KEY"
    token_cache: str | None = None
    accept_changed: bool = False
    """Go on with a run although the site's rows or tokenizer are not those that it began with."""

    @field_validator("data", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        """Take a path for data of no more than that."""
        return {"path": value} if isinstance(value, str) else value


def read_policy(path: str | Path) -> SitePolicy:
    """Read a site.yaml; its data lies beside it where the path is relative.

    Raises:
        ConfigError: it cannot be read, or says something that it cannot.
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
    places = {name: getattr(policy.data, name) for name in ("path", "eval", "prompt_template")}
    here = {name: str(file.parent / place) for name, place in places.items() if place and not Path(place).is_absolute()}
    for place in (value for value in (places | here).values() if value):
        if not Path(place).expanduser().exists():
            raise ConfigError(f"'{path}': there is no data at '{place}': check the path.")
    parts = {str(file.parent / Path(part).expanduser()): digest for part, digest in policy.accept.parts.items()}
    for part, digest in parts.items():
        try:
            plugins.read(PartFile(part, "", digest))
        except ConfigError as error:
            raise ConfigError(f"'{path}': accept.parts: {error}") from None
    accept = policy.accept.model_copy(update={"parts": parts})
    return policy.model_copy(update={"data": policy.data.model_copy(update=here), "accept": accept})


def refusal(policy: SitePolicy, run: RunConfig, clients: int) -> str | None:
    """Return why a site takes no part in a run, in one sentence that holds none of its data; None: it does.

    Args:
        law: the site's.
        run: as it was sent.
        clients: how many take part in a round.
    """
    accept = policy.accept
    set_by_run = {key: getattr(run, key) for key in RunConfig.model_fields}
    why = forbidden(set_by_run, from_scratch=accept.from_scratch, tokenizers=tuple(accept.tokenizers))
    if why is not None:
        return why
    why = part_files.refusal(set_by_run, accept.parts)
    if why is not None:
        return why
    trained = "prompt" if run.prompt_method else "lora" if run.use_peft else "full"
    limits: list[tuple[str, str, list[str] | None]] = [
        ("the model", run.model_name_or_path, None if run.from_scratch else list(accept.models)),
        ("the objective", run.objective, accept.objectives),
        ("training of the kind", trained, accept.trainable),
        ("the algorithm", run.fed_alg, accept.algorithms),
        ("the protection", run.protection, accept.protection),
        ("the privacy", run.privacy, accept.privacy),
    ]
    for what, given, allowed in limits:
        if allowed is not None and given not in allowed and plugins.parse(given) is None:  # a file is named by content
            return f"{what} '{given}' is not among what this site accepts ({', '.join(allowed) or 'none'})"
    if accept.max_rounds is not None and run.num_rounds > accept.max_rounds:
        return f"the run has {run.num_rounds} rounds, and this site accepts {accept.max_rounds} at most"
    if accept.min_clients is not None and clients < accept.min_clients:
        return f"a round has {clients} clients, and this site asks for {accept.min_clients} at least"
    if accept.max_epsilon is not None:
        return f"the run has no differential privacy, and this site asks for an epsilon of {accept.max_epsilon:g}"
    if run.runtime != "nvflare" or run.parallel != "none":
        return "the run is not one for sites"
    if accept.max_steps is not None and not 0 < run.max_steps <= accept.max_steps:
        asked = f"{run.max_steps} steps" if run.max_steps > 0 else f"{run.num_train_epochs} epochs"
        return f"a round has {asked}, and this site accepts {accept.max_steps} steps at most"
    return None


def own_config(policy: SitePolicy, run: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the keys by which a site runs: those of the run that it takes, and its own."""
    kept = {key: value for key, value in run.items() if key in FROM_RUN | ON_DEMAND}
    kept = part_files.at_site(kept, policy.accept.parts)
    beside = policy.accept.models.get(str(run.get("model_name_or_path")))
    if beside and not beside.startswith("sha256:"):
        kept["model_name_or_path"] = beside
    data = policy.data
    if data.template is not None:
        kept["template"] = data.template
    columns = ("instruction_column", "response_column", "chosen_column", "rejected_column")
    return kept | {
        "runtime": "inprocess",
        "clients": [{"name": name, "data": data.path, "eval": data.eval}],
        **{column: getattr(data, column) for column in columns},
        "dataset_split": data.split,
        "eval_dataset_split": data.eval_split,
        "instruction_prefix": data.instruction_prefix,
        "prompt_template": data.prompt_template,
        "device": policy.device,
        "threads": policy.threads or run.get("threads"),
        "token_cache": policy.token_cache,
        "endpoint": policy.endpoint if run.get("endpoint") else None,
        "endpoint_key": policy.endpoint_key,
    }


def wrong_model(policy: SitePolicy, run: RunConfig, found: str) -> str | None:
    """Return why a model is not the one that the site accepts, given its hash; None: it is."""
    beside = policy.accept.models.get(run.model_name_or_path)
    if beside and beside.startswith("sha256:") and beside.removeprefix("sha256:") != found:
        return f"the model '{run.model_name_or_path}' here has the hash {found[:16]}..., and site.yaml asks for another"
    return None


def agreement(run: dict[str, Any], base: str, version: str) -> str:
    """Return the hash of what server and sites must agree on: Weft's version, the run, and the base model."""
    words = {key: value for key, value in run.items() if key not in VOLATILE | FROM_SITE | AT_SERVER}
    return hashlib.sha256(json.dumps([version, words, base], sort_keys=True).encode()).hexdigest()


def reportable(policy: SitePolicy, metrics: Metrics) -> Metrics:
    """Return what of a client's metrics may be sent: what `report` names, and what a metric that it names needs."""
    report = policy.accept.report
    if report is None:
        return metrics
    needed = {name for metric in declared() if metric.name in report for name in metric.pick(metrics)}
    allowed = (*COUNTS, *report)
    return complete({name: value for name, value in metrics.items() if name in needed or name.startswith(allowed)})
