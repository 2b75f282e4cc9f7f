"""The files of a checkpoint, and a model with exactly their weights: nothing is drawn or left over in silence."""

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
from weft.models.checkpoint_names import Stored, harmless, listed, plain_names, stripped
from weft.models.noise import hush
from weft.models.notes import Note, unsaid
from weft.models.source import in_words
from weft.models.weight_files import headers, read_tensors

SINGLE = ("model.safetensors", "pytorch_model.bin")
"""Files of weights, each alone or in shards that an index lists; transformers takes the first that is there."""


class Remote(TypedDict):
    """What every loader of transformers is given to read from the hub."""

    trust_remote_code: bool
    token: bool | None


class LoadingReport(TypedDict):
    """What transformers found different between a checkpoint and a model."""

    missing_keys: set[str]
    unexpected_keys: set[str]
    mismatched_keys: list[str] | list[tuple[str, tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class Checkpoint:
    """A folder's, or a hub repository's, files of weights."""

    source: str
    files: list[Path]

    @property
    def pickled(self) -> bool:
        """Whether they are of the format that can hold code (.bin)."""
        return any(file.suffix == ".bin" for file in self.files)

    @cached_property
    def tensors(self) -> dict[str, Stored]:
        """Names, shapes and number formats, no values; ConfigError if a file is damaged."""
        found: dict[str, Stored] = {}
        for file in self.files:
            found |= headers(file)
        return found

    @cached_property
    def plain(self) -> dict[str, str]:
        """For every name the one without what wrappers put before it."""
        return plain_names(self.tensors)

    def check(self) -> None:
        """Look at the head of every file; ConfigError if one is damaged, or a weight is there twice."""
        plain_names(self.tensors)

    def values(self, wanted: set[str] | None = None) -> dict[str, torch.Tensor]:
        """Return tensors by their plain names: the wanted ones, or all."""
        found: dict[str, torch.Tensor] = {}
        for file in self.files:
            names = [name for name in headers(file) if wanted is None or self.plain[name] in wanted]
            if not names:
                continue
            loaded = read_tensors(file, names)
            found |= {self.plain[name]: loaded[name] for name in names}
        return found


def find_checkpoint(source: str, token: bool = False) -> Checkpoint:
    """Return the files of weights that a folder, or a repository of the hub, has.

    Raises:
        ConfigError: there are none, or a shard is missing.
    """
    from transformers.utils.hub import cached_file

    def look(name: str) -> Path | None:
        path = cached_file(source, name, token=token or None, _raise_exceptions_for_missing_entries=False)
        return None if path is None else Path(path)

    with in_words(source):
        for name in SINGLE:
            file = look(name)
            if file is not None:
                return Checkpoint(source, [file])
            index = look(f"{name}.index.json")
            if index is None:
                continue
            shards = {shard: look(shard) for shard in _shards(index)}
            gone = [shard for shard, path in shards.items() if path is None]
            if gone:
                raise ConfigError(
                    f"'{source}' lacks the weights {listed(gone)}, which its {index.name} names: copy the folder again."
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
    note: Note = unsaid,
    token: bool = False,
    trust_remote_code: bool = False,
    **how: Any,
) -> CausalModel:
    """Return a causal language model with the weights of a checkpoint, all of them and no others.

    Args:
        source: a folder, or a hub name.
        seed: what is missing is drawn from it, where that is allowed.
        allow_missing: take a checkpoint that lacks weights, or has some that the model has no place for.
        note: told what is not as it seems.
        token: use the stored token of the hub.
        trust_remote_code: run code that comes with the model.
        how: to transformers' `from_pretrained`: dtype, device_map, ...

    Raises:
        ConfigError: files are missing or damaged, or weights are missing, left over, or of another shape or kind.
    """
    from transformers import AutoModelForCausalLM

    hush()
    found = find_checkpoint(source, token)
    if found.pickled:
        note(
            f"The weights of '{source}' are pickle files (.bin); they are read without running what else such files "
            "can hold, but safetensors would be safer."
        )
    before = stripped(found.plain)
    if before:
        note(f"Names of weights in '{source}' begin with {' and '.join(before)}, which a wrapper left: it is stripped.")
    how |= {"weights_only": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    torch.manual_seed(derive(seed, "missing weights"))
    remote: Remote = {"trust_remote_code": trust_remote_code, "token": token or None}
    with in_words(source):
        _check_formats(found, remote)
        if before:
            model, report = _renamed(found, remote, how)
        else:
            model, report = AutoModelForCausalLM.from_pretrained(source, **remote, **how)
    _compare(found, model, report, allow_missing, note)
    return model


def _renamed(found: Checkpoint, remote: Remote, how: dict[str, Any]) -> tuple[CausalModel, LoadingReport]:
    """Load values under their plain names. transformers takes a folder or values, not both."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    own = AutoConfig.from_pretrained(found.source, **remote)
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(own, trust_remote_code=remote["trust_remote_code"]))
    own.name_or_path = found.source
    model, report = kind.from_pretrained(None, config=own, state_dict=found.values(), **how)
    model.config.name_or_path = model.name_or_path = found.source
    with contextlib.suppress(OSError):  # there need not be one
        model.generation_config = GenerationConfig.from_pretrained(found.source, token=remote["token"])
    return model, report


def _compare(found: Checkpoint, model: CausalModel, report: LoadingReport, allow_missing: bool, note: Note) -> None:
    """Refuse what a checkpoint and a model do not have in common."""
    kind = type(model).__name__
    config = model.config.get_text_config()
    plain = {found.plain[name]: stored for name, stored in found.tensors.items()}
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for one in report["mismatched_keys"]:
        name = one if isinstance(one, str) else one[0]  # transformers 4 has names, 5 the shapes beside them
        given = plain[name].shape if name in plain else tuple(one[1])
        raise ConfigError(
            f"The weight '{name}' of '{found.source}' has the shape {given}, but its config.json describes a {kind} "
            f"whose is {shapes[name]}: give a folder whose config.json and weights belong together."
        )
    _check_ties(found, plain, model)
    missing = sorted(report["missing_keys"])
    left = sorted(name for name in report["unexpected_keys"] if not harmless(name, plain.get(name)))
    if allow_missing:
        if missing:
            note(f"'{found.source}' lacks {len(missing)} weights ({listed(missing)}): they are drawn from the seed.")
        if left:
            note(f"'{found.source}' has {len(left)} weights that are not used ({listed(left)}).")
        return
    faults = [f"lacks {listed(missing)}"] * bool(missing) + [f"has {listed(left)} without a place"] * bool(left)
    if not faults:
        return
    remedy = "give a folder whose config.json and weights belong together"
    if any(".lora_A." in name for name in left):
        remedy = "merge its LoRA first, by peft's `merge_and_unload`"
    elif missing == ["lm_head.weight"] and not left and not getattr(config, "tie_word_embeddings", False):
        remedy = 'write "tie_word_embeddings": true into its config.json if its output layer is its embeddings'
    raise ConfigError(
        f"The checkpoint '{found.source}' does not fit the {kind} that its config.json describes: it "
        f"{' and '.join(faults)}; {remedy}, or begin a run with --allow_missing, which draws what is missing and "
        "leaves out the rest."
    )


def _check_formats(found: Checkpoint, remote: Remote) -> None:
    """Refuse numbers that mean nothing without a scale that nobody reads."""
    odd = [name for name, one in found.tensors.items() if name.endswith(".weight") and one.dtype not in _FLOATS]
    if not odd:
        return
    from transformers import AutoConfig

    if getattr(AutoConfig.from_pretrained(found.source, **remote), "quantization_config", None) is None:
        raise ConfigError(
            f"The weight '{odd[0]}' of '{found.source}' is stored as {found.tensors[odd[0]].dtype}, and its "
            "config.json has no quantization_config by which to read it: name the model that it was made of."
        )


_FLOATS = ("float64", "float32", "float16", "bfloat16")


def _check_ties(found: Checkpoint, plain: dict[str, Stored], model: CausalModel) -> None:
    """Refuse an output layer of its own where the configuration says that it is the embeddings."""
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return
    ends = (model.get_output_embeddings(), model.get_input_embeddings())
    names = {name for name, module in model.named_modules() for end in ends if module is end}
    both = {f"{name}.weight" for name in names} & set(plain)
    if len(both) < 2:
        return
    first, second = found.values(both).values()
    if not torch.equal(first, second):
        raise ConfigError(
            f"The weights {listed(both)} of '{found.source}' differ, but its config.json says that they are one: write "
            '"tie_word_embeddings": false into its config.json.'
        )
