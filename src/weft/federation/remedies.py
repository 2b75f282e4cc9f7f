"""Refusals and their remedies: what to write instead, by the names of the registry that the rules take.

A remedy is a text, or `Another` part of a kind. The names for the latter are searched only when a refusal is printed:
every part of the registry is tried in the plan, and those are named with which the plan breaks no further rule.
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

MAX_NAMES = 8
"""Names in a remedy, at most."""
VERBS = ("write ", "leave out ", "choose ", "add ")
"""Verbs at the beginning of a remedy; joined remedies do not repeat them."""


@dataclass(frozen=True)
class Another:
    """A remedy: another part of a kind in place of the plan's."""

    flag: str
    """The key that chooses the part."""
    table: dict[str, str]
    """Names of parts, and where each is."""
    current_part: Callable[[Plan], object]
    """Returns the part that the plan has."""
    replace_part: Callable[[Plan, Any], Plan]
    """Returns the plan with a part in its place."""
    description: str = ""
    """Description of a suitable part; empty: only names are given."""

    def with_description(self, description: str) -> Another:
        """Return the same remedy with a description of a suitable part."""
        return replace(self, description=description)

    def text(self, names: Sequence[str]) -> str:
        """Return the remedy in words, or nothing where there are no names."""
        flag = f"--{self.flag} {series(names)}"
        if not names:
            return ""
        return f"choose {self.description} ({flag})" if self.description else f"write {flag}"


class Refusal(NamedTuple):
    """The outcome of one compatibility rule for a plan."""

    applies: bool
    """Whether the plan breaks the rule."""
    reason: str
    """The sentence without the remedy: what the run asks for, and why it cannot be."""
    remedies: Sequence[str | Another]
    """Changes, each of which alone is enough."""


def name_of(algorithm: Algorithm) -> str:
    """Return the class name of an algorithm, of the wrapped one for clusters."""
    return type(_inner_of(algorithm)).__name__


def summed(algorithm: Algorithm) -> list[str]:
    """Return the remedy by which an algorithm itself needs sums of updates alone, where it has one."""
    return [f"write --fed_args {algorithm.sums_with}"] if algorithm.sums_with else []


def series(words: Sequence[str]) -> str:
    """Return "a", "a or b", "a, b or c"."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def sentence(plan: Plan, place: int, refusals: Callable[[Plan], list[Refusal]]) -> str:
    """Return the error message for a rule that a plan breaks, with the remedies that help.

    Named are the parts with which the plan breaks no rule; if there are none, those with which it breaks only rules
    that it breaks already. A remedy without any such part is left out, unless there is no other: then it names the
    parts that keep this rule.

    Args:
        plan: the refused plan.
        place: index of the broken rule.
        refusals: returns the outcome of all rules, in the same order for any plan.
    """

    def faults(candidate: Plan) -> set[int]:
        return {number for number, rule in enumerate(refusals(candidate)) if rule.applies}

    _, reason, remedies = refusals(plan)[place]
    # A remedy need not solve problems that the plan has anyway: each is reported in its turn.
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
            texts = [remedy if isinstance(remedy, str) else remedy.text(choices) for remedy, choices in pairs]
            break
    else:
        texts = texts or [f"choose another --{remedy.flag}" for remedy in remedies if isinstance(remedy, Another)]
    return f"{reason}: {_join(texts)}."


def _join(remedies: Sequence[str]) -> str:
    """Return remedies as one text, in which a verb is not repeated."""
    parts: list[str] = []
    previous = ""
    for remedy in filter(None, remedies):
        verb = next((verb for verb in VERBS if remedy.startswith(verb)), "")
        parts.append(remedy.removeprefix(verb) if verb == previous else remedy)
        previous = verb
    return ", or ".join(parts)


def _names(plan: Plan, remedy: Another, fits: Callable[[Plan], bool]) -> list[str]:
    """Return the names of the parts that fit the plan, those for its kind of local work first."""
    current = type(remedy.current_part(plan))
    parts = {name: _default(remedy.table, name) for name in remedy.table}
    names = [
        name
        for name, part in parts.items()
        if part is not None and type(part) is not current and fits(remedy.replace_part(plan, part))
    ]
    return sorted(names, key=lambda name: getattr(parts[name], "local", "") != plan.local.kind)[:MAX_NAMES]


def _default(table: dict[str, str], name: str) -> object:
    """Return a part with its defaults, or None where it has required parameters or cannot be loaded."""
    try:
        return registry.load(table, name, "part")()
    except (AttributeError, ConfigError, ImportError, TypeError, ValueError):
        return None


def _inner_of(algorithm: Algorithm) -> Algorithm:
    """Return the algorithm that the run names, without the wrapper of clusters."""
    return algorithm.inner if isinstance(algorithm, Clustered) else algorithm


def _with_algorithm(plan: Plan, algorithm: Algorithm) -> Plan:
    """Return the plan with another algorithm, wrapped in clusters where the plan has them."""
    local = plan.local
    if local.kind == "directions" and algorithm.local == "gradients":  # an algorithm brings directions with it
        local = GradientSteps(**{field.name: getattr(local, field.name) for field in fields(GradientSteps)})
    if isinstance(plan.algorithm, Clustered):
        algorithm = replace(plan.algorithm, inner=algorithm)
    return replace(plan, algorithm=algorithm, local=local)


def _with_aggregator(plan: Plan, aggregator: Any) -> Plan:
    """Return the plan with another aggregator, which is to stand the attackers that the plan's is asked to."""
    asked = getattr(plan.aggregator, "attackers", None)
    if asked is not None and hasattr(aggregator, "attackers"):
        aggregator = replace(aggregator, attackers=asked)
    return replace(plan, aggregator=aggregator)


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
    _with_aggregator,
)
CODEC_DOWN = Another(
    "codec_down",
    registry.CODECS,
    lambda plan: plan.codec_down,
    lambda plan, codec: replace(plan, codec_down=codec),
)
CODEC = Another("codec", registry.CODECS, lambda plan: plan.codec, lambda plan, codec: replace(plan, codec=codec))
