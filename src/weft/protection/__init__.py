"""Protections: they hide single updates from the server; one file each, listed in `weft.registry.PROTECTIONS`."""
