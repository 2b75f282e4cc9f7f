"""The most that a run may ask of a site, by key: what would cost it memory and time.

The defaults are generous; `accept: limits:` of site.yaml raises or lowers them. Keys that only factor into sums, or
that another rule limits, are not here; a test names the reason for each.
"""

from __future__ import annotations

from collections.abc import Mapping

from weft.sites.run_keys import FROM_RUN

MOST: dict[str, float] = {
    "peft_lora_r": 1024,
    "lora_side_rank": 4096,
    "num_virtual_tokens": 1024,
    "private_tokens": 1024,
    "few_shot": 64,
    "prompt_pool": 1024,
    "prompt_proposals": 64,
    "prompt_length": 16_384,
    "black_box_dim": 16_384,
    "population": 1024,
    "prompt_hidden_size": 16_384,
    "seq_length": 131_072,
    "cluster": 16,
    "weight_rate": 100,
    "reward_seconds": 60,
    "num_generations": 256,
    "max_new_tokens": 32_768,
    "grpo_iterations": 64,
    "num_train_epochs": 1000,
    "batch_size": 1024,
    "gradient_accumulation_steps": 4096,
    "eval_batch_size": 4096,
    "fed_args.seeds": 65_536,
    "fed_args.fragments": 1024,
    "codec_args.rank": 1024,
    "codec_args.iterations": 64,
    "codec_down_args.rank": 1024,
    "codec_down_args.iterations": 64,
}
"""The most of each key; KEY.NAME is the parameter NAME among a part's own."""
CHARACTERS = 1_000_000
"""Most characters of a text, or of all texts of a list."""


def refusal(run: Mapping[str, object], limits: Mapping[str, float]) -> str | None:
    """Return the reason to refuse the numbers and texts of a run, in one sentence; None: the site takes them.

    Args:
        run: its keys, with their defaults.
        limits: the limits that the site policy sets itself.
    """
    for key, most in (MOST | dict(limits)).items():
        amount = _amount(run, key)
        if amount is not None and not amount <= most:  # NaN is refused too
            return f"the run asks for {key} {amount:g}, and this site accepts {most:g} at most"
    for key in sorted(FROM_RUN & run.keys()):
        length = _length(run[key])
        if length > CHARACTERS:
            return f"the run's {key} has {length} characters, and this site accepts {CHARACTERS} at most"
    return None


def beyond(run: Mapping[str, object]) -> dict[str, float]:
    """Return what a run asks for beyond the defaults, by key: the limits of a site of the run's own author."""
    amounts = {key: _amount(run, key) for key in MOST}
    return {key: amount for key, amount in amounts.items() if amount is not None and amount > MOST[key]}


def _amount(run: Mapping[str, object], key: str) -> float | None:
    """Return the number that a key asks for, or None where it has none."""
    outer, _, inner = key.partition(".")
    value = run.get(outer)
    if inner:
        value = value.get(inner) if isinstance(value, dict) else None
    try:
        return None if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None if value == "auto" else float("nan")


def _length(value: object) -> int:
    """Return the number of characters of a text, a list or an object."""
    if isinstance(value, (list, tuple)):
        return sum(map(_length, value))
    if isinstance(value, dict):
        return sum(len(str(name)) + _length(entry) for name, entry in value.items())
    return len(value) if isinstance(value, str) else 1
