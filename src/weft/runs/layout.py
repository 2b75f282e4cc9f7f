"""The directory that holds everything about one run: where each thing lies, and who may write there.

    config.yaml  metrics.jsonl  timing.jsonl  summary.json  report.html
    checkpoints/round_000012/   clients/NAME/   adapter/ or model/   trackers/

Does not know what the files hold. One live process at a time writes to a run: it holds a lock that the kernel
frees when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import yaml

from weft.core.files import write_atomic
from weft.errors import ConfigError, RunInUse

LOCK = ".lock"
HEADER = "# The resolved configuration of a Weft run.\n"
WRITTEN = (
    "metrics.jsonl",
    "timing.jsonl",
    "checkpoints",
    "clients",
    "split.json",
    "reference.npy",
    "split.svg",
    "tokenizer",
    "template.jinja",
    "adapter",
    "model",
    "trackers",
    "summary.json",
    "report.html",
    "report.png",
)
"""All that a run writes beside config.yaml and the lock; what is not named here is never deleted."""


def path_component(name: str) -> str:
    """Return a file name for any text: distinct for distinct names, also where a file system ignores case.

    A plain lower-case name stays as it is; any other is percent-encoded, cut, and told apart by its hash.
    """
    if re.fullmatch(r"[a-z0-9_-][a-z0-9_.-]{0,99}", name):
        return name
    encoded = quote(name, safe="", errors="surrogatepass").replace("~", "%7E")
    return f"{encoded[:80]}~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"


class RunDir:
    """The paths of a run. Made by its constructor it only reads; made by `create` it also holds the lock."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: int | None = None

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        config: dict[str, Any],
        *,
        resume: bool,
        overwrite: bool,
        volatile: frozenset[str],
        defaults: Mapping[str, Any] | None = None,
    ) -> RunDir:
        """Make, take up again (`resume`) or empty (`overwrite`) a run directory, lock it and write config.yaml.

        `config` is plain data; its keys in `volatile` may differ from those of the run that is resumed, and a key that
        the run was made without (by an older version) stands for its value in `defaults`.

        Raises:
            ConfigError: the directory is in use, holds something else, holds a run and neither `resume` nor
                `overwrite` is given, holds no run to resume, or holds a run of another configuration.
        """
        run = cls(path)
        run._check(resume=resume, overwrite=overwrite)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            run._acquire()
            # What was checked without the lock may have been changed by whoever held it.
            run._check(resume=resume, overwrite=overwrite)
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            if run.holds_run and resume:
                run._compare(yaml.safe_load(text), volatile, defaults or {})
            elif run.holds_run:
                run._clear()
            write_atomic(run.config_file, (HEADER + text).encode())
        except OSError as error:
            run.close()
            raise ConfigError(
                f"The output directory '{run.path}' cannot be written ({error.strerror}): "
                "give another --output_dir, or make this one writable."
            ) from error
        except BaseException:
            run.close()
            raise
        return run

    @property
    def config_file(self) -> Path:
        """The resolved configuration, YAML."""
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        """What is deterministic, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def timing_file(self) -> Path:
        """What is not deterministic, one JSON object a line."""
        return self.path / "timing.jsonl"

    @property
    def summary_file(self) -> Path:
        """The numbers of the finished run, one JSON object."""
        return self.path / "summary.json"

    @property
    def report_file(self) -> Path:
        """The report, one HTML page."""
        return self.path / "report.html"

    @property
    def reference_file(self) -> Path:
        """What the starting model gave to everybody's preferences."""
        return self.path / "reference.npy"

    @property
    def split_file(self) -> Path:
        """What each client has, and how unlike the clients are."""
        return self.path / "split.json"

    @property
    def split_picture(self) -> Path:
        """The same as a picture."""
        return self.path / "split.svg"

    @property
    def template_file(self) -> Path:
        """A copy of the user's own chat template."""
        return self.path / "template.jinja"

    @property
    def checkpoints(self) -> Path:
        """The directory of checkpoints, one directory for each."""
        return self.path / "checkpoints"

    @property
    def clients(self) -> Path:
        """The directory of what clients remember."""
        return self.path / "clients"

    @property
    def adapter(self) -> Path:
        """The trained adapter, as `peft` loads it."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The trained model, as `transformers` loads it."""
        return self.path / "model"

    @property
    def trackers(self) -> Path:
        """What experiment trackers write."""
        return self.path / "trackers"

    def prompt_file(self, client: str | None = None) -> Path:
        """The prompt in words that was found, of one client where each has its own."""
        return (self.client_dir(client) if client else self.path) / "prompt.txt"

    def client_dir(self, name: str) -> Path:
        """Return the directory of a client of any name, inside `clients`, not made yet."""
        return self.clients / path_component(name)

    @property
    def holds_run(self) -> bool:
        """Whether a run was begun here: a config.yaml that Weft wrote, not just any."""
        if not self.config_file.is_file():
            return False
        with open(self.config_file, "rb") as file:
            return file.read(len(HEADER)) == HEADER.encode()

    def read_config(self) -> dict[str, Any]:
        """Return the saved configuration.

        Raises:
            ConfigError: no run is there.
        """
        if not self.holds_run:
            raise ConfigError(f"There is no run in '{self.path}': give the --output_dir of a run.")
        loaded: dict[str, Any] = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        return loaded

    def close(self) -> None:
        """Free the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, *, resume: bool, overwrite: bool) -> None:
        where = f"The output directory '{self.path}'"
        if resume and overwrite:
            raise ConfigError("--resume keeps the run that --overwrite would delete: give one of them.")
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{where} is a file: give another --output_dir.")
        if self.holds_run:
            if not (resume or overwrite):
                raise ConfigError(
                    f"{where} holds a run already: add --resume to continue it, --overwrite to delete it, "
                    "or give another --output_dir."
                )
        elif self.path.is_dir() and (found := sorted(name for name in os.listdir(self.path) if not _ours(name))):
            raise ConfigError(
                f"{where} holds files that are no run ('{found[0]}'{' and more' if found[1:] else ''}): "
                "give an empty or a new --output_dir."
            )
        elif resume:
            raise ConfigError(f"{where} holds no run to resume: leave --resume out to begin one.")

    def _acquire(self) -> None:
        descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise RunInUse(
                f"The output directory '{self.path}' is in use by another run (process {holder or 'unknown'}): "
                "wait for it, stop it, or give another --output_dir."
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        self._lock = descriptor
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())

    def _compare(self, given: dict[str, Any], volatile: frozenset[str], defaults: Mapping[str, Any]) -> None:
        saved = {**defaults, **self.read_config()}
        differing = [
            f"{key} was {_shown(saved, key)} and is now {_shown(given, key)}"
            for key in dict.fromkeys([*saved, *given])
            if key not in volatile and (key in saved, saved.get(key)) != (key in given, given.get(key))
        ]
        if differing:
            raise ConfigError(
                f"The run in '{self.path}' has another configuration: {'; '.join(differing)}. "
                "Resume it with its own values, or give another --output_dir."
            )

    def _clear(self) -> None:
        for name in [*WRITTEN, self.config_file.name]:  # config.yaml last: until then it is still a run to overwrite
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _ours(name: str) -> bool:
    """Whether a run that was killed before its config.yaml was there, or `weft split`, can have left this file."""
    return name in (LOCK, "split.json", "split.svg") or re.fullmatch(r"\.config\.yaml\.\d+\.tmp", name) is not None


def _shown(config: dict[str, Any], key: str) -> str:
    text = repr(config[key]) if key in config else "not set"
    return text if len(text) <= 80 else text[:77] + "..."
