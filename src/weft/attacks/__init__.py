"""Attacks of simulated clients: on what they send, and on what they train on."""
