"""Federated algorithms, one file each.

A new one is a frozen dataclass here, derived from `weft.core.parts.Algorithm` (which is FedAvg), and one line in
`weft.registry.ALGORITHMS`. Its fields are hyper-parameters.
"""
