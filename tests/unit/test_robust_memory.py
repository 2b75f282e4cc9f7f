"""What robust rules take of memory beside the updates of a round: a rule computes in blocks of columns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RULES = ("median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median", "centered_clipping")
RULES += ("norm_clipping", "sign_vote", "foolsgold", "flame")
ALONE = ("foolsgold", "flame")
"""They take no step before them."""
EXACT = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""A large block goes back to the system once it is free. Else glibc keeps what it likes: 0 to 3.3 updates were seen."""
PEAKS = """
import ctypes, json, sys
from weft import registry
from weft.core.types import DELTA, Update
import torch

torch.set_num_threads(1)

def used(field):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(field))

CLIENTS, SIZES = 11, (1 << 19, 3 << 19)
trim = ctypes.CDLL("libc.so.6").malloc_trim
vectors = [torch.randn(SIZES[1], generator=torch.Generator().manual_seed(n)) for n in range(CLIENTS)]

def peak(rule, size):
    updates = [Update(f"c{n}", 0, 0, {DELTA: {"w": one[:size]}}, 1.0) for n, one in enumerate(vectors)]
    trim(0)
    open("/proc/self/clear_refs", "w").write("5")
    begin = used("VmRSS")
    rule.combine(updates)
    return used("VmHWM") - begin

found = {}
for name, before in json.loads(sys.argv[1]):
    rule = registry.load(registry.AGGREGATORS, name, "aggregator")
    rule = rule() if before == "none" else rule(before=before)
    peak(rule, 4096)  # what a first call imports is no memory of the rule
    peaks = [peak(rule, size) for size in SIZES]
    found[f"{name} {before}"] = (peaks[1] - peaks[0]) / (4 * (SIZES[1] - SIZES[0]))
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux")
def test_a_rule_takes_memory_for_its_result_and_a_block_of_columns():
    """In updates for each more parameter: 1 is the result. Lists of blocks took 4 to 15."""
    asked = [(name, before) for name in RULES for before in ("none", "nnm") if before == "none" or name not in ALONE]
    command = [sys.executable, "-c", PEAKS, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | EXACT)
    found = json.loads(done.stdout)
    assert len(found) == 20
    histories = found.pop("foolsgold none")
    assert {name: size for name, size in found.items() if size > 1.5} == {}
    assert histories < 12.5  # those of 11 clients, which it remembers
