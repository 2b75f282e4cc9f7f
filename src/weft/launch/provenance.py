"""What a run is made from: fingerprints of its data, its base and its tokenizer.

Files are read whole (weft.core.digests says what that costs); what is of the hub is known by its commit, and a data set
of the hub by its rows. What is missing has no fingerprint: the code that loads it reports it better.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from weft import kinds, plugins
from weft.config import RunConfig
from weft.core.digests import digest_of, file_digest
from weft.core.libraries import Tokenizer
from weft.data import load
from weft.data.parts import Selection
from weft.data.sets import hub_set, saved_set
from weft.data.source_kinds import token_cache
from weft.data.sources import selection_of
from weft.errors import ConfigError, DataError
from weft.models.source import model_source
from weft.models.starting import adapter_of
from weft.runs.fingerprints import Fingerprints

VOCABULARY = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*")
"""Files of a tokenizer."""
ROWS = 1000
"""Rows of a data set of the hub that are hashed at a time."""


def all_of(config: RunConfig, tokenizer: Tokenizer) -> Fingerprints:
    """Return the fingerprints of all that a run is made from."""
    return base_of(config) | tokenizer_of(config, tokenizer) | data_of(config) | parts_of(config)


def parts_of(config: RunConfig) -> Fingerprints:
    """Return the fingerprints of parts that are not Weft's own: the SHA-256 of files, the versions of packages."""
    digests: Fingerprints = {}
    for key, kind in kinds.PARTS.items():
        value = getattr(config, key)
        for name in value if key in kinds.LISTS else [value]:
            if key == "reward" or not kinds.is_outside(key, name):  # rewards are with the data
                continue
            file = plugins.parse(name)
            version = (
                plugins.digest_of(plugins.read(file))
                if file
                else plugins.package_of(plugins.installed_parts(kind.group)[name])
            )
            digests[f"the {kind.word} '{name}'"] = version
    return digests


def at_server(config: RunConfig, tokenizer: Tokenizer) -> Fingerprints:
    """Return the fingerprints of what the server of sites has: all but the rows."""
    return base_of(config) | tokenizer_of(config, tokenizer) | parts_of(config)


def base_of(config: RunConfig) -> Fingerprints:
    """Return the fingerprints of the model, or adapter, that a run begins from."""
    if config.from_scratch:
        return {}
    name, cache = config.model_name_or_path, _digest_cache(config)
    digests: Fingerprints = {}
    adapter = adapter_of(config)
    if adapter is not None:
        files = [*adapter.glob("adapter_model.*"), adapter / "adapter_config.json"]
        digests[f"the adapter '{name}'"] = _files(files, cache)
    try:
        folder = Path(model_source(name))
    except ConfigError:  # it is gone; loading it says so, and without that it is not needed
        return digests
    if not folder.is_dir():
        return digests | _commit(f"the base '{name}'", str(folder), "config.json")
    weights = [path for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated")]
    weights = weights or list(folder.glob("pytorch_model*.bin"))
    digests[f"the weights of the base '{folder}'"] = _files(weights, cache)
    configs = list(folder.glob("config.json")) + list(folder.glob("emulator.json"))
    code = list(folder.glob("*.py")) if config.trust_remote_code else []
    digests[f"the configuration of the base '{folder}'"] = _files([*configs, *code], cache)
    return digests


def tokenizer_of(config: RunConfig, tokenizer: Tokenizer) -> Fingerprints:
    """Return the fingerprint of a tokenizer as it was loaded."""
    name = str(tokenizer.name_or_path)
    if not Path(name).is_dir():
        return _commit(f"the tokenizer '{name}'", name, "tokenizer_config.json")
    files = {path for pattern in VOCABULARY for path in Path(name).glob(pattern) if path.is_file()}
    return {"the tokenizer": _files(list(files), _digest_cache(config))}


def data_of(config: RunConfig) -> Fingerprints:
    """Return the fingerprints of all rows, held-out ones too, and of what decides about them."""
    train, held_out = selection_of(config), selection_of(config, held_out=True)
    sources = [(f"the data '{config.dataset_name}'", config.dataset_name, train)]
    sources += [(f"the held-out rows of '{config.dataset_name}'", config.dataset_name, held_out)]
    for client in config.clients or ():
        if client.name in config.forgotten:  # its rows are not read
            continue
        sources += [(f"the data of the client '{client.name}'", client.data, train)]
        sources += [(f"the held-out rows of the client '{client.name}'", client.eval, held_out)]
    sources += [(f"the held-out rows '{config.eval_dataset_name}'", config.eval_dataset_name, held_out)]
    sources += [(f"the public rows '{config.public_data}'", config.public_data, selection_of(config, public=True))]
    digests: Fingerprints = {}
    for label, name, selection in sources:
        if name:
            with contextlib.suppress(OSError, DataError):  # reading the rows says so better
                source = load.resolve_source(name, config.local_data_dir)
                if selection is not held_out or name != config.dataset_name or Path(source).is_dir():
                    digests[label] = _rows(source, config, selection)
    files = [(f"the trace '{config.availability}'", config.availability)]
    files += [(f"the rows of post_alignment '{config.post_alignment}'", config.post_alignment)]
    files += [(f"the reward '{name}'", file.path) for name in config.reward if (file := plugins.parse(name))]
    digests |= {label: file_digest(Path(name)) for label, name in files if name and Path(name).is_file()}
    return digests


def _rows(source: str, config: RunConfig, selection: Selection) -> str:
    """Return the digest of the rows that are meant of a file, a folder or a data set of the hub."""
    path, cache = Path(source).expanduser(), _digest_cache(config)
    if path.is_file():
        return file_digest(path, cache)
    if path.is_dir() and saved_set(path):
        return _files([file for file in path.rglob("*") if file.is_file()], cache)
    if path.is_dir():
        return _files(load.data_files(path, selection), cache)
    if source.startswith((".", "/", "~")) or load.kind_of(path) is not None:
        raise DataError(f"There is no file or folder '{source}': check the path.")
    return _of_hub(hub_set(source, selection, config.token or None))


def _of_hub(rows: Any) -> str:
    """Return the digest of the rows of a data set, whatever the files are that they lie in."""
    return digest_of(json.dumps(batch, sort_keys=True, default=str) for batch in rows.iter(batch_size=ROWS))


def _files(paths: list[Path], cache: Path) -> str:
    """Return the digest of files, their names included; of a config.json without what a library notes of itself."""
    parts = []
    for path in sorted(paths, key=lambda path: path.name):
        # A file that is gone or unreadable is reported better by what loads it.
        with contextlib.suppress(OSError):
            parts.append(f"{path.name} {_settings(path) if path.name == 'config.json' else file_digest(path, cache)}\n")
    return digest_of(parts)


def _settings(path: Path) -> str:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return file_digest(path)
    ignored = ("transformers_version", "_name_or_path")
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if key not in ignored}
    return digest_of([json.dumps(config, sort_keys=True)])


def _commit(label: str, name: str, file: str) -> Fingerprints:
    """Return the commit of something of the hub, as it lies in the cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, file)
    except HFValidationError:
        return {}
    return {label: f"commit {Path(path).parent.name}"} if isinstance(path, str) else {}


def _digest_cache(config: RunConfig) -> Path:
    return token_cache(config) / "digests"
