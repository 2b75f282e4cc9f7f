"""Federations of real sites: server, site client, policy, provisioning, supervision, over NVIDIA FLARE."""
