"""What a budget leaves of the signal, said before anybody trains."""

from __future__ import annotations

import math
from collections.abc import Callable

from weft.config import RunConfig
from weft.core.types import Tensors
from weft.federation.plan import Plan
from weft.keys.privacy import CLIENT
from weft.launch.budgets import guarantee_of
from weft.privacy.guarantee import Guarantee

TOO_MUCH = 10.0
"""Noise of so many times the largest signal, above which nothing is learnt."""
NEXT_TO_NOTHING = 20.0
"""The epsilon above which a promise is none: odds of a guess that change by a factor of e^20 are certainty."""


def noise_over_signal(noise: float, parameters: int, contributions: float) -> float:
    """Return the norm of the noise over the largest norm of the sum: z sqrt(d) C / (n C).

    Args:
        noise: the noise multiplier z.
        parameters: d, the numbers that get noise.
        contributions: n, units in a sum, each of a norm of C at most.
    """
    return noise * math.sqrt(parameters) / contributions


def privacy_line(config: RunConfig, plan: Plan, parameters: int, units: int) -> str | None:
    """Return the budget and the signal that it leaves, in a line of the plan; None: the run has no budget.

    Args:
        config: the run.
        plan: its parts.
        parameters: that are trained and shared.
        units: `deciding_units` of the run; 0: not known.
    """
    guarantee = guarantee_of(config, plan.privacy, units)
    if guarantee is None:
        return None
    ratio = _ratio(config, guarantee, parameters)
    spent = guarantee.epsilon(config.num_rounds)
    epsilon = f"epsilon {spent:.4g} at delta {guarantee.delta:g}" if math.isfinite(spent) else "no epsilon"
    signal = f"the noise has {ratio:.3g} times the norm of the largest signal (z sqrt(d) / n)"
    return (
        f"{epsilon} for each {guarantee.unit_text} after {config.num_rounds} rounds, noise_multiplier "
        f"{guarantee.noise:.4g}; {signal}"
    )


def warn_of_noise(config: RunConfig, plan: Plan, masters: Tensors, units: int, note: Callable[[str], None]) -> None:
    """Note what is not hidden, and what speaks against the budget of a run whose model is loaded, before it trains.

    Args:
        config: the run.
        plan: its parts.
        masters: all that is trained of the model.
        units: `deciding_units` of the run.
        note: called with each sentence.
    """
    if plan.protection.remark:
        note(plan.protection.remark)
    names = [name for name in plan.sharing.trained_names(masters, 0) if plan.sharing.travels(name)]
    for line in privacy_warnings(config, plan, sum(masters[name].numel() for name in names), units):
        note(line)


def privacy_warnings(config: RunConfig, plan: Plan, parameters: int, units: int) -> list[str]:
    """Return what speaks against a run with a budget, with what would help; arguments as of `privacy_line`."""
    guarantee = guarantee_of(config, plan.privacy, units)
    if guarantee is None:
        return []
    lines = []
    ratio = _ratio(config, guarantee, parameters)
    if ratio > TOO_MUCH:
        help_ = ["fewer trained parameters (a smaller --peft_lora_r, fewer --peft_lora_target_modules, a prompt)"]
        if guarantee.unit == CLIENT:
            help_ += ["more clients in a round (--sample_clients)", "another unit (--privacy_unit row)"]
        else:
            help_ += ["more rows in a step (--batch_size, --gradient_accumulation_steps)"]
        lines.append(
            f"the noise has {ratio:.3g} times the norm of the largest signal, so nothing will be learnt: what helps is "
            f"{'; '.join(help_)}; or a larger --target_epsilon."
        )
    if NEXT_TO_NOTHING < (spent := guarantee.epsilon(config.num_rounds)) < math.inf:
        lines.append(
            f"an epsilon of {spent:.3g} promises next to nothing: the odds of a guess about one "
            f"{guarantee.unit_text} may change by a factor of e^{spent:.3g}; write --target_epsilon 8 or less."
        )
    if plan.privacy.in_steps:
        lines.append(
            "the gradient of every row is computed by itself, so rows are not packed, and activations are not "
            "recomputed (--gradient_checkpointing)."
        )
        if plan.objective.apart:
            lines.append(plan.objective.apart)
    if plan.trainable == "lora" and plan.sharing.lora.plain and not plan.sharing.lora.frozen:
        lines.append(
            "noise on both LoRA factors multiplies in their product: --lora_aggregation ffa, which freezes A, trains "
            "half of the parameters and keeps the noise linear."
        )
    if units and guarantee.delta > 1 / units:
        lines.append(
            f"target_delta is {guarantee.delta:g}, more than 1 / {units} units: a mechanism that publishes one of them "
            f"whole would satisfy it; write --target_delta {10 ** math.floor(-math.log10(units * 1.0001)):g} or less."
        )
    return lines


def _ratio(config: RunConfig, guarantee: Guarantee, parameters: int) -> float:
    rows = config.batch_size * config.gradient_accumulation_steps
    clients = len(config.clients or ()) or config.num_clients
    cohort = min(config.sample_clients, clients) if clients and config.runtime != "nvflare" else config.sample_clients
    return noise_over_signal(guarantee.noise, parameters, cohort if guarantee.unit == CLIENT else rows)
