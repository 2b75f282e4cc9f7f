"""Names of weights in a checkpoint: what wrappers put before them, and which of them may be absent or left over.

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
"""What libraries put before the names of what they wrap."""
_LEADING = re.compile(rf"^(?:(?:{'|'.join(map(re.escape, WRAPPERS))})\.)+")
_INNER = re.compile(r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class Stored(NamedTuple):
    """A tensor of a checkpoint, without its values."""

    shape: tuple[int, ...]
    dtype: str
    """As torch names it: float32, ..."""


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return for every name of a checkpoint the one without wrappers.

    Raises:
        ConfigError: two names would become one.
    """
    plain = {name: _INNER.sub("", _LEADING.sub("", name)) for name in names}
    ahead = [name.startswith(("model.model.", "model.lm_head.")) for name in plain.values()]
    if ahead and all(ahead):  # a model that was an attribute `model` of something
        plain = {name: other.removeprefix("model.") for name, other in plain.items()}
    taken: dict[str, str] = {}
    for name, other in plain.items():
        if other in taken:
            raise ConfigError(
                f"The checkpoint has the weight '{other}' twice, as '{taken[other]}' and as '{name}': save it again "
                "with one of them."
            )
        taken[other] = name
    return plain


def stripped(plain: Mapping[str, str]) -> list[str]:
    """Return what was taken out of the names, sorted: the wrappers, as they stood."""
    found = set()
    for name, other in plain.items():
        if name == other:
            continue
        lead = _LEADING.match(name)
        found.update([lead[0]] if lead else [])
        found.update(_INNER.findall(name))
        if not lead and not _INNER.search(name):
            found.add("model.")
    return sorted(found)


def harmless(name: str, stored: Stored | None) -> bool:
    """Say whether a weight that a model has no place for is only a buffer, which models compute by themselves."""
    last = name.rpartition(".")[2]
    if last in ("inv_freq", "position_ids", "token_type_ids", "cos_cached", "sin_cached", "masked_bias"):
        return True
    mask = stored is not None and len(stored.shape) == 4 and stored.shape[:2] == (1, 1)
    return last == "bias" and mask  # a causal mask, as GPT-2, GPT-Neo and GPT-NeoX kept it


def listed(names: Iterable[str], most: int = 3) -> str:
    """Return the first names, and how many more there are."""
    every = sorted(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
