"""What a site reads of a handshake before it believes anything of it."""

from __future__ import annotations

from weft.config import RunConfig, build, canonical
from weft.errors import ConfigError, WeftError
from weft.json_types import JsonObject
from weft.sites.job import check_name

MAX_BIRTH = 100
"""Longest identifier of a run's begin in characters; it is written to disk with every count."""


class Refused(WeftError):
    """The site refuses the run; the message holds none of its data and is sent."""


def name_of(request: JsonObject) -> str:
    """Return the name of a run, which is that of its folder here.

    Raises:
        Refused: a name that no run can have, such as one of the site's own files; or an endless birth.
    """
    name = str(request["id"])
    try:
        check_name(name)
    except ConfigError:
        raise Refused("the run has a name that no run can have") from None
    if len(str(request.get("birth", ""))) > MAX_BIRTH:
        raise Refused(f"the run's birth has more than {MAX_BIRTH} characters")
    return name


def read_run(sent: object) -> tuple[JsonObject, RunConfig]:
    """Return the keys of a run that was sent, by their full names, and its configuration.

    Every later step takes the keys from here: another name of a key would pass what compares names, and be read later.

    Raises:
        Refused: for keys that the Weft here does not know.
    """
    if not isinstance(sent, dict):
        raise Refused("the handshake names no run")
    try:
        keys = canonical(sent)
        return keys, build(keys)
    except ConfigError as error:
        raise Refused(f"the run cannot be read by the Weft here ({error})") from None
