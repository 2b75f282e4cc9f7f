"""What the demo's federation sent, beside what it would have sent in fewer bytes and under masks."""

from __future__ import annotations

from pathlib import Path

from weft.demo.picture import FEDERATION
from weft.json_types import JsonObject

WAYS: dict[str, JsonObject] = {
    "--codec int4 --codec_down int4": {"codec": "int4", "codec_down": "int4"},
    "--protection masks": {"protection": "masks"},
    "--protection masks --protection_args bits=9 --codec_down int4": {
        "protection": "masks",
        "protection_args": {"bits": 9},
        "codec_down": "int4",
    },
}


def traffic_line(folder: Path, sent: float) -> str:
    """Return in a sentence the bytes that the federation of a demo sent, and those that other ways send.

    Args:
        folder: of the demo.
        sent: bytes that were counted.
    """
    from weft.config import build
    from weft.launch.dry_run import total_bytes
    from weft.launch.run import Run
    from weft.runs.text import human_bytes

    runs = [Run(folder / FEDERATION.replace(" ", "_") / part).config for part in ("pretrained", "finetuned")]
    others = []
    for flags, keys in WAYS.items():
        size = sum(total_bytes(build(config.model_dump(exclude_unset=False) | keys)) for config in runs)
        others.append(f"{human_bytes(size)} with {flags} ({size / sent:.0%})")
    return f"The federation sent {human_bytes(sent)}; it would send {', '.join(others)}."
