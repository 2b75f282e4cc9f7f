"""What a start changes in a run directory, so that one that fails leaves the directory as it was.

A start has failed when it ends by an error before a checkpoint is there. Nothing is deleted that was there before, and
nothing that a run does not write.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from weft.core.files import remove_empty, write_atomic
from weft.core.secret import COMMON_FILE
from weft.core.secret import FILE as SECRET_FILE
from weft.errors import ConfigError
from weft.json_types import JsonObject

LOCK, CONFIG, CHECKPOINTS, FINGERPRINTS = ".lock", "config.yaml", "checkpoints", "fingerprints.json"
SITES = "sites.json"
STUDY = "study.json"
"""In the directory of a study, with the planned keys of its runs, which lie in STUDY_RUNS."""
STUDY_RUNS = "runs"
AUDIT = "audit.json"
CONTRIBUTION = "contribution.json"
LEDGER = "privacy.jsonl"
"""What a run spent of its budget of differential privacy; the newest hash is in LEDGER.head."""
CHECKPOINT = r"round_\d+(\.old)?"
"""What the folder of a checkpoint is called; one that is being replaced has the ending."""
RUN_FILES = (
    "metrics.jsonl",
    "timing.jsonl",
    "chain.jsonl",
    "forgotten.json",
    "updates",
    CHECKPOINTS,
    "clients",
    "split.json",
    "reference.npy",
    "split.svg",
    "tokenizer",
    "template.jinja",
    "adapter",
    "model",
    "best",
    "aligned",
    "prompt.txt",
    "trackers",
    FINGERPRINTS,
    SITES,
    SECRET_FILE,
    COMMON_FILE,
    LEDGER,
    f"{LEDGER}.head",
    "summary.json",
    "report.html",
    "report.png",
    AUDIT,
    CONTRIBUTION,
)
"""All that a run writes beside config.yaml and the lock; what is not named here is never deleted."""


def is_ours(name: str) -> bool:
    """Whether a run that was killed before its config.yaml was there, or `weft split`, can have left this file."""
    return name in (LOCK, "split.json", "split.svg") or _is_temporary(name)


class Start:
    """A start in a directory whose lock is held."""

    def __init__(self, path: Path, new_folders: list[Path], *, lock_existed: bool) -> None:
        """Look at a directory before anything is written.

        Args:
            path: of the run.
            new_folders: the folders that were not there, the innermost first.
            lock_existed: the lock was there.
        """
        self.path, self._new_folders = path, new_folders
        self._aside = path.absolute().with_name(f".{path.absolute().name}.overwritten")
        """Where the run that is overwritten waits for the first checkpoint of the new one."""
        if not (path / CONFIG).exists():
            self._restore()  # a start that was to overwrite a run was killed while it put the run aside
        elif self._checkpoints():
            self.settle()
        for left in path.glob(f".{CONFIG}.*.tmp"):  # of a start that was killed: the lock is held, so nobody writes it
            left.unlink(missing_ok=True)
        self._former_names = {name for name in os.listdir(path) if name != LOCK or lock_existed}
        files = [path / name for name in (CONFIG, FINGERPRINTS) if (path / name).exists()]
        self._former_files = {file: file.read_bytes() for file in files}
        self._former_checkpoints = self._checkpoints()
        self._overwrites = False

    def overwrite(self) -> None:
        """Put the run that is there aside."""
        self._overwrites, self._former_checkpoints = True, set()
        # One that is there already is of a start that was killed, and what that wrote here is no run yet.
        if not self._aside.exists():
            # Where there can be no folder beside the run, or only on another disk, the run is deleted at once.
            with suppress(OSError):
                self._aside.mkdir()
                for name in [*RUN_FILES, CONFIG]:  # config.yaml last: until then it is still a run to overwrite
                    if os.path.lexists(self.path / name):
                        (self.path / name).rename(self._aside / name)
        self._clear(set())

    def settle(self) -> None:
        """Delete what was put aside: the new run has begun."""
        shutil.rmtree(self._aside, ignore_errors=True)

    def _has_spent(self) -> bool:
        """Say whether the run released something that its budget counts: the only record of it is not deleted."""
        ledger = self.path / LEDGER
        new = self._overwrites or LEDGER not in self._former_names
        return new and ledger.is_file() and ledger.stat().st_size > 0

    def undo(self) -> None:
        """Leave the directory as it was, unless the run has got to a checkpoint, or has spent of its budget."""
        if self._checkpoints() - self._former_checkpoints or self._has_spent():
            self.settle()
        elif self._overwrites or self.path / CONFIG not in self._former_files:
            self._clear(set() if self._overwrites else self._former_names)
            self._restore()
            if LOCK not in self._former_names:
                (self.path / LOCK).unlink(missing_ok=True)
            remove_empty(self._new_folders)
        else:
            for file, content in self._former_files.items():
                if file.read_bytes() != content:
                    write_atomic(file, content)

    def _checkpoints(self) -> set[str]:
        folder = self.path / CHECKPOINTS
        names = os.listdir(folder) if folder.is_dir() else []
        return {name for name in names if re.fullmatch(CHECKPOINT, name)}

    def _clear(self, to_keep: set[str]) -> None:
        """Delete what a run wrote, config.yaml last."""
        others = [name for name in os.listdir(self.path) if _is_temporary(name)]
        for name in [*others, *RUN_FILES, CONFIG]:
            path = self.path / name
            if name in to_keep:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _restore(self) -> None:
        """Put what was put aside back in its place."""
        if self._aside.is_dir():
            for path in self._aside.iterdir():
                path.rename(self.path / path.name)
            self._aside.rmdir()


def _is_temporary(name: str) -> bool:
    """Whether a file was left by a kill within `write_atomic`."""
    names = "|".join(re.escape(one) for one in (*RUN_FILES, CONFIG))
    return re.fullmatch(rf"\.({names})\.\d+\.tmp", name) is not None


def check_same_config(run: Path, config: JsonObject, volatile: frozenset[str], former: JsonObject) -> None:
    """Refuse to resume a run with another configuration than it began with: raise ConfigError.

    Args:
        run: its directory.
        config: as it is to be resumed.
        volatile: keys that may differ.
        former: as it began.
    """
    differences = [
        f"{key} was {_value_text(former, key)} and is now {_value_text(config, key)}"
        for key in dict.fromkeys([*former, *config])
        if key not in volatile and (key in former, former.get(key)) != (key in config, config.get(key))
    ]
    if differences:
        raise ConfigError(
            f"The run in '{run}' has another configuration: {'; '.join(differences)}. "
            "Resume it with its own values, or give another --output_dir."
        )


def _value_text(config: JsonObject, key: str) -> str:
    text = repr(config[key]) if key in config else "not set"
    return text if len(text) <= 80 else text[:77] + "..."
