"""What may be combined: all rules for a plan, checked once, before any model is loaded.

A rule compares traits and capabilities of parts, never their names.
"""

from __future__ import annotations

from weft.errors import ConfigError
from weft.federation.limits import conditions, local_work, placement
from weft.federation.model_kinds import clusters, depths, personal
from weft.federation.plan import Plan
from weft.federation.remedies import Refusal, sentence
from weft.federation.rules import factors, secrecy, weights


def refusals(plan: Plan) -> list[Refusal]:
    """Return all rules for a plan, kept or not; as many, in the same order, for every plan."""
    groups = (secrecy, weights, factors, local_work, clusters, depths, personal, conditions, placement)
    return [refusal for group in groups for refusal in group(plan)]


def check(plan: Plan) -> None:
    """Refuse a plan whose parts cannot be combined.

    Raises:
        ConfigError: the first rule that is broken, with what to write instead.
    """
    for place, refusal in enumerate(refusals(plan)):
        if refusal.applies:
            raise ConfigError(sentence(plan, place, refusals))
