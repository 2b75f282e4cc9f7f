"""The run as an audit sees it: its model, the model that it began from, its rows, and its canaries.

Everything is loaded when it is first asked for, and once for all audits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from weft.audits.settings import CannotAudit, Settings
from weft.audits.taught import taught_by
from weft.core.seeds import generator
from weft.core.types import ServerState, Tensors
from weft.data.encode import encode_choices
from weft.data.formats import Example, Turn
from weft.data.tokenize import begin_and_end_ids
from weft.data.words import lead_of
from weft.errors import ConfigError
from weft.federation.client_host import ClientHost
from weft.launch.canaries import Canary, canaries_of
from weft.launch.client import ClientBuilder
from weft.launch.client_memory import DiskMemory
from weft.launch.population import PUBLIC, Population, load_template, template_name
from weft.launch.provenance import data_of
from weft.launch.run import Run
from weft.launch.subject import of_model, of_run
from weft.launch.tokenizer import with_tokenizer
from weft.models.generate import Sampling, generate
from weft.models.layout import Row
from weft.models.resident import Resident
from weft.runs import checkpoint, fingerprints
from weft.tasks.local_model import LocalModel

OF_MODEL = ("device", "dtype", "load_in_8bit", "load_in_4bit", "trust_remote_code")


class Scene:
    """A run that is audited."""

    def __init__(self, run: Run, settings: Settings) -> None:
        """Take a run, opened at the round that is meant.

        Raises:
            ConfigError: its model is behind an endpoint.
        """
        if run.config.endpoint is not None:
            raise ConfigError(
                f"The model of the run in '{run.path}' is behind {run.config.endpoint}, and an audit reads "
                "log-probabilities of the model itself: audit a run whose model is here."
            )
        self.run, self.config, self.settings = run, run.config, settings
        self._known: dict[str, Any] = {}
        self.cut = 0
        """Prompts that were too long for the context, and lost their beginning."""

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what is made at the first call with a name, for all audits."""
        if name not in self._known:
            self._known[name] = make()
        return self._known[name]

    def chance(self, *purpose: str | int) -> np.random.Generator:
        """Return random numbers for a purpose: what an attacker guesses, which protects nobody."""
        return generator(self.settings.seed, "audit", *purpose)

    # Models

    @cached_property
    def subject(self) -> Any:
        """The run's model, as it was trained.

        Raises:
            ConfigError: there is no such model, or it holds numbers that are not finite, which would look like chance.
        """
        subject = of_run(self.run, self.settings.client, chat=False, batch_size=self.settings.batch_size)
        assert isinstance(subject.model, LocalModel)
        parameters = subject.model.model.model.parameters()
        if not all(bool(value.isfinite().all()) for value in parameters if value.is_floating_point()):
            raise ConfigError(
                f"The model of the run in '{self.run.path}' holds numbers that are not finite, so that it knows "
                "nothing and says nothing: audit an earlier --round."
            )
        return subject

    @property
    def local(self) -> LocalModel:
        """The same, put to tasks."""
        assert isinstance(self.subject.model, LocalModel)
        return self.subject.model

    @property
    def model(self) -> Resident:
        """The same, with its layers."""
        return self.local.model

    @cached_property
    def reference(self) -> Resident | None:
        """The model that the run began from; None where it began from nothing."""
        config = self.config
        if config.from_scratch:
            return None
        default = type(config).model_fields
        given = {name: getattr(config, name) for name in OF_MODEL if getattr(config, name) != default[name].default}
        subject = of_model(config.model_name_or_path, given, chat=False, batch_size=self.settings.batch_size)
        assert isinstance(subject.model, LocalModel)
        return subject.model.model

    # Rows

    @cached_property
    def names(self) -> list[str]:
        """The names of the clients."""
        split = json.loads(self.run.directory.split_file.read_text(encoding="utf-8"))
        return list(split.get("clients") or {})

    @cached_property
    def _built(self) -> tuple[ClientBuilder, Population]:
        folder = self.run.directory
        values = self.config.model_dump(mode="json") | {"runtime": "inprocess", "parallel": "none"}
        config = type(self.config)(**{name: value for name, value in values.items() if value is not None})
        builder = ClientBuilder(with_tokenizer(config, folder.path / "tokenizer"))
        people = builder.read(DiskMemory(folder))
        # Rows that changed since would be taken for what the model was trained on.
        fingerprints.check(folder, data_of(self.config), accept=self.run.accept_changed)
        return builder, people

    @property
    def population(self) -> Population:
        """The clients with their rows."""
        return self._built[1]

    @cached_property
    def taught(self) -> Callable[[str], bool]:
        """Whether the rows of a client are in the model."""
        return taught_by(self.run, self.settings.client)

    def rows(self, *, members: bool) -> list[Row]:
        """Return rows that were trained on, or rows of the same clients that were held out, as the model reads them.

        There are at most `settings.limit`, drawn at random, each content once. Canaries are left out, and contents that
        stand in both: were they left among the members alone, these would be the more usual rows.

        Raises:
            CannotAudit: the model was trained on no rows.
        """
        people = self.population
        taught = [client.train for client in people.trained if client.name != PUBLIC and self.taught(client.name)]
        if members and not taught:
            raise CannotAudit(
                f"No client's update is in the model of the run in '{self.run.path}' by then, so that it remembers no "
                "row: audit a later --round, or go on with --resume."
            )
        seen = {canary.answer for canary in people.canaries}
        held_out = [client.held_out for client in people.evaluated if self.taught(client.name)]
        views, apart = (taught, held_out) if members else (held_out, taught)
        known = {view[place][0].tobytes() for view in apart for place in range(len(view))}
        found = [(view, place) for view in views for place in range(len(view))]
        rows: list[Row] = []
        for number in self.chance("rows", str(members)).permutation(len(found)):
            view, place = found[number]
            row: Row = view[place]
            content = row[0].tobytes()
            if content in known or (seen and self.text(row[0][row[1]]) in seen):
                continue
            known.add(content)
            rows.append(self.placed(row))
            if len(rows) == self.settings.limit:
                break
        return rows

    def rest(self, rows: Sequence[Row], most: int) -> list[Row]:
        """Return training rows, canaries too, that are none of these, drawn at random."""
        without = {row[0].tobytes() for row in rows}
        taught = [client.train for client in self.population.trained]
        found = [(view, place) for view in taught for place in range(len(view))]
        order = self.chance("rest").permutation(len(found))
        others = (self.placed(found[number][0][found[number][1]]) for number in order)
        return list(islice((row for row in others if row[0].tobytes() not in without), most))

    def text(self, ids: np.ndarray) -> str:
        """Return ids as text."""
        return str(self.run.tokenizer.decode(ids[ids >= 0], skip_special_tokens=True)).strip()

    def placed(self, row: Row) -> Row:
        """Return a row with the instruction that the run found, where it found one."""
        place = self.local.place
        if place is None:
            return row
        ids = place(row[0])
        return ids, np.concatenate([np.zeros(len(ids) - len(row[0]), dtype=bool), row[1]])

    # Canaries

    @cached_property
    def canaries(self) -> list[Canary]:
        """All canaries of clients whose updates are in the model, those that coins kept out too."""
        drawn = canaries_of(self.config, self.names, DiskMemory(self.run.directory).secret)
        return [canary for canary in drawn if self.taught(canary.client)]

    @cached_property
    def template(self) -> Any:
        """How conversations of the run are written."""
        rows = "text" if self.config.objective == "causal_lm" else "conversations"
        return load_template(template_name(self.config, self.run.tokenizer, rows), self.config.template_date)

    def question(self, canary: Canary, answers: Sequence[str]) -> tuple[np.ndarray, Sequence[np.ndarray]]:
        """Return the ids of a canary's question, and of possible answers, as the training rows have them."""
        encoded = encode_choices(
            [canary.example()],
            self.run.tokenizer,
            self.template,
            answers,
            seq_length=self.config.seq_length,
            lead=lead_of(self.config),
        )
        prompt = encoded.prompts[0] if self.local.place is None else self.local.place(encoded.prompts[0])
        return prompt, encoded.choices[0]

    def asking(self, text: str, system: str = "", *, own: bool = True) -> np.ndarray:
        """Return the ids of a question behind a system prompt; `own`: and behind the instruction that the run found."""
        turns = (*[Turn("system", system)] * bool(system), Turn("user", text), Turn("assistant", ""))
        if self.config.objective == "causal_lm":
            return self.plain(f"{system}\n{text}".lstrip())
        encoded = encode_choices(
            [Example(turns)],
            self.run.tokenizer,
            self.template,
            ["1", "2"],
            seq_length=self.local.longest,
            lead=lead_of(self.config),
        )
        prompt = encoded.prompts[0]
        return self.local.place(prompt) if own and self.local.place is not None else prompt

    def plain(self, text: str) -> np.ndarray:
        """Return the ids of a text that is to go on."""
        begin = begin_and_end_ids(self.run.tokenizer)[0]
        ids = self.run.tokenizer.encode(text, add_special_tokens=False)
        return np.concatenate([lead_of(self.config), np.array([*begin, *ids], dtype=np.int32)])

    def write(self, prompts: Sequence[np.ndarray], tokens: int, *, temperature: float = 0.0) -> list[str]:
        """Return what the model writes after token ids.

        Args:
            prompts: (P,) ids of each.
            tokens: most of an answer.
            temperature: of the sampling; 0: always the likeliest token.
        """
        cut = [self.fitting(prompt, tokens) for prompt in prompts]
        self.cut += sum(len(short) < len(prompt) for short, prompt in zip(cut, prompts, strict=True))
        size, texts = self.settings.batch_size, []
        for at in range(0, len(cut), size):
            # With one seed for all, samples of a prompt would be the same in every batch.
            seed = self.settings.seed + 7919 * at
            answers = generate(self.model, cut[at : at + size], Sampling(tokens, temperature), seed=seed)
            texts += [self.text(answer.ids) for (answer,) in answers]
        return texts

    def fitting(self, prompt: np.ndarray, tokens: int) -> np.ndarray:
        """Return the end of a prompt (P,), as far as the context has room for it and an answer of so many tokens."""
        return prompt[-max(1, self.local.longest - tokens) :]

    # Updates

    @cached_property
    def begun(self) -> tuple[ClientHost, ServerState, Tensors]:
        """What answers for the run's clients, the state after the round that is meant, and what all rounds began from.

        Raises:
            CannotAudit: the run has no checkpoint.
        """
        if self.run.round is None:
            raise CannotAudit(f"The run in '{self.run.path}' has no checkpoint, so it has no round to ask for updates.")
        builder, _ = self._built
        host, values = builder.host(reference=self.run.directory.reference_file)
        return host, checkpoint.at(self.run.directory, self.run.round), values
