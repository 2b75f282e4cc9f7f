"""Rows, models and tokenizers passed to `weft.train` as objects: each is written once and named by its content.

A run names what it is made of, so that another process can resume, export and report on it. An object is kept in
`$WEFT_CACHE/given` (or ~/.cache/weft/given): `rows-HASH.jsonl`, `model-HASH/`. The same object comes to the same name,
another one to another, which a resumed run refuses as it refuses any other change.
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
        """Sentences for the user about them."""
        self._new_paths: list[Path] = []
        self._places: dict[Path, Path] = {}
        self._folder: Path | None = None

    def __enter__(self) -> ObjectInputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ConfigError):
            # Refused before anything ran: nobody can resume it. After any other error the run may be, and needs its
            # inputs.
            for path in self._new_paths:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self._folder is not None:
            shutil.rmtree(self._folder)

    def with_names(self, values: Mapping[str, Any]) -> JsonObject:
        """Return keys with names in place of objects.

        Raises:
            ConfigError: an object that cannot be kept, or a model without a tokenizer.
            DataError: rows of a kind that is not known, or with a value that cannot be written.
        """
        keys = dict(values)
        self._models(keys)
        for key in SOURCES:
            if key in keys and not _is_name(keys[key]):
                split = keys.pop("dataset_split", None) if key == "dataset_name" else None
                keys[key] = self._rows(keys[key], key, split)
        if isinstance(clients := keys.get("clients"), Mapping):
            keys["clients"] = [{"name": name, "data": data} for name, data in clients.items()]
        if isinstance(keys.get("clients"), (list, tuple)):
            keys["clients"] = [self._client(one) if isinstance(one, Mapping) else one for one in keys["clients"]]
        return keys

    def keep(self) -> None:
        """Put what was given where its names say, where it is not there yet."""
        for temporary, place in self._places.items():
            if not place.exists():
                os.rename(temporary, place)
                self._new_paths.append(place)

    def _client(self, client: Mapping[str, Any]) -> JsonObject:
        sources = {key: client[key] for key in ("data", "eval") if client.get(key) is not None}
        names = {
            key: os.fspath(value) if _is_name(value) else self._rows(value, f"{key} of the client", None)
            for key, value in sources.items()
        }
        return {**client, **names}

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
        name = split or ("train" if "train" in value or len(value) > 1 else next(iter(value)))
        if name not in value:
            raise DataError(
                f"{key} has no split '{name}', but {', '.join(value)}: give one of them, such as "
                f"{key}=data['{next(iter(value))}']."
            )
        if other_splits := [other for other in value if other != name]:
            self.notes.append(f"of {key} the split '{name}' is used, and not {', '.join(other_splits)}.")
        return value[name]

    def _models(self, keys: JsonObject) -> None:
        """Write a model that is an object with its tokenizer, or a tokenizer for a model that begins from nothing."""
        if "model" in keys:
            if "model_name_or_path" in keys:
                raise ConfigError("Both model and model_name_or_path are given: leave one of them out.")
            keys["model_name_or_path"] = keys.pop("model")
        model, tokenizer = keys.get("model_name_or_path"), keys.get("tokenizer")
        has_tokenizer_object = tokenizer is not None and not _is_name(tokenizer)
        if model is not None and not _is_name(model):
            _check_model(model)
            if not has_tokenizer_object:
                raise ConfigError("A model that is an object needs its tokenizer as an object too: add tokenizer=.")
            del keys["tokenizer"]
            keys["model_name_or_path"] = self._stage(_writer("model", model, tokenizer))
        elif has_tokenizer_object:
            if model is not None:
                raise ConfigError(
                    "A tokenizer that is an object belongs to a model that is one, or that begins from nothing: give "
                    "the model as an object too, or leave tokenizer out to use the model's own."
                )
            keys["tokenizer"] = self._stage(_writer("tokenizer", tokenizer))

    def _stage(self, write: Callable[[Path], str]) -> str:
        """Write something aside; return the path that its content gives it."""
        home = cache_folder("given").resolve()
        if self._folder is None:
            home.mkdir(parents=True, exist_ok=True)
            # On the same file system as the final place, so that `keep` is a rename.
            self._folder = Path(tempfile.mkdtemp(prefix=".staged-", dir=home))
        temporary = self._folder / str(len(self._places))
        place = home / write(temporary)
        self._places[temporary] = place
        return str(place)


def rows_of(value: Any, key: str) -> Iterable[Mapping[str, Any]]:
    """Return the rows of an object; DataError for one of another kind."""
    if isinstance(value, (list, tuple)) and all(isinstance(row, Mapping) for row in value):
        return value
    if type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "to_dict") and hasattr(value, "columns"):
        rows: list[JsonObject] = value.to_dict("records")
        return rows
    if hasattr(value, "features") and hasattr(value, "__len__"):
        examples: Iterable[Mapping[str, Any]] = value
        return examples
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
    # pandas is not imported for its NA and NaT; NaN is the only float that differs from itself.
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
            # Names and sizes are hashed too: otherwise bytes moved from one file to the next would not show.
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
            with open(path, "rb") as file:
                while block := file.read(1 << 24):
                    digest.update(block)
        return f"{kind}-{digest.hexdigest()[:16]}"

    return write
