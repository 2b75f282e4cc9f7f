"""All ratios that the project claims, each with its bound, and whether it holds here: `make bench`.

    python benchmarks/run.py              every benchmark, each in a process of its own, then one table
    python benchmarks/run.py NAME ...     some of them: startup, overhead, "overhead dpo", ...

`ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2` before the command measures as on a CPU with AVX2.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import RESULTS, Result, machine

NAMES = [
    "startup", "overhead", "overhead dpo", "overhead pretrain", "usual", "memory", "population", "lora", "wire",
    "generate", "text", "evaluate", "private", "masks", "robustness cost",
]  # fmt: skip
ELSEWHERE = [
    Result("GPU: a round / its bare steps", None, 1.05, True, needs="a GPU: benchmarks/gpu.py"),
    Result("GPU: share of its bf16 rate, LoRA at 7 B width", None, 50, False, " %", "a GPU: benchmarks/gpu.py"),
    Result("GPU: peak of OpenFedLLM's step at 7 B in 8 bits", None, 24, True, " GB", "a GPU: benchmarks/gpu.py"),
    Result("OpenFedLLM's round / Weft's, float32", None, 2.5, False, needs="its checkout: benchmarks/openfedllm.py"),
    Result("OpenFedLLM's round / Weft's, bf16", None, 4, False, needs="its checkout: benchmarks/openfedllm.py"),
]
"""What is claimed of other hardware, or needs what is not in this repository."""


def table(file: Path) -> list[Result]:
    """Return the results that benchmarks appended to a file, then those that are measured elsewhere."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [Result(**json.loads(line)) for line in lines] + ELSEWHERE


def main(names: list[str]) -> int:
    """Run those that are named, or all, and print the table; return the number of those that failed."""
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "results.jsonl"
        for name in names or NAMES:
            print(f"== {name}", flush=True)
            program, *words = name.split()
            command = [sys.executable, str(Path(__file__).parent / f"{program}.py"), *words]
            if subprocess.run(command, check=False, env=os.environ | {RESULTS: str(file)}).returncode:
                failed.append(name)
        print(f"== all\n# {machine()}")
        for result in table(file):
            print(result.line())
    for name in failed:
        print(f"{name:<78} FAILED: its own output says why")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
