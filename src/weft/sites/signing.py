"""Whether a site signs what it sends; what signing needs is imported by sites that have a certificate alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from weft.core.party import Identity
from weft.core.types import Reply

Sign = Callable[[Reply], Reply]


def unsigned(reply: Reply) -> Reply:
    """Return a reply as it is."""
    return reply


def signer(identity: Identity | None) -> Sign:
    """Return what a site does with its replies: it signs updates if it has a certificate."""
    if identity is None:
        return unsigned
    from weft.sites.signatures import signed

    return partial(signed, identity=identity)
