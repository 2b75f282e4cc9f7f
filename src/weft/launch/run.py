"""A run, opened from its directory: its numbers, and its model to use, of its end or of any checkpoint."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import tempfile
import weakref
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.config import RunConfig, build
from weft.core.libraries import Tokenizer
from weft.errors import ConfigError
from weft.json_types import JsonObject
from weft.launch.client_names import unknown_client
from weft.launch.paths import absolute, kind_of
from weft.runs.layout import RunDir
from weft.runs.metrics import read, to_frame

if TYPE_CHECKING:
    import pandas

    from weft.pages.view import View


class Run:
    """A run directory, opened to read."""

    def __init__(self, path: str | Path, *, round: int | None = None, accept_changed: bool = False) -> None:
        """Open a run.

        Args:
            path: its directory.
            round: whose weights are meant, of those that have a checkpoint; None: the newest.
            accept_changed: put the weights on a base, or use a tokenizer, that is not what the run was made from.

        Raises:
            ConfigError: the directory holds no run, or no checkpoint of that round.
        """
        self.directory = RunDir(path)
        self.path = self.directory.path
        self.config: RunConfig = build(absolute(self.directory.read_config()))
        self.accept_changed = accept_changed
        self.rounds = self.directory.rounds
        """The rounds after which there is a checkpoint."""
        self._weight_folders: dict[str | None, Path] = {}
        self._base_compared = False
        if round is not None and round not in self.rounds:
            rounds = ", ".join(map(str, self.rounds))
            advice = f"write --round and one of {rounds}" if rounds else "it has no checkpoint yet"
            raise ConfigError(f"The run in '{self.path}' has no checkpoint of round {round}: {advice}.")
        self.round = round if round is not None else max(self.rounds, default=None)

    def __repr__(self) -> str:
        return f"Run('{self.path}')"

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, and was not extended since."""
        return self._summary is not None and self._summary["rounds"] >= max(self.rounds, default=0)

    @cached_property
    def _summary(self) -> JsonObject | None:
        try:
            summary: JsonObject = json.loads(self.directory.summary_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return summary

    @property
    def summary(self) -> JsonObject:
        """The numbers of summary.json; ConfigError while the run is not finished."""
        if self._summary is None or not self.finished:
            raise ConfigError(f"The run in '{self.path}' is not finished: run `{self._resume_command}`.")
        return self._summary

    @property
    def _resume_command(self) -> str:
        return f"weft sft --output_dir {shlex.quote(str(self.path))} --resume"

    @property
    def metrics(self) -> pandas.DataFrame:
        """What was measured, a row for each round, those of evaluations included."""
        return to_frame(read(self.directory.metrics_file))

    def plot(self, *titles: str) -> View:
        """Return the curves of the run, which a notebook shows; `titles` chooses, such as "loss".

        Raises:
            ConfigError: there is no such curve.
            DataError: a file of the run holds what Weft does not write.
        """
        from weft.launch.damage import as_written
        from weft.pages.plot import plot
        from weft.pages.record import RunRecord

        with as_written([self.path]):
            return plot(RunRecord.read(self.path), titles)

    def report(self, *against: str | Path | Run, metric: str | None = None) -> View:
        """Return the page of `weft report`, which a notebook shows.

        Args:
            against: runs that the result is compared with, such as every client alone and the pooled data.
            metric: what the page begins with.

        Raises:
            ConfigError: no run has the metric.
            DataError: a file of one of the runs holds what Weft does not write.
        """
        from weft.launch.damage import as_written
        from weft.pages.record import RunRecord
        from weft.pages.report import report
        from weft.pages.view import View

        paths = [one.path if isinstance(one, Run) else Path(one) for one in against]
        with as_written([self.path, *paths]):
            others = [RunRecord.read(path) for path in paths]
            return View(f"report of {self.path}", report(RunRecord.read(self.path), others, metric))

    @property
    def at_end(self) -> bool:
        """Whether the weights that are meant are those that the run wrote at its end."""
        return self.finished and self.round in (None, self.summary["rounds"])

    @property
    def client_names(self) -> list[str]:
        """Names of all clients; empty before the data of the run was read."""
        if self.config.clients:
            return [client.name for client in self.config.clients]
        file = self.directory.split_file
        split = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        return [str(name) for name in split.get("clients") or {}]

    def weights(self, client: str | None = None) -> Path:
        """Return where the trained adapter or model is, or the prompt, of one client where each has its own.

        Those of a run that is not finished, or of an earlier round, are written to a temporary folder, which lasts as
        long as the process.

        Raises:
            ConfigError: there is none, or a client must be named.
        """
        kind = "prompt.txt" if self.config.finds_words else kind_of(self.config)
        if client is not None and (names := self.client_names) and client not in names:
            raise unknown_client(f"There is no client '{client}' in '{self.path}'", client, names)
        if not self.at_end:
            return self._checkpoint_weights(client) / kind
        base = self.directory.client_dir(client) if client else self.path
        if (base / kind).exists():
            return base / kind
        if client is None and any(self.directory.clients.glob(f"*/{kind}")):
            raise ConfigError(f"Every client of '{self.path}' has its own {kind}: name one with --client NAME.")
        if client is not None and (self.path / kind).exists():
            raise ConfigError(f"The clients of '{self.path}' share one {kind}: leave out --client.")
        of = f" of the client '{client}'" if client else ""
        raise ConfigError(f"There is no {kind}{of} in '{self.path}': it was deleted, or this client took no part.")

    def _checkpoint_weights(self, client: str | None) -> Path:
        """Return a folder with the weights of a checkpoint."""
        if self.round is None:
            raise ConfigError(
                f"The run in '{self.path}' has not finished a round: resume it by `{self._resume_command}`."
            )
        if client not in self._weight_folders:
            from weft.launch.results import write_round
            from weft.runs import checkpoint

            self.check_base()
            state = checkpoint.at(self.directory, self.round)
            folder = tempfile.mkdtemp(prefix="weft-weights-")
            # Deleted with this object, or at exit of the process, whichever comes first.
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            write_round(self.config, self.directory, state, client, Path(folder))
            self._weight_folders[client] = Path(folder)
        return self._weight_folders[client]

    def check_base(self) -> None:
        """Compare the base, which the run's weights are changes of, with the one that the run was made from, once.

        Raises:
            ConfigError: it changed, and that is not accepted.
        """
        if self._base_compared:
            return
        from weft.launch.provenance import base_of
        from weft.runs import fingerprints

        self._note_changes(fingerprints.check(self.directory, base_of(self.config), accept=self.accept_changed))
        self._base_compared = True

    def _note_changes(self, changed: list[str]) -> None:
        if changed:
            print(f"weft: {' and '.join(changed)} changed since the run was made.", file=sys.stderr)

    def instruction(self, client: str | None = None) -> str:
        """Return the prompt in words that the run found, "" where it looked for none; ConfigError as for `weights`."""
        if not self.config.finds_words:
            return ""
        return self.weights(client).read_text(encoding="utf-8").strip("\n")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the run was trained with: the run's own copy, where there is one."""
        from transformers import AutoTokenizer

        kind = kind_of(self.config)
        copies = (self.path / kind, *self.directory.clients.glob(f"*/{kind}")) if self.at_end else ()
        for folder in (*copies, self.path / "tokenizer"):
            if (folder / "tokenizer_config.json").exists():
                copy: Tokenizer = AutoTokenizer.from_pretrained(folder)
                return copy
        from weft.launch.provenance import tokenizer_of
        from weft.models.tokenizer import load_tokenizer
        from weft.runs import fingerprints

        tokenizer: Tokenizer = load_tokenizer(self.config)
        current = tokenizer_of(self.config, tokenizer)
        self._note_changes(fingerprints.check(self.directory, current, accept=self.accept_changed))
        return tokenizer

    @cached_property
    def model(self) -> Any:
        """The trained model, ready to generate; `load_model` says more."""
        return self.load_model()

    def load_model(self, client: str | None = None, *, full_precision: bool = False) -> Any:
        """Load the trained model on the run's device: a peft model around its base, or a whole model.

        Args:
            client: whose, where each client has its own.
            full_precision: float32 and no quantised base, as merging needs it.
        """
        import torch
        from transformers import AutoConfig

        from weft.models.adapter_files import attach
        from weft.models.checkpoint import load_weights
        from weft.models.load import base_model
        from weft.models.noise import silence_libraries
        from weft.models.precision import choose_device, choose_dtype

        silence_libraries()
        weights = self.weights(client)
        if self.config.adapts:
            self.check_base()
        if self.config.finds_words:
            model = base_model(self.config, full_precision=full_precision)
        elif self.config.adapts:
            base = base_model(self.config, full_precision=full_precision)
            model = attach(base, weights)
        else:
            device = choose_device(self.config.device)
            hidden = getattr(AutoConfig.from_pretrained(weights).get_text_config(), "hidden_size", 0)
            dtype = torch.float32 if full_precision else choose_dtype(self.config.dtype, device, hidden)
            model = load_weights(str(weights), dtype=dtype).to(device)
        model.eval()
        model.config.use_cache = True
        return model


def add_use_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags by which the verbs that use a run's weights say which are meant."""
    parser.add_argument("--client", metavar="NAME", help="whose, where each client has its own")
    parser.add_argument("--round", type=int, metavar="N", help="of which round, one that is kept [the newest]")
    parser.add_argument(
        "--accept_changed", action="store_true", help="use the weights although the base is not what it was"
    )


def open_to_use(arguments: argparse.Namespace) -> Run:
    """Open the run that a verb is to use, and say which round is meant where that is not the last.

    Raises:
        ConfigError: there is no such run or round.
    """
    run = Run(arguments.run, round=arguments.round, accept_changed=arguments.accept_changed)
    if run.round is not None and not run.at_end:
        rounds = run.config.num_rounds
        print(f"weft: this is the model after round {run.round} of {rounds}.", file=sys.stderr)
    return run
