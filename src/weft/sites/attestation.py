"""FLARE's manager of attestations, made strict; a kit switches it on, as docs/threats.md shows.

With NVIDIA FLARE 2.9.0 a site whose server sends no proof checks its own proof instead and goes on, a party whose name
is on no list needs no proof, and a site without one shuts the server down for everybody.
"""

from __future__ import annotations

from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import NotAuthenticated
from nvflare.app_opt.confidential_computing.cc_manager import CC_INFO, CCManager

SERVER = "server"
"""FLARE's name of the server, whatever its host is called."""


class Attestation(CCManager):  # type: ignore[misc]
    """Demands a proof from the server at a site, and from every site at the server."""

    def _validate_server_tokens(self, fl_ctx: FLContext) -> None:
        """Leave a server that sends no valid proof of its own."""
        info = fl_ctx.get_prop(CC_INFO) or {}
        why = self._fault(info, SERVER)
        if why is not None:
            self._shutdown_system(why, fl_ctx)

    def _validate_client_tokens(self, fl_ctx: FLContext) -> None:
        """Refuse the registration of a site that sends no valid proof of its own.

        Raises:
            NotAuthenticated: FLARE refuses the registration; the other sites are not disturbed.
        """
        peer = fl_ctx.get_peer_context()
        name = str(peer.get_identity_name()) if peer else ""
        why = self._fault((peer.get_prop(CC_INFO) if peer else None) or {}, name)
        if why is not None:
            self.logger.warning(why)
            raise NotAuthenticated(why)

    def _fault(self, info: dict[str, list[dict[str, str]]], name: str) -> str | None:
        """Return why the proofs of a party are no proof of its machine; None: they are.

        Args:
            info: proofs by the name that the party gives itself.
            name: of the party.
        """
        if set(info) != {name} or not info[name]:
            return f"'{name}' sends no proof of its machine"
        if name not in self.cc_enabled_sites:
            return f"'{name}' is not among cc_enabled_sites of this kit, so its proof would not be looked at"
        fault: str = self._validate_participants_tokens(info)
        return fault or None
