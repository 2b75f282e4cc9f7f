"""The files of a checkpoint, and a model with exactly their weights.

transformers initialises missing weights at random and skips unexpected ones with no more than a warning; here both are
refused, unless the run allows them.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import torch

from weft.core.model_types import CausalModel
from weft.core.seeds import derive
from weft.errors import ConfigError
from weft.models.checkpoint_names import TensorInfo, harmless, join_names, plain_names, wrapper_prefixes
from weft.models.noise import silence_libraries
from weft.models.notes import Note, ignore_note
from weft.models.source import readable_errors
from weft.models.weight_files import headers, read_tensors

SINGLE = ("model.safetensors", "pytorch_model.bin")
"""Files of weights, each alone or in shards that an index lists; transformers takes the first that is there."""


class HubArguments(TypedDict):
    """Arguments of every transformers loader that concern the hub."""

    trust_remote_code: bool
    token: bool | None


class LoadingReport(TypedDict):
    """Differences between a checkpoint and a model, as transformers reports them."""

    missing_keys: set[str]
    unexpected_keys: set[str]
    mismatched_keys: list[str] | list[tuple[str, tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class Checkpoint:
    """The weight files of a folder or of a hub repository."""

    source: str
    files: list[Path]

    @property
    def is_pickle(self) -> bool:
        """Whether any file is a pickle (.bin), a format that can hold code."""
        return any(file.suffix == ".bin" for file in self.files)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Names, shapes and number formats, no values; ConfigError if a file is damaged."""
        infos: dict[str, TensorInfo] = {}
        for file in self.files:
            infos |= headers(file)
        return infos

    @cached_property
    def plain_name_of(self) -> dict[str, str]:
        """For every stored name, the name without the prefixes of wrappers."""
        return plain_names(self.tensors)

    def check(self) -> None:
        """Read the header of every file; ConfigError if one is damaged, or a weight is stored twice."""
        plain_names(self.tensors)

    def values(self, names: set[str] | None = None) -> dict[str, torch.Tensor]:
        """Return tensors by their plain names: those in `names`, or all."""
        values: dict[str, torch.Tensor] = {}
        for file in self.files:
            file_names = [name for name in headers(file) if names is None or self.plain_name_of[name] in names]
            if not file_names:
                continue
            loaded = read_tensors(file, file_names)
            values |= {self.plain_name_of[name]: loaded[name] for name in file_names}
        return values


def find_checkpoint(source: str, token: bool = False) -> Checkpoint:
    """Return the weight files of a folder or of a hub repository.

    Raises:
        ConfigError: there are none, or a shard is missing.
    """
    from transformers.utils.hub import cached_file

    def look(name: str) -> Path | None:
        path = cached_file(source, name, token=token or None, _raise_exceptions_for_missing_entries=False)
        return None if path is None else Path(path)

    with readable_errors(source):
        for name in SINGLE:
            file = look(name)
            if file is not None:
                return Checkpoint(source, [file])
            index = look(f"{name}.index.json")
            if index is None:
                continue
            shards = {shard: look(shard) for shard in _shards(index)}
            missing = [shard for shard, path in shards.items() if path is None]
            if missing:
                raise ConfigError(
                    f"'{source}' lacks the weights {join_names(missing)}, which its {index.name} names: "
                    "copy the folder again."
                )
            return Checkpoint(source, [path for path in shards.values() if path is not None])
    raise ConfigError(
        f"'{source}' holds no weights ({' or '.join(SINGLE)}, or shards of one of them): give a folder with weights, "
        "or a hub name."
    )


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ConfigError(f"'{index}' is no index of weights: copy it again.") from None


def load_weights(
    source: str,
    *,
    seed: int = 0,
    allow_missing: bool = False,
    note: Note = ignore_note,
    token: bool = False,
    trust_remote_code: bool = False,
    **settings: Any,
) -> CausalModel:
    """Return a causal language model with the weights of a checkpoint, all of them and no others.

    Args:
        source: a folder, or a hub name.
        seed: of the random initialisation of missing weights, where these are allowed.
        allow_missing: accept a checkpoint with missing or unexpected weights.
        note: called with a sentence about each peculiarity of the checkpoint.
        token: use the stored token of the hub.
        trust_remote_code: run code that comes with the model.
        settings: for transformers' `from_pretrained`: dtype, device_map, ...

    Raises:
        ConfigError: files are missing or damaged, or weights are missing, unexpected, or of another
            shape or number format.
    """
    from transformers import AutoModelForCausalLM

    silence_libraries()
    checkpoint = find_checkpoint(source, token)
    if checkpoint.is_pickle:
        note(
            f"The weights of '{source}' are pickle files (.bin); they are read without running any code in them, "
            "but safetensors would be safer."
        )
    prefixes = wrapper_prefixes(checkpoint.plain_name_of)
    if prefixes:
        note(
            f"Names of weights in '{source}' begin with {' and '.join(prefixes)}, which a wrapper left: it is stripped."
        )
    # Mismatches are ignored here only to be reported, and refused, in `_compare`.
    settings |= {"weights_only": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    torch.manual_seed(missing_seed(seed))
    remote: HubArguments = {"trust_remote_code": trust_remote_code, "token": token or None}
    with readable_errors(source):
        _check_formats(checkpoint, remote)
        if prefixes:
            model, report = _renamed(checkpoint, remote, settings)
        else:
            model, report = AutoModelForCausalLM.from_pretrained(source, **remote, **settings)
    _compare(checkpoint, model, report, allow_missing, note)
    return model


def missing_seed(seed: int) -> int:
    """Return the seed of torch's generator while a checkpoint is read, from which missing weights are drawn."""
    return derive(seed, "missing weights")


def _renamed(
    checkpoint: Checkpoint, remote: HubArguments, settings: dict[str, Any]
) -> tuple[CausalModel, LoadingReport]:
    """Load tensors under their plain names; transformers takes a folder or tensors, not both."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(checkpoint.source, **remote)
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config, trust_remote_code=remote["trust_remote_code"]))
    config.name_or_path = checkpoint.source
    model, report = kind.from_pretrained(None, config=config, state_dict=checkpoint.values(), **settings)
    model.config.name_or_path = model.name_or_path = checkpoint.source
    with contextlib.suppress(OSError):  # a checkpoint need not have one
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.source, token=remote["token"])
    return model, report


def _compare(
    checkpoint: Checkpoint, model: CausalModel, report: LoadingReport, allow_missing: bool, note: Note
) -> None:
    """Refuse weights that only the checkpoint or only the model has, and weights of different shapes."""
    kind, source = type(model).__name__, checkpoint.source
    config = model.config.get_text_config()
    infos = {checkpoint.plain_name_of[name]: info for name, info in checkpoint.tensors.items()}
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for entry in report["mismatched_keys"]:
        name = entry if isinstance(entry, str) else entry[0]  # transformers 4 has names, 5 the shapes beside them
        shape = infos[name].shape if name in infos else tuple(entry[1])
        raise ConfigError(
            f"The weight '{name}' of '{source}' has the shape {shape}, but its config.json describes a {kind} "
            f"whose is {shapes[name]}: give a folder whose config.json and weights belong together."
        )
    _check_ties(checkpoint, infos, model)
    missing = sorted(report["missing_keys"])
    unexpected = sorted(name for name in report["unexpected_keys"] if not harmless(name, infos.get(name)))
    if allow_missing:
        if missing:
            note(
                f"'{source}' lacks {len(missing)} weights ({join_names(missing)}): they are initialised from the seed."
            )
        if unexpected:
            note(f"'{checkpoint.source}' has {len(unexpected)} weights that are not used ({join_names(unexpected)}).")
        return
    faults = [f"lacks {join_names(missing)}"] * bool(missing) + [
        f"has {join_names(unexpected)} without a place"
    ] * bool(unexpected)
    if not faults:
        return
    remedy = "give a folder whose config.json and weights belong together"
    if any(".lora_A." in name for name in unexpected):
        remedy = "merge its LoRA first, by peft's `merge_and_unload`"
    elif missing == ["lm_head.weight"] and not unexpected and not getattr(config, "tie_word_embeddings", False):
        remedy = 'write "tie_word_embeddings": true into its config.json if its output layer is its embeddings'
    raise ConfigError(
        f"The checkpoint '{checkpoint.source}' does not fit the {kind} that its config.json describes: it "
        f"{' and '.join(faults)}; {remedy}, or start a run with --allow_missing, which initialises missing weights "
        "at random and ignores the others."
    )


def _check_formats(checkpoint: Checkpoint, remote: HubArguments) -> None:
    """Refuse integer weights of a quantised model whose scales nothing would apply."""
    integer_weights = [
        name for name, info in checkpoint.tensors.items() if name.endswith(".weight") and info.dtype not in _FLOATS
    ]
    if not integer_weights:
        return
    from transformers import AutoConfig

    first = integer_weights[0]
    if getattr(AutoConfig.from_pretrained(checkpoint.source, **remote), "quantization_config", None) is None:
        raise ConfigError(
            f"The weight '{first}' of '{checkpoint.source}' is stored as {checkpoint.tensors[first].dtype}, and its "
            "config.json has no quantization_config by which to read it: name the model that it was made of."
        )


_FLOATS = ("float64", "float32", "float16", "bfloat16")


def _check_ties(checkpoint: Checkpoint, infos: dict[str, TensorInfo], model: CausalModel) -> None:
    """Refuse an output layer that differs from the embeddings where config.json says that both are one tensor."""
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return
    ends = (model.get_output_embeddings(), model.get_input_embeddings())
    names = {name for name, module in model.named_modules() for end in ends if module is end}
    tied_names = {f"{name}.weight" for name in names} & set(infos)
    if len(tied_names) < 2:
        return
    first, second = checkpoint.values(tied_names).values()
    if not torch.equal(first, second):
        raise ConfigError(
            f"The weights {join_names(tied_names)} of '{checkpoint.source}' differ, but its config.json says that they "
            'are one: write "tie_word_embeddings": false into its config.json.'
        )
