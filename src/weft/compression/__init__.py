"""Codecs for updates; one file each, listed in `weft.registry.CODECS`."""
