"""What finished runs of a study came to."""

from __future__ import annotations

from collections.abc import Sequence

from weft.launch.run import Run
from weft.runs.comparison import Outcome
from weft.studies.cells import Cell
from weft.studies.ledger import is_done


def outcomes_of(cells: Sequence[Cell]) -> dict[str, Outcome]:
    """Return the outcomes of the runs that are done, by name."""
    found = {}
    for cell in cells:
        if is_done(cell):
            run = Run(cell.folder)
            found[cell.name] = Outcome(str(run.path), run.config.model_dump(mode="json"), run.summary)
    return found
