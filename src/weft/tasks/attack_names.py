"""The names of attacks at inference, without what they need."""

ATTACKS = ("characters", "synonyms", "tokens")
