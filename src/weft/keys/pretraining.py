"""Keys of what `weft pretrain` learns and of which text: tasks, and the mixture of domains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from weft import registry
from weft.errors import ConfigError
from weft.keys.effects import Condition, Effect, flag, verbs

if TYPE_CHECKING:
    from weft.keys import RunConfig

TASKS = ("causal", "fim", "prefix")
FIM_TOKENS = 4
"""What fill-in-the-middle adds to a row: three marks, and an end token behind the middle."""
FIM_SHORTEST = 8
"""The least seq_length with fill-in-the-middle, so that half a row is text."""
PUBLIC = "public"
"""The domain of public_data."""
TEMPERATURE, EXCESS = "temperature", "excess"
RULES = (TEMPERATURE, EXCESS)
"""Values of `mixture` that are no shares."""
ROUNDING = 1e-6
"""By which shares may miss 1."""


class PretrainingKeys(BaseModel):
    """Tasks and mixture."""

    pretraining_task: str = Field(
        "causal",
        description="task of plain text: causal, fim (fill-in-the-middle), prefix, or shares of rows such as "
        "fim=0.5,prefix=0.2, where the rest is causal",
    )
    fim_spm_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of rows of fill-in-the-middle in the order suffix, prefix, middle instead of prefix, "
        "suffix, middle",
    )
    mixture: str | None = Field(
        None,
        description="mixture of domains in every client's batches: shares by name such as code=0.7,prose=0.3, "
        "temperature, or excess",
    )
    mixture_column: str | None = Field(
        None, description="column that names the domain of a row (default: the name of its file)"
    )
    mixture_temperature: float = Field(
        2.0, ge=1, description="shares are as rows^(1 / this), with mixture temperature and excess; 1: as rows"
    )
    mixture_reference: str | None = Field(
        None, description="losses that a small model reached, with mixture excess: a run by domain, or name=loss,..."
    )
    mixture_strength: float = Field(
        1.0, gt=0, description="exponent by which excess loss raises a domain's share, with mixture excess"
    )


FILLS_MIDDLE: Effect = (
    Condition(
        lambda config: "fim" in tasks_of(config.pretraining_task),
        "it concerns fill-in-the-middle, and pretraining_task is {c.pretraining_task}",
        "add --pretraining_task fim=0.5",
    ),
)
RULED: Effect = (
    Condition(
        lambda config: config.mixture in RULES,
        "shares follow from it with mixture temperature or excess, and mixture is {c.mixture}",
        "write --mixture temperature",
    ),
)
BY_EXCESS: Effect = (
    Condition(
        lambda config: config.mixture == EXCESS,
        "it concerns mixture excess, and mixture is {c.mixture}",
        "write --mixture excess",
    ),
)
STEPS: Effect = (
    *verbs("causal_lm"),
    Condition(
        lambda config: config.objective == "causal_lm",
        "it concerns Weft's own causal_lm, and the objective is {c.objective}",
        "write --objective causal_lm",
    ),
    Condition(
        lambda config: config.prompt_method not in ("black_box", "text"),
        "a prompt is searched by the losses of plain rows, and prompt_method is {c.prompt_method}",
        "choose another --prompt_method",
    ),
)
WORKS: dict[str, Effect] = {
    "pretraining_task": STEPS,
    "fim_spm_share": FILLS_MIDDLE,
    "mixture": STEPS,
    "mixture_column": flag("mixture", "temperature"),
    "mixture_temperature": RULED,
    "mixture_reference": BY_EXCESS,
    "mixture_strength": BY_EXCESS,
}
"""When each key has an effect."""


def numbers_of(key: str, text: str) -> dict[str, float]:
    """Return "name=number,..." by name; ConfigError for a part of another form, a number below 0, or a name twice."""
    found: dict[str, float] = {}
    for word in (part.strip() for part in text.split(",")):
        name, equals, number = word.rpartition("=")
        try:
            value = float(number) if equals and name else -1.0
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{key} holds '{word}', which is no name=number with a number from 0: write such as a=1.")
        if name.strip() in found:
            raise ConfigError(f"{key} names '{name.strip()}' twice: write it once.")
        found[name.strip()] = value
    return found


def tasks_of(text: str) -> dict[str, float]:
    """Return the share of each task that has one, in the order of `TASKS`; they add up to 1.

    Raises:
        ConfigError: an unknown task, or shares over 1, or under 1 with a share for causal.
    """
    shares = {text: 1.0} if text in TASKS else numbers_of("pretraining_task", text) if "=" in text else {text: 0.0}
    for name in shares:
        if name not in TASKS:
            if set(name.split(",")) <= set(TASKS):
                raise ConfigError(
                    f"pretraining_task '{text}' names several tasks: give each its share of the rows, such as "
                    f"{','.join(f'{task}=0.3' for task in name.split(','))}."
                )
            guess = registry.nearest(name, list(TASKS))
            hint = f"did you mean '{guess}'?" if guess else f"write {', '.join(TASKS)}, or such as fim=0.5."
            raise ConfigError(f"There is no pretraining_task '{name}': {hint}")
        if "=" in text and shares[name] <= ROUNDING:
            raise ConfigError(
                f"pretraining_task '{text}' gives {name} no rows: leave '{name}' out, or give it a share."
            )
    total = sum(shares.values())
    if total > 1 + ROUNDING or ("causal" in shares and total < 1 - ROUNDING):
        raise ConfigError(
            f"The shares of pretraining_task '{text}' add up to {total:g}: write shares that add up to 1, or leave out "
            "causal, which has the rest."
        )
    shares.setdefault("causal", max(0.0, 1 - total))
    return {name: share for name in TASKS if (share := shares.get(name, 0.0)) > ROUNDING}


def mixture_shares(text: str) -> dict[str, float] | None:
    """Return the shares of domains by name; None: a rule chooses them. ConfigError where they do not add up to 1."""
    if text in RULES:
        return None
    if "=" not in text:
        guess = registry.nearest(text, list(RULES))
        hint = f"did you mean '{guess}'?" if guess else f"write name=share,..., or {' or '.join(RULES)}."
        raise ConfigError(f"mixture is '{text}', which is neither shares nor a rule: {hint}")
    shares = numbers_of("mixture", text)
    if abs(sum(shares.values()) - 1) > ROUNDING:
        raise ConfigError(
            f"The shares of mixture '{text}' add up to {sum(shares.values()):g}: write shares that add up to 1."
        )
    return shares


def check(config: RunConfig) -> None:
    """Refuse tasks and mixtures that cannot be; raises ConfigError with the remedy."""
    if config.objective != "causal_lm":
        return
    if "fim" in tasks_of(config.pretraining_task) and config.seq_length < FIM_SHORTEST:
        raise ConfigError(
            f"seq_length is {config.seq_length}, and fill-in-the-middle adds {FIM_TOKENS} tokens to a row: write "
            f"--seq_length {FIM_SHORTEST} or more."
        )
    if config.mixture is not None:
        _check_mixture(config, config.mixture)


def _check_mixture(config: RunConfig, mixture: str) -> None:
    shares = mixture_shares(mixture)
    if config.public_share:
        raise ConfigError(
            "mixture and public_share both say how much is public: leave out --public_share, and write "
            f"--mixture {PUBLIC}={config.public_share:g},..."
        )
    if shares is not None and PUBLIC in shares and config.public_data is None:
        raise ConfigError(f"mixture has a share for '{PUBLIC}', but there is no public_data: write --public_data FILE.")
    if shares is not None and PUBLIC not in shares and config.public_data is not None:
        raise ConfigError(
            f"public_data is given, but mixture has no share for '{PUBLIC}': add {PUBLIC}=SHARE, or leave out "
            "--public_data."
        )
    if config.privacy_unit not in ("none", "client"):
        raise ConfigError(
            "Under differential privacy of rows every row takes part by the same coin, and mixture would change its "
            "odds: leave out --mixture, or write --privacy_unit client."
        )
    if config.canaries:
        raise ConfigError(
            "Canaries are documents of no domain, and mixture draws by domain: leave out --mixture or --canaries."
        )
    if mixture == TEMPERATURE and config.runtime == "nvflare":
        raise ConfigError(
            "Sites do not tell each other the names of their domains, so mixture temperature has no common list of "
            "them: write the shares by name, such as --mixture code=0.7,prose=0.3."
        )
    if (mixture == EXCESS) != (config.mixture_reference is not None):
        raise ConfigError(
            "mixture excess and mixture_reference belong together: write --mixture excess --mixture_reference RUN."
        )
    reference = config.mixture_reference
    if reference is not None and "=" in reference:
        numbers_of("mixture_reference", reference)
    elif reference is not None and config.runtime == "nvflare":
        raise ConfigError(
            "Sites open no run that another run names: write the losses of mixture_reference as name=loss,..."
        )
    split = config.split_column
    if (
        config.mixture_column is not None
        and split is not None
        and not config.clients
        and split != config.mixture_column
    ):
        raise ConfigError(
            f"Text is stored with one column, and split_column is '{split}': write --mixture_column {split}, or split "
            "in another way."
        )
