"""The example notebook is executed, in a kernel as a person would; a run in a notebook stops cleanly."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.paths import ROOT

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # of Jupyter's own

LONG = """
import weft
weft.train({keys!r}, num_rounds=4000)
"""
AGAIN = """
done = max(weft.open_run({folder!r}).rounds)
run = weft.train(output_dir={folder!r}, num_rounds=done + 2, resume=True, quiet=True)
print(done > 0, run.summary["rounds"] - done)
"""


def executed(cells: list[Any], folder: Path, during: Callable[[Any], None] = lambda client: None) -> Any:
    """Run cells in a kernel of their own, and return the notebook."""
    book = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(
        book, timeout=300, allow_errors=True, resources={"metadata": {"path": str(folder)}}
    )
    threading.Thread(target=during, args=(client,), daemon=True).start()
    client.execute()
    return book


def data(cell: Any, kind: str) -> list[str]:
    return [one["data"][kind] for one in cell["outputs"] if kind in one.get("data", {})]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, tiny_model: Path):
    shutil.copytree(ROOT / "examples" / "data", tmp_path / "examples" / "data")
    book = nbformat.read(ROOT / "examples" / "hospitals.ipynb", as_version=4)
    nbformat.validate(book)
    assert not any(cell.get("outputs") for cell in book.cells)  # committed without outputs
    setup = book.cells[1]
    assert "SmolLM2-135M" in setup.source
    setup.source = setup.source.replace("HuggingFaceTB/SmolLM2-135M", str(tiny_model)).replace(
        '"max_steps": 10', '"max_steps": 1, "seq_length": 128'
    )
    done = executed(book.cells, tmp_path)
    assert [one for cell in done.cells for one in cell.get("outputs", []) if one["output_type"] == "error"] == []
    train, table, plot, frame, report, scores = [cell for cell in done.cells if cell.cell_type == "code"][1:]
    assert "round 10/10 evaluation" in "".join(one.get("text", "") for one in train["outputs"])
    assert "eval_loss" in data(table, "text/html")[0]
    assert data(plot, "text/html")[0].startswith("<iframe")
    assert (
        data(frame, "text/html")[0].count("<tr") == 5
    )  # the heads; one kind of the shared, two of own, one of central
    assert "the pooled data" in data(report, "text/html")[0]
    assert "hospital_facts" in data(scores, "text/html")[0]


@pytest.mark.slow
def test_a_run_in_a_notebook_stops_cleanly_and_goes_on(keys: dict[str, Any], tmp_path: Path):
    log, keys = (
        Path(keys["output_dir"]) / "metrics.jsonl",
        keys | {"checkpoint_seconds": 0, "lr_scheduler_type": "constant"},
    )

    def interrupt(client: Any) -> None:
        while not (log.exists() and log.read_text().count('"round"') > 3):
            time.sleep(0.05)
        os.kill(client.km.provisioner.process.pid, signal.SIGINT)

    codes = (LONG.format(keys=keys), AGAIN.format(folder=keys["output_dir"]))
    cells = [nbformat.v4.new_code_cell(code) for code in codes]
    book = executed(cells, tmp_path, interrupt)
    (error,) = [one for one in book.cells[0]["outputs"] if one["output_type"] == "error"]
    assert error["ename"] == "Interrupted"
    (line,) = error["traceback"]
    assert line.startswith("weft: interrupted; the finished rounds are kept. Go on with: weft.train(output_dir=")
    assert [one["text"] for one in book.cells[1]["outputs"] if one.get("name") == "stdout"] == ["True 2\n"]
