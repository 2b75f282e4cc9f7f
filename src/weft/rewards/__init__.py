"""Verifiable rewards: functions that compute a score for an answer."""
