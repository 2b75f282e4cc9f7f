"""What a page reads of a run: the files of its directory, opened once, also of a run that is under way."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from weft import plugins
from weft.core.chain import BrokenChain
from weft.json_types import JsonObject
from weft.runs import metrics
from weft.runs.chain import beginning, read_chain
from weft.runs.comparison import Outcome, verb_of
from weft.runs.layout import RunDir


@dataclass(frozen=True)
class RunRecord:
    """The files of a run."""

    run: RunDir
    config: JsonObject
    log: list[JsonObject]
    """Lines of metrics.jsonl."""
    timing: list[JsonObject]
    summary: JsonObject
    """Empty while the run is under way."""
    split: JsonObject

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> RunRecord:
        """Read a run's directory.

        Raises:
            ConfigError: there is no run.
            DataError: a log is broken.
        """
        run = RunDir(path)
        config = run.read_config()
        log, timing = metrics.read(run.metrics_file), metrics.read(run.timing_file)
        return cls(run, config, log, timing, _json(run.summary_file), _json(run.split_file))

    def events(self, kind: str) -> list[JsonObject]:
        """Return the lines of a kind: round, repeated, eval, tasks."""
        return [line for line in self.log if line.get("event") == kind]

    @cached_property
    def rounds(self) -> list[JsonObject]:
        """The rounds that count."""
        return self.events("round")

    @cached_property
    def evaluations(self) -> list[JsonObject]:
        """The evaluations on held-out rows."""
        return self.events("eval")

    @cached_property
    def tasks(self) -> list[JsonObject]:
        """The scores of evaluation tasks."""
        return self.events("tasks")

    @property
    def lost(self) -> list[tuple[int, int]]:
        """First and last of the rounds in each gap of metrics.jsonl: somebody took their lines out."""
        known = sorted({line["round"] for line in self.rounds})
        return [(one + 1, other - 1) for one, other in pairwise(known) if other > one + 1]

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.run.path.resolve().name

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""
        return bool(self.summary)

    @property
    def newest(self) -> JsonObject:
        """The newest evaluation, empty where there is none."""
        return self.evaluations[-1] if self.evaluations else {}

    @property
    def scores(self) -> JsonObject:
        """The scores on held-out rows: of the end, or the newest so far."""
        return dict(self.summary.get("eval") or self.newest)

    @property
    def clients(self) -> dict[str, JsonObject]:
        """The same by client."""
        return dict(self.summary.get("clients") or self.newest.get("clients") or {})

    @property
    def num_clients(self) -> int | None:
        """How many clients the run has."""
        return len(self.split.get("clients") or self.config.get("clients") or []) or self.config.get("num_clients")

    @property
    def algorithm(self) -> str:
        """The public name of its algorithm."""
        return plugins.public_name(str(self.config.get("fed_alg") or "?"))

    @property
    def verb(self) -> str:
        """The verb that it was begun with."""
        return verb_of(self.config) if "objective" in self.config else "sft"

    @property
    def outcome(self) -> Outcome:
        """What is compared of it."""
        return Outcome(str(self.run.path), self.config, self.summary)

    @property
    def environment(self) -> JsonObject:
        """The versions and the machine, as the record of the run has them; empty where there is no whole record."""
        try:
            entries, _ = read_chain(self.run.chain_file)
        except BrokenChain:
            return {}
        made = beginning(entries)
        return {name: made[name] for name in ("versions", "machine") if name in made}


def _json(path: Path) -> JsonObject:
    found: JsonObject = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def folder_of_seeds(paths: Sequence[str]) -> str | None:
    """Return the folder of runs that are its `seed_1`, `seed_2`, ..., as in a study; None: they are no such runs."""
    folders = {Path(path).parent for path in paths}
    of_seeds = all(re.fullmatch(r"seed_\d+", Path(path).name) for path in paths)
    return str(folders.pop()) if len(paths) > 1 and len(folders) == 1 and of_seeds else None


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Return what tells paths apart: one of their folders where that is enough, else their shortest ends."""
    parts = {path: Path(path).resolve().parts for path in paths}
    count, most = len({*parts.values()}), min(map(len, parts.values()), default=0)
    for length in range(1, most + 1):
        folders = {path: one[-length] for path, one in parts.items()}
        if len({*folders.values()}) == count:
            return folders
    for length in range(1, max(map(len, parts.values()), default=1) + 1):
        names = {path: "/".join(one[-length:]) for path, one in parts.items()}
        if len({*names.values()}) == count:
            return names
    return {path: path for path in paths}
