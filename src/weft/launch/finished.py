"""A finished run, opened from its directory: its numbers, and its model to use."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.config import RunConfig, build
from weft.errors import ConfigError
from weft.runs.layout import RunDir
from weft.runs.metrics import read, to_frame

if TYPE_CHECKING:
    import pandas


class Run:
    """A run directory, opened to read."""

    def __init__(self, path: str | Path) -> None:
        """Open a run; ConfigError if the directory holds none."""
        self.directory = RunDir(path)
        self.path = self.directory.path
        self.config: RunConfig = build(self.directory.read_config())

    def __repr__(self) -> str:
        return f"Run('{self.path}')"

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers of summary.json; ConfigError while the run is not finished."""
        if not self.directory.summary_file.exists():
            raise ConfigError(
                f"The run in '{self.path}' is not finished: run `weft sft --output_dir {self.path} --resume`."
            )
        loaded: dict[str, Any] = json.loads(self.directory.summary_file.read_text(encoding="utf-8"))
        return loaded

    @property
    def metrics(self) -> pandas.DataFrame:
        """What was measured, a row for each round, those of evaluations included."""
        return to_frame(read(self.directory.metrics_file))

    def weights(self, client: str | None = None) -> Path:
        """Return the directory of the trained adapter or model, of one client where each has its own.

        Raises:
            ConfigError: there is none, or a client must be named.
        """
        if self.config.finds_words:
            return self._prompt_file(client)
        kind = "adapter" if self.config.adapts else "model"
        base = self.directory.client_dir(client) if client else self.path
        if (base / kind).is_dir():
            return base / kind
        if client is None and any(self.directory.clients.glob(f"*/{kind}")):
            raise ConfigError(f"Every client of '{self.path}' has its own model: name one with --client NAME.")
        of = f" of the client '{client}'" if client else ""
        raise ConfigError(f"There is no {kind}{of} in '{self.path}': the run is not finished, or has no such client.")

    def instruction(self, client: str | None = None) -> str:
        """Return the prompt in words that the run found, "" where it looked for none; ConfigError as for `weights`."""
        if not self.config.finds_words:
            return ""
        return self._prompt_file(client).read_text(encoding="utf-8").strip("\n")

    def _prompt_file(self, client: str | None) -> Path:
        path = self.directory.prompt_file(client)
        if path.is_file():
            return path
        if client is None and any(self.directory.clients.glob("*/prompt.txt")):
            raise ConfigError(f"Every client of '{self.path}' has its own prompt: name one with --client NAME.")
        raise ConfigError(f"There is no prompt in '{path.parent}': the run is not finished, or has no such client.")

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that the run was trained with."""
        from transformers import AutoTokenizer

        if not self.config.finds_words and (not self.config.adapts or any(self.path.glob("adapter"))):
            return AutoTokenizer.from_pretrained(self.weights())
        from weft.models.load import load_tokenizer

        return load_tokenizer(self.config)

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
        from transformers import AutoConfig, AutoModelForCausalLM

        from weft.models.load import base_model
        from weft.models.noise import hush
        from weft.models.precision import choose_device, choose_dtype

        hush()
        weights = self.weights(client)
        if self.config.finds_words:
            model = base_model(self.config, full_precision=full_precision)
        elif self.config.adapts:
            from peft import PeftModel

            base = base_model(self.config, full_precision=full_precision)
            model = PeftModel.from_pretrained(base, str(weights))
        else:
            device = choose_device(self.config.device)
            hidden = getattr(AutoConfig.from_pretrained(weights).get_text_config(), "hidden_size", 0)
            dtype = torch.float32 if full_precision else choose_dtype(self.config.dtype, device, hidden)
            model = AutoModelForCausalLM.from_pretrained(weights, dtype=dtype).to(device)
        model.eval()
        model.config.use_cache = True
        return model
