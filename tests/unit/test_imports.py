"""What a run imports before its first round: nothing that it does not use."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from support.flags import flags
from weft.launch.libraries import uncollected

HEAVY = {
    "weft.cli": ["torch", "transformers", "numpy"],
    "weft.launch.train": ["peft", "torch.distributed.fsdp", "matplotlib", "datasets", "bitsandbytes", "nvflare", "ray"],
}
"""For each module, what importing it must leave out."""


@pytest.mark.parametrize("module", HEAVY)
def test_a_module_imports_nothing_heavy_that_it_may_not_need(module: str):
    names = [*HEAVY[module], "weft.models.load"]
    code = f"import sys, {module}; print([name for name in {names} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ("[]" if module == "weft.cli" else "['weft.models.load']")


UNUSED = [
    "bitsandbytes", "datasets", "flash_attn", "functorch.compile", "nvflare", "pandas", "pyarrow", "ray",
    "sklearn", "torch._functorch.aot_autograd", "torch._inductor.compile_fx", "torch.utils.tensorboard", "trl",
]  # fmt: skip
"""What a run with LoRA on a JSONL file never needs. (transformers itself imports scipy wherever it is installed.)"""

RUN = """
import sys
from weft import cli
from weft.runs.progress import Progress

show = Progress.round
def tell(self, record):
    print("drawn", "matplotlib" in sys.modules)
    show(self, record)
Progress.round = tell
assert cli.main({words!r}) == 0
print("imported", [name for name in {names!r} if name in sys.modules])
"""


def test_a_whole_run_imports_nothing_that_it_does_not_use(keys):
    words = ["sft", *flags(keys | {"num_rounds": 1, "max_steps": 1})]
    code = RUN.format(words=words, names=UNUSED)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "drawn False" in run.stdout  # the report's library comes after the last round
    assert run.stdout.splitlines()[-1] == "imported []"


def test_peft_does_not_look_for_bitsandbytes_and_finds_it_when_it_is_needed(keys, tmp_path: Path):
    """In one process of its own: a plain base, then one in 8 bits, whose layers peft must tell from others."""
    pytest.importorskip("bitsandbytes", reason="the extra [quant] is not installed")
    code = f"""
import sys
import weft
from weft.config import build
from weft.models.load import load_resident
from weft.models.tokenizer import load_tokenizer

def kinds(**changes):
    config = build({keys!r} | {{"device": "cpu"}} | changes)
    model = load_resident(config, load_tokenizer(config)).model
    return sorted({{type(module).__module__ for module in model.modules() if hasattr(module, "lora_A")}})

print(kinds(), "bitsandbytes" in sys.modules)
print(kinds(load_in_8bit=True), "bitsandbytes" in sys.modules)
print(kinds())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-3:] == [
        "['peft.tuners.lora.layer'] False",
        "['peft.tuners.lora.bnb'] True",
        "['peft.tuners.lora.layer']",
    ]


def test_bitsandbytes_can_be_imported_after_peft_was_kept_from_it(monkeypatch: pytest.MonkeyPatch):
    from transformers.utils import is_bitsandbytes_available

    from weft.models.quantised import without_probing

    pytest.importorskip("bitsandbytes", reason="the extra [quant] is not installed")
    mine = sys.modules["bitsandbytes"]
    with without_probing():
        assert sys.modules["bitsandbytes"] is mine  # what is there stays
    monkeypatch.delitem(sys.modules, "bitsandbytes")
    with pytest.raises(ImportError), without_probing():
        importlib.import_module("bitsandbytes")
    assert "bitsandbytes" not in sys.modules
    assert is_bitsandbytes_available()
    from peft import import_utils

    monkeypatch.setitem(sys.modules, "bitsandbytes", mine)
    assert import_utils.is_bnb_available()
    assert import_utils.is_bnb_4bit_available()


def test_the_collector_pauses_while_libraries_are_imported_and_never_longer():
    try:
        assert gc.isenabled()
        with uncollected() as end:
            assert not gc.isenabled()
            end()
            assert gc.isenabled()
            assert gc.get_freeze_count() > 10_000
            gc.disable()
            end()  # a second call changes nothing
            assert not gc.isenabled()
        gc.enable()
        with pytest.raises(RuntimeError), uncollected():
            raise RuntimeError
        assert gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


def test_a_pause_of_somebody_else_goes_on():
    gc.disable()
    try:
        with uncollected() as end:
            end()
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
