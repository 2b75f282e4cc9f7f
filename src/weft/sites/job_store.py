"""The jobs of a server: one job at a time for each name of a run, with the status that the run reports.

FLARE loads the class from the server's settings (`weft.sites.kit_settings`).
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.job_def_manager import SimpleJobDefManager
from nvflare.apis.job_def import Job

from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.sites.admin import OVER, state_of
from weft.sites.job import REPORT, ROUNDS, check_name


class JobStore(SimpleJobDefManager):  # type: ignore[misc]
    """FLARE's store of jobs, which refuses a second job of a run that goes on, and a run that is done."""

    def __init__(self, uri_root: str = "jobs", job_store_id: str = "job_store") -> None:
        super().__init__(uri_root=uri_root, job_store_id=job_store_id)
        self._begun = time.time()
        self._one = threading.Lock()

    def create(self, meta: dict[str, Any], uploaded_content: str | bytes, fl_ctx: FLContext) -> dict[str, Any]:
        """Store a job that was submitted; ConfigError if the run's name is taken."""
        with self._one:
            self._check(meta, fl_ctx)
            return dict(super().create(meta, uploaded_content, fl_ctx))

    def clone(self, from_jid: str, meta: dict[str, Any], fl_ctx: FLContext) -> dict[str, Any]:
        """Store a copy of a job; ConfigError if another job of the run goes on."""
        with self._one:
            self._check(meta, fl_ctx, but=from_jid)
            return dict(super().clone(from_jid, meta, fl_ctx))

    def get_job(self, jid: str, fl_ctx: FLContext) -> Job | None:
        """Return a job; its description has the status of its run, if this job wrote it."""
        job = super().get_job(jid, fl_ctx)
        if job is not None:
            status = last_status(str(job.meta.get("name", "")))
            job.meta = dict(job.meta) | ({REPORT: status} if status.get("job") == jid else {})
        return job

    def _check(self, meta: Mapping[str, Any], fl_ctx: FLContext, but: str = "") -> None:
        """Raise ConfigError if the name cannot be had, or another job than `but` has it and goes on."""
        name = str(meta.get("name", ""))
        check_name(name)
        for job in self.get_all_jobs(fl_ctx):
            other = job.meta.get("name") == name and job.job_id != but
            if other and not state_of(job.meta, self._begun).startswith(OVER):
                raise ConfigError(
                    f"The run '{name}' goes on already (job {job.job_id}): end it with `weft stop {name}`, or give "
                    "another --name."
                )
        status = last_status(name)
        rounds = status.get("num_rounds")
        if not but and status.get("state") == "done" and isinstance(rounds, int) and meta.get(ROUNDS, 0) <= rounds:
            raise ConfigError(
                f"The run '{name}' is done, with {rounds} rounds: give another --name, or more --num_rounds to go on "
                "with it."
            )


def last_status(name: str) -> JsonObject:
    """Return what a run last reported, from its file in the server's kit; {} if there is none."""
    try:
        check_name(name)
        return dict(json.loads((Path(os.environ["WEFT_KIT"]) / "runs" / f"{name}.json").read_text(encoding="utf-8")))
    except (ConfigError, OSError, ValueError):
        return {}
