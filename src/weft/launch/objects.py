"""Rows, models and tokenizers that `weft.train` is given as objects: they are written once and named by their content.

A run names what it is made of, so that it can be resumed, exported and reported on by another process. What is given
as an object lies in `$WEFT_CACHE/given` (or ~/.cache/weft/given): `rows-HASH.jsonl`, `model-HASH/`. The same object
comes to the same name, another one to another, which a resumed run refuses as it refuses any other change.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from weft.core.files import cache_folder
from weft.errors import ConfigError, DataError
from weft.json_types import JsonObject

SOURCES = ("dataset_name", "eval_dataset_name", "public_data")
READ = "a name, a path, a list of rows, a pandas DataFrame or a datasets.Dataset"


class ObjectInputs:
    """Objects of one call, on their way to the disk: nothing stays where the call is refused."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        """What is to be said of them."""
        self._new: list[Path] = []
        self._staged: dict[Path, Path] = {}
        self._folder: Path | None = None

    def __enter__(self) -> ObjectInputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ConfigError):
            for path in self._new:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self._folder is not None:
            shutil.rmtree(self._folder)

    def named(self, values: Mapping[str, Any]) -> JsonObject:
        """Return keys with names in place of objects.

        Raises:
            ConfigError: an object that cannot be kept, or a model without a tokenizer.
            DataError: rows of a kind that is not known, or with a value that cannot be written.
        """
        made = dict(values)
        self._models(made)
        for key in SOURCES:
            if key in made and not _is_name(made[key]):
                split = made.pop("dataset_split", None) if key == "dataset_name" else None
                made[key] = self._rows(made[key], key, split)
        if isinstance(clients := made.get("clients"), Mapping):
            made["clients"] = [{"name": name, "data": data} for name, data in clients.items()]
        if isinstance(made.get("clients"), (list, tuple)):
            made["clients"] = [self._client(one) if isinstance(one, Mapping) else one for one in made["clients"]]
        return made

    def keep(self) -> None:
        """Put what was given where its names say, where it is not there yet."""
        for staged, place in self._staged.items():
            if not place.exists():
                os.rename(staged, place)
                self._new.append(place)

    def _client(self, client: Mapping[str, Any]) -> JsonObject:
        sources = {key: client[key] for key in ("data", "eval") if client.get(key) is not None}
        named = {
            key: os.fspath(value) if _is_name(value) else self._rows(value, f"{key} of the client", None)
            for key, value in sources.items()
        }
        return {**client, **named}

    def _rows(self, value: Any, key: str, split: str | None) -> str:
        rows = rows_of(self._part(value, key, split), key)

        def write(path: Path) -> str:
            digest, count = hashlib.sha256(), 0
            with open(path, "wb") as file:
                for count, row in enumerate(rows, start=1):
                    line = _line(row, count, key)
                    digest.update(line)
                    file.write(line)
            if not count:
                raise DataError(f"{key} holds no row: give at least one.")
            return f"rows-{digest.hexdigest()[:16]}.jsonl"

        return self._stage(write)

    def _part(self, value: Any, key: str, split: str | None) -> Any:
        """Return one split of a DatasetDict, or the value as it is."""
        if not isinstance(value, dict) or not value or not all(hasattr(one, "features") for one in value.values()):
            if split is not None:
                raise DataError(f"dataset_split is '{split}', and {key} has no splits: leave it out.")
            return value
        wanted = split or ("train" if "train" in value or len(value) > 1 else next(iter(value)))
        if wanted not in value:
            raise DataError(
                f"{key} has no split '{wanted}', but {', '.join(value)}: give one of them, such as "
                f"{key}=data['{next(iter(value))}']."
            )
        if others := [name for name in value if name != wanted]:
            self.notes.append(f"of {key} the split '{wanted}' is used, and not {', '.join(others)}.")
        return value[wanted]

    def _models(self, made: JsonObject) -> None:
        """Write a model that is an object with its tokenizer, or a tokenizer for a model that begins from nothing."""
        if "model" in made:
            if "model_name_or_path" in made:
                raise ConfigError("Both model and model_name_or_path are given: leave one of them out.")
            made["model_name_or_path"] = made.pop("model")
        model, tokenizer = made.get("model_name_or_path"), made.get("tokenizer")
        written = tokenizer is not None and not _is_name(tokenizer)
        if model is not None and not _is_name(model):
            _check_model(model)
            if not written:
                raise ConfigError("A model that is an object needs its tokenizer as an object too: add tokenizer=.")
            del made["tokenizer"]
            made["model_name_or_path"] = self._stage(_writer("model", model, tokenizer))
        elif written:
            if model is not None:
                raise ConfigError(
                    "A tokenizer that is an object belongs to a model that is one, or that begins from nothing: give "
                    "the model as an object too, or leave tokenizer out to use the model's own."
                )
            made["tokenizer"] = self._stage(_writer("tokenizer", tokenizer))

    def _stage(self, write: Callable[[Path], str]) -> str:
        """Write something aside; return the path that its content gives it."""
        home = cache_folder("given").resolve()
        if self._folder is None:
            home.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=".staged-", dir=home))
        staged = self._folder / str(len(self._staged))
        place = home / write(staged)
        self._staged[staged] = place
        return str(place)


def rows_of(value: Any, key: str) -> Iterable[Mapping[str, Any]]:
    """Return the rows of an object; DataError for one of another kind."""
    if isinstance(value, (list, tuple)) and all(isinstance(row, Mapping) for row in value):
        return value
    if type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "to_dict") and hasattr(value, "columns"):
        rows: list[JsonObject] = value.to_dict("records")
        return rows
    if hasattr(value, "features") and hasattr(value, "__len__"):
        found: Iterable[Mapping[str, Any]] = value
        return found
    hint = ""
    if isinstance(value, Mapping):
        hint = " (a dict of columns becomes one by datasets.Dataset.from_dict)"
    elif hasattr(value, "features"):
        hint = " (of a stream, as many rows as are wanted: list(stream.take(1000)))"
    elif isinstance(value, (list, tuple)):
        hint = " (a row is a dict of columns)"
    raise DataError(f"{key} is of the type {type(value).__name__}, which holds no rows: give {READ}{hint}.")


def _is_name(value: object) -> bool:
    return value is None or isinstance(value, (str, os.PathLike))


def _line(row: Mapping[str, Any], number: int, key: str) -> bytes:
    """Return a row as a line of JSON; what is missing in a data frame is null."""
    try:
        values = {str(name): None if _missing(value) else value for name, value in row.items()}
        return (json.dumps(values, ensure_ascii=False, default=_plain) + "\n").encode("utf-8", "surrogatepass")
    except (TypeError, ValueError) as error:
        raise DataError(f"Row {number} of {key} cannot be written ({error}): give text, numbers and lists.") from None


def _missing(value: object) -> bool:
    return type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)


def _plain(value: Any) -> Any:
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return value.tolist()
    raise TypeError(f"a value of the type {type(value).__name__}")


def _check_model(model: Any) -> None:
    """Refuse a model object that a folder cannot stand for."""
    if not hasattr(model, "save_pretrained") or not hasattr(model, "state_dict"):
        raise ConfigError(
            f"The model is of the type {type(model).__name__}: give a name, a path, or a model of transformers."
        )
    if hasattr(model, "peft_config"):
        raise ConfigError(
            "The model has an adapter already: give model.merge_and_unload(), or the folder of the adapter by its path."
        )
    if getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        raise ConfigError("The model is quantised: give its name instead, with load_in_8bit or load_in_4bit.")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ConfigError("The model has weights that are not in memory: load it whole, or give its name.")


def _writer(kind: str, *parts: Any) -> Callable[[Path], str]:
    """Return what saves the parts into a folder, and names it by its files."""

    def write(folder: Path) -> str:
        for part in parts:
            part.save_pretrained(folder)
        digest = hashlib.sha256()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
            with open(path, "rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
        return f"{kind}-{digest.hexdigest()[:16]}"

    return write
