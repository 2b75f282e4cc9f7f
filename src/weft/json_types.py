"""Types of values in JSON and YAML."""

from __future__ import annotations

from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
"""An object of JSON: numbers, strings, booleans, null, lists and objects by name. Its reader checks the values."""
