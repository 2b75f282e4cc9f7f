"""Finished runs, as far as commands that read them do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from weft.config import build
from weft.runs.layout import HEADER, RunDir


def lay(folder: Path, name: str, summary: dict[str, Any], **keys: Any) -> str:
    """Write a finished run, as far as `compare` reads it."""
    path = folder / name
    config = build({"dataset_name": "a.jsonl", "use_peft": True, "output_dir": str(path)} | keys)
    path.mkdir()
    RunDir(path).config_file.write_text(HEADER + yaml.safe_dump(config.model_dump(mode="json")))
    whole = {"rounds": 3, "tokens": 3000, "clients": {"a": {"rows": 7}, "b": {"rows": 5}}, "eval": {}} | summary
    RunDir(path).summary_file.write_text(json.dumps(whole))
    return str(path)
