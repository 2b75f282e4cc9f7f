"""Evaluation tasks: what a model is asked, how its replies are scored, and what data that takes.

A task is one declarative file (`library/*.yaml`, or one in a user's folder), a scorer is one module.
"""
