"""All ratios that the project claims, each with its bound, and whether it holds here: `make bench`.

    python benchmarks/run.py              every benchmark, each in a process of its own, then one table
    python benchmarks/run.py NAME ...     some of them: startup, overhead, "overhead dpo", ...
    python benchmarks/run.py --limit 900  seconds after which a benchmark is ended (default: 600)

What a benchmark measured before it failed, was ended or interrupted (Ctrl-C) stays in the table.
`ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2` before the command measures as on a CPU with AVX2.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from common import RESULTS, Result, machine

NAMES = [
    "startup", "overhead", "overhead dpo", "overhead pretrain", "usual", "memory", "population", "lora", "wire",
    "generate", "text", "evaluate", "private", "masks", "robustness cost", "commits",
]  # fmt: skip
ELSEWHERE = [
    Result("GPU: a round / its bare steps", None, 1.05, True, needs="a GPU: benchmarks/gpu.py"),
    Result("GPU: share of its bf16 rate, LoRA at 7 B width", None, 50, False, " %", "a GPU: benchmarks/gpu.py"),
    Result("GPU: peak of OpenFedLLM's step at 7 B in 8 bits", None, 24, True, " GB", "a GPU: benchmarks/gpu.py"),
    Result("OpenFedLLM's round / Weft's, float32", None, 2.5, False, needs="its checkout: benchmarks/openfedllm.py"),
    Result("OpenFedLLM's round / Weft's, bf16", None, 4, False, needs="AVX512-BF16 and its checkout: openfedllm.py"),
]
"""What is claimed of other hardware, or needs what is not in this repository."""


def table(file: Path) -> list[Result]:
    """Return the results that benchmarks appended to a file, then those that are measured elsewhere."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [Result(**json.loads(line)) for line in lines] + ELSEWHERE


def run(command: Sequence[str], file: Path, limit: float) -> str:
    """Run a benchmark whose results go to a file; return why it did not come to its end, or nothing.

    It has a process group and a folder for temporary files of its own, so that nothing of it is left: not the commands
    that it had begun or stopped either.
    """
    folder = Path(tempfile.mkdtemp(dir=file.parent))
    own = {RESULTS: str(file), "TMPDIR": str(folder)}
    process = subprocess.Popen(command, env=os.environ | own, start_new_session=True)
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        return f"it took longer than {limit:g} s"
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"it ended with exit code {code}: its own output says why" if code else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run those that are named, or all, and print the table; return the number of those that failed."""
    parser = argparse.ArgumentParser(description="All ratios that the project claims, each with its bound.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a benchmark and its words; none: all")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a benchmark is ended")
    arguments = parser.parse_args(argv)
    names = arguments.names or NAMES
    failed = dict.fromkeys(names, "interrupted before its turn")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        file = Path(temporary) / "results.jsonl"
        try:
            for name in names:
                print(f"== {name}", flush=True)
                failed[name] = "interrupted"
                program, *words = name.split()
                began = time.monotonic()
                command = [sys.executable, str(Path(__file__).parent / f"{program}.py"), *words]
                failed[name] = run(command, file, arguments.limit)
                print(f"({time.monotonic() - began:.0f} s)", flush=True)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        print(f"== all\n# {machine()}")
        for result in table(file):
            print(result.line())
    for name, reason in failed.items():
        if reason:
            print(f"{name:<78} FAILED: {reason}")
    return sum(map(bool, failed.values()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the table then comes, as after Ctrl-C
    sys.exit(main())
