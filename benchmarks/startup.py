"""How long `weft --help` takes."""

from __future__ import annotations

import subprocess
import sys

from common import machine, median, seconds, verdict


def main() -> None:
    """Print the median of five calls."""

    def call() -> None:
        subprocess.run([sys.executable, "-m", "weft.cli", "--help"], check=True, stdout=subprocess.DEVNULL)

    print(f"# {machine()}")
    print(verdict("weft --help", median(seconds(call)), 0.5, most=True, unit="s"))


if __name__ == "__main__":
    main()
