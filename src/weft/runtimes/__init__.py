"""Runtimes: they carry messages between server and clients."""
