"""What is read from JSON and YAML, and written there."""

from __future__ import annotations

from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
"""An object of JSON: names with numbers, texts, true, false, null, lists and objects. Whoever reads one checks it."""
