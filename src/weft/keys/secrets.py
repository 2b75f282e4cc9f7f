"""Secrets do not belong in a configuration, which is written to disk, sent to sites and shown in reports."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

ENDPOINTS = {"endpoint": "endpoint_key", "judge_endpoint": "judge_key"}
"""Keys with the address of an API, and those that name the variable of its key."""
URLS = (
    *ENDPOINTS,
    "ray_address",
    "model_name_or_path",
    "tokenizer",
    "tokenizer_text",
    "dataset_name",
    "eval_dataset_name",
    "public_data",
)
"""Keys whose values may be URLs."""
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
MASKED = frozenset({"token", *ENDPOINTS.values(), *URLS})
"""Keys whose values no error message repeats."""


def fault(values: Mapping[str, object]) -> str | None:
    """Return a sentence that names the key with a secret and says what to write, never the value; None: there is none.

    Args:
        values: of a run, or of a site policy, by key.
    """
    for key in ENDPOINTS.values():
        name = values.get(key)
        if isinstance(name, str) and name and not VARIABLE.fullmatch(name):
            return (
                f"{key} is the name of an environment variable, in capital letters, and what was given is none: put "
                "the API key itself into a variable such as OPENAI_API_KEY, and write the variable's name."
            )
    for key in URLS:
        value = values.get(key)
        if isinstance(value, str) and _holds_credentials(value):
            instead = f"and name a variable by {ENDPOINTS[key]}" if key in ENDPOINTS else "or name a file that is here"
            return (
                f"{key} is a URL with a user name or a password (user:password@host), which would be kept with the "
                f"run: leave it out of the URL, {instead}."
            )
    for key, variable in ENDPOINTS.items():
        endpoint = values.get(key)
        if isinstance(endpoint, str) and ("?" in endpoint or "#" in endpoint):
            return (
                f"{key} is a URL with a query, and an API's address has none: write it up to /v1, and the API key into "
                f"the variable that {variable} names."
            )
    return None


def _holds_credentials(value: str) -> bool:
    if "://" not in value:
        return False
    try:
        return "@" in urlsplit(value).netloc
    except ValueError:
        return "@" in value
