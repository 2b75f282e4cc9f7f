"""The directory that holds everything about one run: where each thing lies, and who may write there.

    config.yaml  metrics.jsonl  timing.jsonl  summary.json  report.html
    checkpoints/round_000012/   clients/NAME/   adapter/ or model/   trackers/   secret.key   clients.key

Does not know what the files hold. One live process at a time writes to a run: it holds a lock that the kernel
frees when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from weft.core.files import missing, remove_empty, write_atomic
from weft.core.secret import FILE as SECRET_FILE
from weft.core.secret import Secret
from weft.core.yaml_text import text_of, value_of
from weft.errors import ConfigError, RunInUse
from weft.json_types import JsonObject
from weft.runs.start import (
    CHECKPOINT,
    CHECKPOINTS,
    CONFIG,
    FINGERPRINTS,
    LOCK,
    Start,
    check_same_config,
    is_ours,
)

HEADER = "# The resolved configuration of a Weft run.\n"


def path_component(name: str) -> str:
    """Return a file name for any text: distinct for distinct names, also where a file system ignores case.

    A plain lower-case name stays as it is; any other is percent-encoded, shortened, and made unique by its hash.
    """
    if re.fullmatch(r"[a-z0-9_-][a-z0-9_.-]{0,99}", name):
        return name
    # The tilde marks the hash below, so that no encoded name can be mistaken for a hashed one.
    encoded = quote(name, safe="", errors="surrogatepass").replace("~", "%7E")
    return f"{encoded[:80]}~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"


class RunDir:
    """The paths of a run. Made by its constructor it only reads; made by `create` it also holds the lock."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock: int | None = None
        self._start: Start | None = None

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        config: JsonObject,
        *,
        resume: bool,
        overwrite: bool,
        volatile: frozenset[str],
        defaults: JsonObject | None = None,
        resolve: Callable[[JsonObject], JsonObject] = dict,
    ) -> RunDir:
        """Make, resume (`resume`) or empty (`overwrite`) a run directory, lock it and write config.yaml.

        `config` is plain data; its keys in `volatile` may differ from those of the run that is resumed, and a key that
        the run was made without (by an older version) stands for its value in `defaults`. `resolve` brings saved keys
        into the form of given ones, such as with whole paths. A run that is overwritten comes back where the new one
        fails before its first checkpoint, as all is undone that a start does which fails (weft.runs.start).

        Raises:
            ConfigError: the directory is in use, holds something else, holds a run and neither `resume` nor
                `overwrite` is given, holds no run to resume, or holds a run of another configuration.
        """
        run = cls(path)
        run._check(resume=resume, overwrite=overwrite)
        try:
            run._lock_directory()
            # What was checked without the lock may have been changed by the process that held it.
            run._check(resume=resume, overwrite=overwrite)
            text = text_of(config)
            if run.holds_run and resume:
                former = resolve({**(defaults or {}), **run.read_config()})
                check_same_config(run.path, value_of(text), volatile, former)
            elif run.holds_run and run._start is not None:
                run._start.overwrite()
            write_atomic(run.config_file, (HEADER + text).encode())
        except BaseException as error:
            run.__exit__(type(error), error, error.__traceback__)
            if isinstance(error, OSError):
                raise ConfigError(
                    f"The output directory '{run.path}' cannot be written ({error.strerror}): "
                    "give another --output_dir, or make this one writable."
                ) from error
            raise
        return run

    @property
    def config_file(self) -> Path:
        """The resolved configuration, YAML."""
        return self.path / CONFIG

    @property
    def metrics_file(self) -> Path:
        """What is deterministic, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def timing_file(self) -> Path:
        """What is not deterministic, one JSON object a line."""
        return self.path / "timing.jsonl"

    @property
    def chain_file(self) -> Path:
        """The record of all rounds, a chain of hashes."""
        return self.path / "chain.jsonl"

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
    def fingerprints_file(self) -> Path:
        """What the run was made from."""
        return self.path / FINGERPRINTS

    @property
    def checkpoints(self) -> Path:
        """The directory of checkpoints, one directory for each."""
        return self.path / CHECKPOINTS

    @property
    def rounds(self) -> list[int]:
        """The rounds after which there is a checkpoint, in their order."""
        names = os.listdir(self.checkpoints) if self.checkpoints.is_dir() else []
        return sorted({int(name[6:].removesuffix(".old")) for name in names if re.fullmatch(CHECKPOINT, name)})

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

    def secret(self) -> Secret:
        """Return the server's secret of this run."""
        return Secret.load_or_create(self.path / SECRET_FILE)

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

    def read_config(self) -> JsonObject:
        """Return the saved configuration.

        Raises:
            ConfigError: no run is there.
        """
        if not self.holds_run:
            raise ConfigError(f"There is no run in '{self.path}': give the --output_dir of a run.")
        config: JsonObject = value_of(self.config_file.read_text(encoding="utf-8"))
        return config

    def close(self) -> None:
        """Free the lock."""
        self._start = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and self._start is not None:
                self._start.undo()
        finally:
            self.close()  # last, so that no other process writes here before the directory is restored

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
                    "or give another --output_dir (in Python resume=True, overwrite=True, output_dir=...)."
                )
        elif self.path.is_dir() and (others := sorted(name for name in os.listdir(self.path) if not is_ours(name))):
            raise ConfigError(
                f"{where} holds files that do not belong to a run ('{others[0]}'{' and more' if others[1:] else ''}): "
                "give an empty or a new --output_dir."
            )
        elif resume:
            raise ConfigError(f"{where} holds no run to resume: leave --resume out to begin one.")

    def settle(self) -> None:
        """Note that a checkpoint is there: what the run overwrites, if it does, is deleted."""
        if self._start is not None:
            self._start.settle()

    def _lock_directory(self) -> None:
        """Make the directory and its lock, and see what is there."""
        new_folders, lock_existed = missing(self.path), (self.path / LOCK).exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            while not self._acquire():
                pass
        except BaseException:
            remove_empty(new_folders)
            raise
        self._start = Start(self.path, new_folders, lock_existed=lock_existed)

    def _acquire(self) -> bool:
        """Take the lock; return False where its file was removed meanwhile, by a start that failed."""
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
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
        # A failed start of another process deleted the file after this one opened it: a lock on it excludes nobody.
        if not os.fstat(descriptor).st_nlink:
            os.close(descriptor)
            return False
        self._lock = descriptor
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        return True
