"""Post-hoc alignment at the server: after the last round the shared model is tuned on rows of the server's own.

Robust aggregation hardly stops safety poisoning, and tuning on refusals afterwards does (2406.10630). The run itself
stays as it is: the tuned model is written beside it.
"""

from __future__ import annotations

from dataclasses import replace

from weft.config import RunConfig
from weft.core import tensors
from weft.core.libraries import Tokenizer
from weft.core.types import DELTA, ServerState
from weft.federation.plan import Plan
from weft.json_types import JsonObject
from weft.launch.own_rows import OwnRows, read_own_rows, tuner
from weft.launch.results import shared_of, write_weights
from weft.models.resident import Resident
from weft.runs.layout import RunDir
from weft.training.job import Job

FOLDER = "aligned"


def rows_of(config: RunConfig, tokenizer: Tokenizer) -> OwnRows:
    """Return the rows of `post_alignment`; raises as `read_own_rows` does."""
    return read_own_rows(config, tokenizer, str(config.post_alignment), "post_alignment")


def write_aligned(config: RunConfig, plan: Plan, model: Resident, run: RunDir, state: ServerState) -> JsonObject:
    """Tune the shared model of a run that is over, and write it into the folder `aligned`; return the summary's entry.

    Args:
        config: the run.
        plan: the run's.
        model: the resident model; its values are lost.
        run: its directory.
        state: after the last round; it stays as it is.
    """
    rows = rows_of(config, model.tokenizer)
    model.load(shared_of(config, plan, model, state))
    tune = tuner(config, plan, model, rows, config.post_alignment_steps)
    done = tune(Job({}, state.params, round=state.round))
    params = tensors.add(state.params, done.finished.streams[DELTA])
    values = shared_of(config, plan, model, replace(state, params=params))
    folder = write_weights(config, model, values, run.path / FOLDER)
    loss = done.metrics["loss_sum"] / max(1.0, done.metrics["loss_tokens"])
    return {"folder": f"{FOLDER}/{folder.name}", "rows": len(rows), "steps": config.post_alignment_steps, "loss": loss}
