"""What an evaluation is of: the model of a run, a model or adapter by its name or folder, or one behind an endpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.config import build
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.keys.prompt import EMBEDDED
from weft.tasks.requests import EvaluatedModel
from weft.tasks.store import END, FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable

    from weft.core.model_types import CausalModel
    from weft.launch.run import Run


@dataclass(frozen=True)
class Subject:
    """What is evaluated."""

    model: EvaluatedModel
    name: str
    """For people."""
    identity: JsonObject
    """What decides about its replies: fingerprints, number format, template."""
    folder: Path
    """Where its results are written unless another folder is named."""
    reference: EvaluatedModel | None = None
    """The same model beside a reference model."""
    weights: Path | None = None
    """Of a run: the file or folder of its weights."""

    def template(self) -> str:
        """Return a digest of the chat template of a model in this process; ConfigError where it has none."""
        from weft.core.digests import digest_of
        from weft.tasks.encoding import Encoder
        from weft.tasks.local_model import LocalModel

        assert isinstance(self.model, LocalModel)
        tokenizer = self.model.model.tokenizer
        Encoder(tokenizer, chat=True)
        return digest_of([str(tokenizer.chat_template)])


def is_run(name: str) -> bool:
    """Return whether a name is that of a run's directory."""
    return (Path(name).expanduser() / "config.yaml").exists()


def of_run(run: Run, client: str | None, *, chat: bool, batch_size: int) -> Subject:
    """Load the model of a run, at the round that it was opened at.

    Raises:
        ConfigError: the run has no such model, or its model is behind an endpoint.
    """
    from weft.data.words import Words
    from weft.launch.provenance import base_of
    from weft.runs.task_scores import weights_digest

    config = run.config
    if config.endpoint is not None:
        raise ConfigError(
            f"The model of this run is behind {config.endpoint}: write --endpoint {config.endpoint} and the model's "
            "name, which scores it without the prompt that the run found."
        )
    weights = run.weights(client)
    identity: JsonObject = {"weights": weights_digest(weights), "client": client}
    identity |= base_of(config) if config.adapts else {}
    instruction = run.instruction(client)
    place = None
    if instruction:
        words = Words(run.tokenizer)
        ids = words.tokens(instruction)

        def place(row: np.ndarray) -> np.ndarray:
            return words.into(row, ids)

    model = run.load_model(client)
    method = None if config.finds_words else config.prompt_method
    evaluated = _resident(model, run.tokenizer, method, place, chat=chat, batch_size=batch_size)
    number = run.round if run.round is not None else "end"
    folder = run.path / FOLDER / (f"round_{number}" if not run.at_end else END)
    name = str(run.path) + (f", client {client}" if client else "") + ("" if run.at_end else f", round {number}")
    folder = folder / client if client else folder
    return Subject(evaluated, name, identity | _format(evaluated), folder, weights=weights)


def of_model(name: str, settings: JsonObject, *, chat: bool, batch_size: int) -> Subject:
    """Load a model from the hub or a folder, or an adapter in a folder with the model that it names.

    Args:
        name: of the model, or a folder.
        settings: keys of a run that say how it is loaded: device, dtype, load_in_4bit, trust_remote_code, ...
        chat: prompts are turns in the tokenizer's template.
        batch_size: prompts at a time.

    Raises:
        ConfigError: there is no such model.
    """
    from weft.launch.provenance import base_of
    from weft.models.adapter_files import attach
    from weft.models.load import base_model
    from weft.models.starting import adapter_of
    from weft.models.tokenizer import load_tokenizer

    # `use_peft` alone: weights are read in the model's number format, and no adapter is added.
    config = build({"model_name_or_path": name, "dataset_name": "none", "use_peft": True} | settings)
    tokenizer = load_tokenizer(config)
    model: Any = base_model(config)
    adapter = adapter_of(config)
    method = None
    if adapter is not None:
        model = attach(model, adapter)
        kinds = {"PREFIX_TUNING": "prefix", "PROMPT_TUNING": "soft", "P_TUNING": "p_tuning"}
        method = kinds.get(str(getattr(model.peft_config["default"].peft_type, "value", "")))
    evaluated = _resident(model, tokenizer, method, None, chat=chat, batch_size=batch_size)
    digests = {_plain(kind): value for kind, value in base_of(config).items()}
    return Subject(evaluated, name, digests | _format(evaluated), folder_of(name))


def folder_of(name: str) -> Path:
    """Return the folder of the evaluations of a model, by the model's name or folder."""
    return Path("evaluations") / re.sub(r"[^\w.-]+", "_", name.strip("/"))


def _plain(kind: str) -> str:
    """Return what a fingerprint is of without the path of it, so that a folder may be moved."""
    return re.sub(r" '.*'$", "", kind)


def _resident(
    model: CausalModel,
    tokenizer: Any,
    method: str | None,
    place: Callable[[np.ndarray], np.ndarray] | None,
    *,
    chat: bool,
    batch_size: int,
) -> EvaluatedModel:
    """Return a loaded model as one that tasks are put to; `method`: of its prompt of vectors, None without one."""
    from weft.core.model_types import as_adapted
    from weft.models.prompts import Front
    from weft.models.resident import Resident
    from weft.tasks.local_model import LocalModel

    model.requires_grad_(False)
    model.eval()
    front, lead = None, np.zeros(0, dtype=np.int32)
    if method is not None:
        adapted = as_adapted(model)
        front = Front(adapted, method)
        if method in EMBEDDED:  # the saved prompt holds the shared vectors, and a client's own
            lead = -np.arange(1, adapted.peft_config["default"].num_virtual_tokens + 1, dtype=np.int32)
    resident = Resident(model, tokenizer, next(model.parameters()).device, _dtype(model), front)
    return LocalModel(resident, chat=chat, batch_size=batch_size, lead=lead, place=place)


def _dtype(model: CausalModel) -> Any:
    """Return the number format that a model computes in: that of its floating parameters."""
    import torch

    return next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)


def _format(model: EvaluatedModel) -> JsonObject:
    from weft.core.digests import digest_of
    from weft.tasks.local_model import LocalModel

    assert isinstance(model, LocalModel)
    template = str(model.model.tokenizer.chat_template) if model.encoder.chat else ""
    return {"dtype": str(model.model.dtype).removeprefix("torch."), "chat_template": template and digest_of([template])}
