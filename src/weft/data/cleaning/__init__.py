"""Cleaning of training rows: what is repaired, masked and left out before a client trains, one file for each way."""
