"""Verifiable rewards: what an answer is worth, computed, not judged."""
