"""All benchmarks of speed and memory, each in a process of its own: `make bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = ["startup", "overhead", "usual", "memory", "lora"]


def main() -> int:
    """Run those that are named, or all; the exit code is the number of those that failed."""
    failed = 0
    for name in sys.argv[1:] or NAMES:
        print(f"== {name}", flush=True)
        failed += (
            subprocess.run([sys.executable, str(Path(__file__).parent / f"{name}.py")], check=False).returncode != 0
        )
    return failed


if __name__ == "__main__":
    sys.exit(main())
