"""site.yaml, the site policy: the site's data and hardware, and the runs that the site agrees to take part in.

The site itself refuses a run that the policy does not allow, in one sentence; nothing that the server sends can change
the policy.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails

from weft import kinds, plugins
from weft.config import read_yaml
from weft.core.metrics import WORK
from weft.errors import ConfigError
from weft.keys import secrets
from weft.keys.leaving import LeaveWhen
from weft.plugins import PartFile
from weft.registry import nearest
from weft.sites.policy_names import check_name

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
    clean: list[str] = []
    """Cleaners of the training rows, in their order, and their parameters as in clean_args."""
    clean_args: dict[str, Any] = {}
    template: str | None = None
    prompt_template: str | None = None

    @field_validator("clean")
    @classmethod
    def _cleaners(cls, value: list[str]) -> list[str]:
        """Refuse a cleaner that there is not."""
        for name in value:
            try:
                kinds.check_part("clean", name)
            except ConfigError as error:
                raise ValueError(str(error).rstrip(".")) from None
        return value

    @field_validator("clean_args")
    @classmethod
    def _alone(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Refuse a comparison with clients that a site cannot see."""
        if any(name.endswith(".across") for name in value):
            raise ValueError(
                "near_duplicates.across compares clients of a simulation: exchange files that `weft clean --sketches` "
                "writes, and name them by near_duplicates.against"
            )
        return value


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
    domains: list[str] = []
    """Names of domains by which a run may choose this site's rows (mixture): a column, or files, may name people."""
    evaluations: bool = True
    """Whether a run may have the site's held-out rows scored without training (num_rounds 0)."""
    statistics: bool = False
    """Whether a run may be told lengths, languages and labels of the site's rows (data_statistics)."""
    statistics_noise: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Scale of the noise that the site adds to each of these counts at least."""
    max_rounds: int | None = Field(None, ge=1)
    max_steps: int | None = Field(None, ge=1)
    """Most optimizer steps in a round; refuses runs that count epochs."""
    max_hours: float | None = Field(None, gt=0)
    """Most hours of work for all runs of one name together, handshakes and evaluations included."""
    max_hours_per_day: float | None = Field(None, gt=0)
    """Most hours of work in a day, for all runs together."""
    min_clients: int | None = Field(None, ge=1)
    protection: list[str] | None = None
    partly_encrypted: bool = False
    """Whether a run may have some tensors encrypted only (encrypt); the server sees all others of this site."""
    privacy: list[str] | None = None
    """Units of differential privacy that are accepted: client, row, columns; none: runs without."""
    noise_at: Literal["client"] | None = None
    """client: refuses runs whose server adds the noise, or sees an update before the others' shares are in it."""
    max_epsilon: float | None = Field(None, gt=0)
    """Largest target_epsilon of a run; refuses runs that have none."""
    max_delta: float = Field(1e-5, gt=0, lt=1)
    """Largest target_delta of a run, where there is a limit of epsilon."""
    limits: dict[str, float] = {}
    """The most that a run may ask for, by key, where that is not the default (`weft.sites.run_limits`)."""
    parts: dict[str, str] = {}
    """Paths of the site's files whose parts runs may name, and the SHA-256 of each; a run itself brings no code."""
    min_report_rows: int = Field(10, ge=1)
    """Rows below which nothing that depends on their content is reported: the loss of one row is one person's."""
    min_train_rows: int | None = Field(None, ge=1)
    """Fewest rows that the training of one round may read, unless the site's own noise hides each of them: an update of
    one row shows that row. None: as many as `min_report_rows`."""
    report: list[str] | None = None
    """What may be sent besides `COUNTS`: the name of a metric (perplexity, macro_f1) allows all that the metric is
    derived from, and any word allows the numbers whose names begin with it (loss, confusion, reward, ...)."""

    @field_validator("limits")
    @classmethod
    def _amounts(cls, value: dict[str, float]) -> dict[str, float]:
        """Refuse a limit that no number keeps to: the site would refuse every run, and nobody would know why."""
        for name, most in value.items():
            if not most >= 0:
                raise ValueError(f"the limit of {name} is {most:g}: write a number from 0, or .inf for none")
        return value

    @property
    def least_trained(self) -> int:
        """Fewest rows behind an update."""
        return self.min_report_rows if self.min_train_rows is None else self.min_train_rows

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


class SiteLedger(BaseModel):
    """Where a site writes down what runs may learn of it, and how much that may be for all runs together."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: str
    max_epsilon: float = Field(gt=0)
    max_delta: float = Field(1e-4, gt=0, lt=1)
    """The most that the deltas of all runs add up to: many runs of a tiny epsilon would fail as often as they are."""


class SitePolicy(BaseModel):
    """The content of a site.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    data: SiteData
    accept: AcceptRules
    ledger: SiteLedger | None = None
    device: str = "auto"
    threads: int | None = Field(None, ge=1)
    endpoint: str | None = None
    endpoint_key: str = "OPENAI_API_KEY"
    judge_endpoint: str | None = None
    """Address of a judge that may read this site's rows and the answers to them; None: no judge reads them."""
    judge_key: str = "OPENAI_API_KEY"
    leave_when: LeaveWhen | None = None
    """What this site tests each shared model on, and when it leaves a run."""
    token_cache: str | None = None
    task_data: list[str] | None = None
    """Folders with this site's own data of evaluation tasks; it counts how many of their items are among its rows."""
    accept_changed: bool = False
    """Resume a run even if the site's rows or tokenizer have changed since the run started."""

    @model_validator(mode="after")
    def _check_secrets(self) -> SitePolicy:
        """Refuse API keys and passwords: the policy names where they are."""
        why = secrets.fault({"endpoint": self.endpoint, "endpoint_key": self.endpoint_key})
        why = why or secrets.fault({"judge_endpoint": self.judge_endpoint, "judge_key": self.judge_key})
        why = why or secrets.fault({"dataset_name": self.data.path, "eval_dataset_name": self.data.eval})
        if why is not None:
            raise ValueError(why.rstrip("."))
        return self

    @field_validator("data", mode="before")
    @classmethod
    def _path(cls, value: object) -> object:
        """Read a text as data with this path only."""
        return {"path": value} if isinstance(value, str) else value


def _in_words(where: str, error: ErrorDetails) -> str:
    """Return what is wrong with an entry of a site.yaml, with the nearest key where there is none of that name."""
    if error["type"] == "extra_forbidden":
        *outer, name = error["loc"]
        parts: dict[str, type[BaseModel]] = {"accept": AcceptRules, "data": SiteData, "ledger": SiteLedger}
        parts["leave_when"] = LeaveWhen
        part = parts.get(str(outer[0]), SitePolicy) if outer else SitePolicy
        guess = nearest(str(name), list(part.model_fields))
        return f"there is no key '{where}'" + (f": is '{guess}' meant?" if guess else ".")
    if error["type"] == "missing":
        return f"'{where}' is missing."
    why = error["msg"].removeprefix("Value error, ")
    return f"{where} cannot be ({why[:1].lower()}{why[1:]})."


def _with_files(rules: LeaveWhen, policy: Path) -> LeaveWhen:
    """Return the rules with their paths in full; ConfigError where a file is not there."""
    files = {name: getattr(rules, name) for name in ("forbidden", "canaries") if getattr(rules, name)}
    whole = {name: str(policy.parent / Path(value).expanduser()) for name, value in files.items()}
    for name, value in whole.items():
        if not Path(value).exists():
            raise ConfigError(f"'{policy}': leave_when: there is no file of {name} at '{value}': check the path.")
    return rules.model_copy(update=whole)


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
        raise ConfigError(f"'{path}': {_in_words(where, first)}") from None
    paths = {name: getattr(policy.data, name) for name in ("path", "eval", "prompt_template")}
    resolved = {
        name: str(file.parent / value) for name, value in paths.items() if value and not Path(value).is_absolute()
    }
    for value in filter(None, (paths | resolved).values()):
        if not Path(value).expanduser().exists():
            raise ConfigError(f"'{path}': there is no data at '{value}': check the path.")
    cleaning = policy.data.clean_args
    for name in [name for name in cleaning if name.endswith((".against", ".key"))]:
        files = [str(file.parent / Path(part).expanduser()) for part in str(cleaning[name]).split("+") if part]
        cleaning = cleaning | {name: "+".join(files)}
    folders = [str(file.parent / Path(folder).expanduser()) for folder in policy.task_data or ()]
    for folder in folders:
        if not Path(folder).is_dir():
            raise ConfigError(f"'{path}': there is no folder of task data '{folder}': check the path.")
    parts = {str(file.parent / Path(part).expanduser()): digest for part, digest in policy.accept.parts.items()}
    for part, digest in parts.items():
        try:
            plugins.read(PartFile(part, "", digest))
        except ConfigError as error:
            raise ConfigError(f"'{path}': accept.parts: {error}") from None
    accept = policy.accept.model_copy(update={"parts": parts})
    update: dict[str, object] = {
        "data": policy.data.model_copy(update=resolved | {"clean_args": cleaning}),
        "accept": accept,
    }
    update["task_data"] = folders or None
    if policy.leave_when is not None:
        update["leave_when"] = _with_files(policy.leave_when, file)
    if policy.ledger is not None:
        ledger_file = file.parent / Path(policy.ledger.file).expanduser()
        update["ledger"] = policy.ledger.model_copy(update={"file": str(ledger_file)})
    return policy.model_copy(update=update)
