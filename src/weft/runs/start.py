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
from weft.errors import ConfigError
from weft.json_types import JsonObject

SECRET = "secret.key"
LOCK, CONFIG, CHECKPOINTS, FINGERPRINTS = ".lock", "config.yaml", "checkpoints", "fingerprints.json"
CHECKPOINT = r"round_\d+(\.old)?"
"""What the folder of a checkpoint is called; one that is being replaced has the ending."""
WRITTEN = (
    "metrics.jsonl",
    "timing.jsonl",
    CHECKPOINTS,
    "clients",
    "split.json",
    "reference.npy",
    "split.svg",
    "tokenizer",
    "template.jinja",
    "adapter",
    "model",
    "prompt.txt",
    "trackers",
    FINGERPRINTS,
    SECRET,
    "summary.json",
    "report.html",
    "report.png",
)
"""All that a run writes beside config.yaml and the lock; what is not named here is never deleted."""


def is_ours(name: str) -> bool:
    """Whether a run that was killed before its config.yaml was there, or `weft split`, can have left this file."""
    return name in (LOCK, "split.json", "split.svg") or _is_temporary(name)


class Start:
    """A start in a directory whose lock is held."""

    def __init__(self, path: Path, made: list[Path], *, locked_before: bool) -> None:
        """Look at a directory before anything is written.

        Args:
            path: of the run.
            made: the folders that were not there, the innermost first.
            locked_before: the lock was there.
        """
        self.path, self._made = path, made
        self._aside = path.absolute().with_name(f".{path.absolute().name}.overwritten")
        """Where the run that is overwritten waits for the first checkpoint of the new one."""
        if not (path / CONFIG).exists():
            self._restore()  # a start that was to overwrite a run was killed while it put the run aside
        elif self._checkpoints():
            self.settle()
        self._before = {name for name in os.listdir(path) if name != LOCK or locked_before}
        former = [path / name for name in (CONFIG, FINGERPRINTS) if (path / name).exists()]
        self._former = {file: file.read_bytes() for file in former}
        self._committed = self._checkpoints()
        self._overwrites = False

    def overwrite(self) -> None:
        """Put the run that is there aside."""
        self._overwrites, self._committed = True, set()
        # One that is there already is of a start that was killed, and what that wrote here is no run yet.
        if not self._aside.exists():
            # Where there can be no folder beside the run, or only on another disk, the run is deleted at once.
            with suppress(OSError):
                self._aside.mkdir()
                for name in [*WRITTEN, CONFIG]:  # config.yaml last: until then it is still a run to overwrite
                    if os.path.lexists(self.path / name):
                        (self.path / name).rename(self._aside / name)
        self._clear(set())

    def settle(self) -> None:
        """Delete what was put aside: the new run has begun."""
        shutil.rmtree(self._aside, ignore_errors=True)

    def undo(self) -> None:
        """Leave the directory as it was, unless the run has got to a checkpoint."""
        if self._checkpoints() - self._committed:
            self.settle()
        elif self._overwrites or self.path / CONFIG not in self._former:
            self._clear(set() if self._overwrites else self._before)
            self._restore()
            if LOCK not in self._before:
                (self.path / LOCK).unlink(missing_ok=True)
            remove_empty(self._made)
        else:
            for file, content in self._former.items():
                if file.read_bytes() != content:
                    write_atomic(file, content)

    def _checkpoints(self) -> set[str]:
        folder = self.path / CHECKPOINTS
        names = os.listdir(folder) if folder.is_dir() else []
        return {name for name in names if re.fullmatch(CHECKPOINT, name)}

    def _clear(self, kept: set[str]) -> None:
        """Delete what a run wrote, config.yaml last."""
        others = [name for name in os.listdir(self.path) if _is_temporary(name)]
        for name in [*others, *WRITTEN, CONFIG]:
            path = self.path / name
            if name in kept:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _restore(self) -> None:
        """Put what was put aside back in its place."""
        if self._aside.is_dir():
            for found in self._aside.iterdir():
                found.rename(self.path / found.name)
            self._aside.rmdir()


def _is_temporary(name: str) -> bool:
    """Whether a file is one of a kill within `write_atomic`."""
    written = "|".join(re.escape(one) for one in (*WRITTEN, CONFIG))
    return re.fullmatch(rf"\.({written})\.\d+\.tmp", name) is not None


def check_same_config(run: Path, config: JsonObject, volatile: frozenset[str], saved: JsonObject) -> None:
    """Refuse to resume a run with another configuration than it began with: raise ConfigError.

    Args:
        run: its directory.
        config: as it is to be resumed.
        volatile: keys that may differ.
        saved: as it began.
    """
    differing = [
        f"{key} was {_shown(saved, key)} and is now {_shown(config, key)}"
        for key in dict.fromkeys([*saved, *config])
        if key not in volatile and (key in saved, saved.get(key)) != (key in config, config.get(key))
    ]
    if differing:
        raise ConfigError(
            f"The run in '{run}' has another configuration: {'; '.join(differing)}. "
            "Resume it with its own values, or give another --output_dir."
        )


def _shown(config: JsonObject, key: str) -> str:
    text = repr(config[key]) if key in config else "not set"
    return text if len(text) <= 80 else text[:77] + "..."
