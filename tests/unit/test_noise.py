"""Warnings: those of libraries reach no user, and none of Weft's own is hidden."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from support.flags import flags
from weft.errors import WeftWarning, warn
from weft.models.noise import quiet_libraries

SAID = """
import sys, types, warnings
from weft import cli, registry
from weft.errors import warn

def run(words):
    warnings.simplefilter("always")  # as some libraries do when they are imported
    warnings.warn("a library's own affair", FutureWarning)
    warn("A tracker failed.")
    return 0

sys.modules["noisy"] = module = types.ModuleType("noisy")
module.run = run
registry.COMMANDS["noisy"] = "noisy:run"
sys.argv = ["weft", "noisy"]
sys.exit(cli.entry())
"""


def test_of_all_warnings_the_command_line_shows_ours():
    done = subprocess.run([sys.executable, "-W", "default", "-c", SAID], capture_output=True, text=True, check=True)
    assert done.stderr == "weft: A tracker failed.\n"


@pytest.mark.slow
def test_a_run_shows_no_warnings_of_libraries(keys: dict[str, object], tmp_path: Path):
    words = [*flags(keys | {"num_rounds": 1, "report_to": "tensorboard"}), "--quiet"]
    run = [sys.executable, "-W", "default", "-m", "weft"]
    trained = subprocess.run([*run, "sft", *words], capture_output=True, text=True, check=False)
    assert trained.returncode == 0
    assert [line for line in trained.stderr.splitlines() if not line.startswith("weft: ")] == []
    asked = [*run, "chat", str(keys["output_dir"]), "--prompt", "Why?", "--max_new_tokens", "2"]
    answered = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (answered.returncode, answered.stderr) == (0, "")


def test_known_warnings_are_ignored_by_their_words_and_others_are_shown():
    for words, category in (
        ("is_gradient_checkpointing is old", FutureWarning),
        ("fan_in_fan_out is set to x", UserWarning),
    ):
        with warnings.catch_warnings(record=True) as heard, quiet_libraries():
            warnings.warn(words, category, stacklevel=1)
        assert not heard
        with pytest.warns(category, match="another"), quiet_libraries():
            warnings.warn(f"another is {category.__name__}", category, stacklevel=1)
        with pytest.warns(WeftWarning, match=words), quiet_libraries():
            warn(f"The library says: {words}")


def test_warnings_of_weft_have_a_category_of_their_own():
    with pytest.warns(WeftWarning, match="passed over"):
        warn("The checkpoint is passed over.")
