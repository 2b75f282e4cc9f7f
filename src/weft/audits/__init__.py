"""Audits of a finished run: what its model remembers, and what its updates give away; one file for each."""
