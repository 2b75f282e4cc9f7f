"""Whether a site signs what it sends; what signing needs is imported by sites that have a certificate alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from weft.core.party import Identity
from weft.core.types import Reply
from weft.errors import ConfigError
from weft.sites.requests import Refused

log = logging.getLogger("weft.site")
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


def certificate(kit: Path | None, run: str, *, needed: bool) -> Identity | None:
    """Return a site's certificate: it signs updates, and other sites know by it whose keys a server passes on.

    Args:
        kit: the site's start-up kit; None: it has none.
        run: the run, with its birth.
        needed: the run cannot be without it.

    Raises:
        Refused: it is needed, and there is no kit.
        ConfigError: it is needed, and the kit's certificate cannot be used.
    """
    if kit is None:
        if needed:
            raise Refused("it runs without a start-up kit, so other sites cannot know its part of a masked sum")
        return None
    from weft.sites.identity import identity_of

    try:
        return identity_of(kit, run)
    except ConfigError as error:
        if needed:
            raise
        log.warning("updates are not signed: %s", error)
        return None
