"""Compatibility of a plan's parts: all rules, checked once, before any model is loaded.

A rule compares traits and capabilities of parts, never their names.
"""

from __future__ import annotations

from weft.errors import ConfigError
from weft.federation.codec_rules import codecs
from weft.federation.limits import conditions, local_work, placement
from weft.federation.model_kinds import clusters, depths, personal
from weft.federation.plan import Plan
from weft.federation.privacy_rules import in_steps, protected
from weft.federation.remedies import Refusal, sentence
from weft.federation.robust_rules import attacks, dishonest_servers, robust
from weft.federation.rules import factors, means, secrecy, weights


def refusals(plan: Plan) -> list[Refusal]:
    """Return the outcome of every rule for a plan; the same number of rules, in the same order, for any plan."""
    groups = (
        secrecy,
        means,
        protected,
        in_steps,
        codecs,
        robust,
        attacks,
        dishonest_servers,
        weights,
        factors,
        local_work,
        clusters,
        depths,
        personal,
        conditions,
        placement,
    )
    return [refusal for group in groups for refusal in group(plan)]


def check(plan: Plan) -> None:
    """Refuse a plan whose parts cannot be combined.

    Raises:
        ConfigError: for the first broken rule, with what to write instead.
    """
    for place, refusal in enumerate(refusals(plan)):
        if refusal.applies:
            raise ConfigError(sentence(plan, place, refusals))
