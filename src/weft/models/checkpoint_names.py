"""Names of weights in a checkpoint: prefixes of wrappers, and names that a model may ignore.

Knows nothing of files and models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from weft.errors import ConfigError

WRAPPERS = (
    "_orig_mod",  # torch.compile
    "module",  # DistributedDataParallel, DataParallel, DeepSpeed
    "base_model.model",  # peft
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",  # Lightning
)
"""Prefixes that libraries add to the names of the modules that they wrap."""
_LEADING = re.compile(rf"^(?:(?:{'|'.join(map(re.escape, WRAPPERS))})\.)+")
_INNER = re.compile(r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class TensorInfo(NamedTuple):
    """A tensor of a checkpoint, without its values."""

    shape: tuple[int, ...]
    dtype: str
    """As torch names it: float32, ..."""


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return, for every name of a checkpoint, the name without the prefixes of wrappers.

    Raises:
        ConfigError: two names become the same.
    """
    plain = {name: _INNER.sub("", _LEADING.sub("", name)) for name in names}
    ahead = [name.startswith(("model.model.", "model.lm_head.")) for name in plain.values()]
    if ahead and all(ahead):  # the model was saved as the attribute `model` of another module
        plain = {name: other.removeprefix("model.") for name, other in plain.items()}
    originals: dict[str, str] = {}
    for name, other in plain.items():
        if other in originals:
            raise ConfigError(
                f"The checkpoint has the weight '{other}' twice, as '{originals[other]}' and as '{name}': save it "
                "again with one of them."
            )
        originals[other] = name
    return plain


def wrapper_prefixes(plain: Mapping[str, str]) -> list[str]:
    """Return the prefixes that `plain_names` removed, sorted."""
    prefixes = set()
    for name, other in plain.items():
        if name == other:
            continue
        lead = _LEADING.match(name)
        prefixes.update([lead[0]] if lead else [])
        prefixes.update(_INNER.findall(name))
        if not lead and not _INNER.search(name):
            prefixes.add("model.")
    return sorted(prefixes)


def harmless(name: str, info: TensorInfo | None) -> bool:
    """Return whether an unexpected weight is only a buffer, which the model computes itself."""
    last = name.rpartition(".")[2]
    if last in ("inv_freq", "position_ids", "token_type_ids", "cos_cached", "sin_cached", "masked_bias"):
        return True
    mask = info is not None and len(info.shape) == 4 and info.shape[:2] == (1, 1)
    return last == "bias" and mask  # a causal mask, as GPT-2, GPT-Neo and GPT-NeoX kept it


def join_names(names: Iterable[str], most: int = 3) -> str:
    """Return the first `most` names in order, and the number of the others."""
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f" and {len(ordered) - most} more" if len(ordered) > most else "")
