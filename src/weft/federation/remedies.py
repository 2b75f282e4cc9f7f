"""Refusals and their remedies: what to write instead, by the names of the registry that the rules take.

A remedy is words of its own, or `Another` part of a kind. The names of the latter are looked for only when a refusal is
printed: every part of the registry is put into the plan in turn, and those are named that break no further rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from weft import registry
from weft.algorithms.clustered import Clustered
from weft.core.parts import Algorithm
from weft.errors import ConfigError
from weft.federation.plan import Plan
from weft.training.loop import GradientSteps

MOST = 8
"""Names in a remedy, at most."""
VERBS = ("write ", "leave out ", "choose ", "add ")
"""With which a remedy begins."""


@dataclass(frozen=True)
class Another:
    """A remedy: another part of a kind in place of the plan's."""

    flag: str
    """By which the part is written."""
    table: dict[str, str]
    """Where its names are."""
    present: Callable[[Plan], object]
    """Returns the part that the plan has."""
    put: Callable[[Plan, Any], Plan]
    """Returns the plan with a part in its place."""
    words: str = ""
    """What is to be chosen, in words; empty: the names say it."""

    def where(self, words: str) -> Another:
        """Return the same remedy, which says in words what is to be chosen."""
        return replace(self, words=words)

    def text(self, names: Sequence[str]) -> str:
        """Return the remedy in words, or nothing where there are no names."""
        flag = f"--{self.flag} {series(names)}"
        if not names:
            return ""
        return f"choose {self.words} ({flag})" if self.words else f"write {flag}"


class Refusal(NamedTuple):
    """One thing that cannot be combined."""

    applies: bool
    """Whether the plan has it."""
    why: str
    """What was given and why it cannot be."""
    remedies: Sequence[str | Another]
    """What to do instead; each by itself is enough."""


def name_of(algorithm: Algorithm) -> str:
    """Return what an algorithm is called in a sentence; one that is wrapped keeps its name."""
    return type(_inner_of(algorithm)).__name__


def series(words: Sequence[str]) -> str:
    """Return "a", "a or b", "a, b or c"."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def sentence(plan: Plan, place: int, refusals: Callable[[Plan], list[Refusal]]) -> str:
    """Return what is said of a rule that a plan breaks, with the remedies that help.

    Parts are named with which the plan breaks no rule; if there are none, those with which it breaks none but rules
    that it breaks anyhow. A remedy for which there is no such part is left out, unless it is the only one: then those
    are named that keep this rule.

    Args:
        plan: that is refused.
        place: of the rule.
        refusals: returns all rules, in the same order for any plan.
    """

    def faults(candidate: Plan) -> set[int]:
        return {number for number, rule in enumerate(refusals(candidate)) if rule.applies}

    _, why, remedies = refusals(plan)[place]
    others = faults(plan) - {place}
    texts = [remedy for remedy in remedies if isinstance(remedy, str)]
    degrees: list[Callable[[Plan], bool]] = [
        lambda candidate: not faults(candidate),
        lambda candidate: faults(candidate) <= others,
        *([] if texts else [lambda candidate: place not in faults(candidate)]),
    ]
    for fits in degrees:
        names = [[] if isinstance(remedy, str) else _names(plan, remedy, fits) for remedy in remedies]
        if any(names):
            pairs = zip(remedies, names, strict=True)
            texts = [one if isinstance(one, str) else one.text(some) for one, some in pairs]
            break
    else:
        texts = texts or [f"choose another --{one.flag}" for one in remedies if isinstance(one, Another)]
    return f"{why}: {_join(texts)}."


def _join(remedies: Sequence[str]) -> str:
    """Return remedies as one text, in which a verb is not repeated."""
    parts: list[str] = []
    former = ""
    for remedy in filter(None, remedies):
        verb = next((verb for verb in VERBS if remedy.startswith(verb)), "")
        parts.append(remedy.removeprefix(verb) if verb == former else remedy)
        former = verb
    return ", or ".join(parts)


def _names(plan: Plan, remedy: Another, fits: Callable[[Plan], bool]) -> list[str]:
    """Return the names of the parts with which a plan fits, those made for its kind of local work first."""
    former = type(remedy.present(plan))
    parts = {name: _default(remedy.table, name) for name in remedy.table}
    names = [
        name
        for name, part in parts.items()
        if part is not None and type(part) is not former and fits(remedy.put(plan, part))
    ]
    return sorted(names, key=lambda name: getattr(parts[name], "local", "") != plan.local.kind)[:MOST]


def _default(table: dict[str, str], name: str) -> object:
    """Return a part with its defaults, or None where it cannot be made without being told more."""
    try:
        return registry.load(table, name, "part")()
    except (AttributeError, ConfigError, ImportError, TypeError, ValueError):
        return None


def _inner_of(algorithm: Algorithm) -> Algorithm:
    """Return the algorithm that was chosen by its name."""
    return algorithm.inner if isinstance(algorithm, Clustered) else algorithm


def _with_algorithm(plan: Plan, algorithm: Algorithm) -> Plan:
    """Return the plan with another algorithm, wrapped as the former one is."""
    local = plan.local
    if local.kind == "directions" and algorithm.local == "gradients":  # an algorithm brings directions with it
        local = GradientSteps(**{field.name: getattr(local, field.name) for field in fields(GradientSteps)})
    if isinstance(plan.algorithm, Clustered):
        algorithm = replace(plan.algorithm, inner=algorithm)
    return replace(plan, algorithm=algorithm, local=local)


ALGORITHM = Another("fed_alg", registry.ALGORITHMS, lambda plan: _inner_of(plan.algorithm), _with_algorithm)
LORA = Another(
    "lora_aggregation",
    registry.LORA_AGGREGATIONS,
    lambda plan: plan.sharing.lora,
    lambda plan, lora: replace(plan, sharing=replace(plan.sharing, lora=lora)),
)
WEIGHTING = Another(
    "client_weight",
    registry.WEIGHTINGS,
    lambda plan: plan.weighting,
    lambda plan, weighting: replace(plan, weighting=weighting),
)
AGGREGATOR = Another(
    "aggregator",
    registry.AGGREGATORS,
    lambda plan: plan.aggregator,
    lambda plan, aggregator: replace(plan, aggregator=aggregator),
)
CODEC = Another("codec", registry.CODECS, lambda plan: plan.codec, lambda plan, codec: replace(plan, codec=codec))
