"""The keys of a run: flat, typed, and the names of the flags too. `weft.config` reads their values."""

from __future__ import annotations

from pydantic import ConfigDict, field_validator, model_validator

from weft import kinds, registry
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.keys import (
    alignment,
    audits,
    checks,
    data,
    evaluation,
    federation,
    model,
    pretraining,
    privacy,
    prompt,
    run,
    training,
)
from weft.keys.alignment import AlignmentKeys
from weft.keys.audits import AuditKeys
from weft.keys.data import Client, DataKeys
from weft.keys.effects import Effect
from weft.keys.evaluation import EvaluationKeys
from weft.keys.federation import FederationKeys
from weft.keys.model import ModelKeys
from weft.keys.pretraining import PretrainingKeys
from weft.keys.privacy import PrivacyKeys
from weft.keys.prompt import PromptKeys
from weft.keys.run import RunKeys
from weft.keys.training import TrainingKeys

__all__ = ["EFFECTS", "Client", "RunConfig"]

TABLES = {
    module.__name__: module.WORKS
    for module in (model, data, pretraining, training, evaluation, federation, privacy, prompt, alignment, audits, run)
}
EFFECTS: dict[str, Effect] = {key: effect for table in TABLES.values() for key, effect in table.items()}
"""When each key has an effect."""


class RunConfig(
    RunKeys,
    AuditKeys,
    EvaluationKeys,
    TrainingKeys,
    AlignmentKeys,
    PrivacyKeys,
    FederationKeys,
    PretrainingKeys,
    DataKeys,
    PromptKeys,
    ModelKeys,
):
    """All keys of a run; help texts list them in the order of the base classes, the last one first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator(
        "peft_lora_target_modules",
        "report_to",
        "choices",
        "share",
        "reward",
        "sites",
        "eval_tasks",
        "task_data",
        "include_path",
        "leave_out",
        "clean",
        "forgotten",
        "contamination",
        "canary_clients",
        mode="before",
    )
    @classmethod
    def _words(cls, value: object) -> object:
        """Take "a,b" for ["a", "b"]."""
        if isinstance(value, str):
            value = [value]
        if isinstance(value, (list, tuple)):
            return [word.strip() for part in value for word in str(part).split(",") if word.strip()]
        return value

    @field_validator("client_ranks", "client_layers", "client_speed", "reward_weights", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        """Take "8,16" for [8, 16], and a number for a list of one."""
        parts = value if isinstance(value, (list, tuple)) else [value] if value is not None else []
        words = [word for part in parts for word in str(part).split(",") if word.strip()]
        return words or None

    @field_validator("clean_args", "leave_when", *(kind.args for kind in kinds.KINDS.values()), mode="before")
    @classmethod
    def _pairs(cls, value: object) -> JsonObject:
        """Take ["mu=0.1", ...] and "mu=0.1,nu=2" for {"mu": "0.1", ...}."""
        if value is None or isinstance(value, dict):
            return value or {}
        parts = value if isinstance(value, (list, tuple)) else [value]
        words = [word.strip() for part in parts for word in str(part).split(",") if word.strip()]
        for word in words:
            if "=" not in word:
                raise ConfigError(f"This is written name=value, as in fed_args or client_resources, not '{word}'.")
        return dict(word.split("=", 1) for word in words)

    @field_validator("client_resources", mode="before")
    @classmethod
    def _amounts(cls, value: object) -> JsonObject:
        """Take ["cpu=1", "gpu=0.5"] and "cpu=1,gpu=0.5" for {"cpu": 1, "gpu": 0.5}."""
        amounts = cls._pairs(value)
        for name in amounts:
            if name not in ("cpu", "gpu"):
                raise ConfigError(f"client_resources are cpu and gpu, not '{name}': write such as cpu=1 gpu=0.5.")
        return amounts

    @field_validator("clients", mode="before")
    @classmethod
    def _clients(cls, value: object) -> object:
        """Take ["name=path", ...] and {name: path} for clients."""
        if isinstance(value, dict):
            return [{"name": name, "data": str(data)} for name, data in value.items()]
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list):
            return [_client(entry) if isinstance(entry, str) else entry for entry in value]
        return value

    @model_validator(mode="before")
    @classmethod
    def _natural_count(cls, values: object) -> object:
        """Give a natural split as many clients as it has values, unless num_clients is set."""
        if not isinstance(values, dict) or "num_clients" in values:
            return values
        return values | {"num_clients": 0} if values.get("split_strategy") in registry.NATURAL_SPLITS else values

    @model_validator(mode="before")
    @classmethod
    def _part_of_unit(cls, values: object) -> object:
        """Choose the privacy part of the unit, unless `privacy` is set."""
        if not isinstance(values, dict) or "privacy" in values or "privacy_unit" not in values:
            return values
        return values | {"privacy": privacy.part_of_unit(str(values["privacy_unit"]))}

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        """Check all keys together, before anything is loaded."""
        checks.check(self)
        return self

    @property
    def cohort_size(self) -> int:
        """The clients of a round as far as the keys say; of a split by the data, there may be fewer."""
        known = len(self.clients or ()) or (self.num_clients if self.runtime != "nvflare" else 0)
        return min(self.sample_clients, known or self.sample_clients)

    @property
    def from_scratch(self) -> bool:
        """Whether the model is trained from scratch."""
        return any(value is not None for value in (self.size, self.hidden_size, self.num_layers, self.num_heads))

    @property
    def adapts(self) -> bool:
        """Whether the base is frozen, and an adapter or a prompt is trained."""
        return self.use_peft or self.prompt_method is not None

    @property
    def fills_middle(self) -> bool:
        """Whether rows of fill-in-the-middle are trained on."""
        return self.objective == "causal_lm" and "fim" in pretraining.tasks_of(self.pretraining_task)

    @property
    def public_in_batches(self) -> bool:
        """Whether public rows are mixed into clients' batches, and are no client of their own."""
        return self.public_share > 0 or self.mixture is not None

    @property
    def finds_words(self) -> bool:
        """Whether the run's outcome is a text."""
        return self.prompt_method == "text" or self.endpoint is not None

    @property
    def trains_tokenizer(self) -> bool:
        """Whether the run makes its own tokenizer first."""
        return self.federated_tokenizer or self.tokenizer_text is not None

    @property
    def start_name(self) -> str:
        """A description of the starting model."""
        return (
            f"from nothing ({self.size or f'width {self.hidden_size}'})"
            if self.from_scratch
            else self.model_name_or_path
        )

    @property
    def lora_scale(self) -> float:
        """The s of s B A: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        return self.peft_lora_alpha / (self.peft_lora_r**0.5 if self.use_rslora else self.peft_lora_r)


def _client(text: str) -> dict[str, str]:
    name, separator, data = text.partition("=")
    if not separator or not name or not data:
        raise ConfigError(f"A client is written name=path, not '{text}'.")
    return {"name": name, "data": data}
