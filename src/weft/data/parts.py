"""Parts of a data set (train, validation, test): which files belong to which, and which part is selected.

Files are assigned as the `datasets` library does it (datasets/data_files.py): by what README.md declares, else by
`data/NAME-00000-of-00001.*`, else by the names of folders, else by the names of files. Two things differ: a folder
whose files are in no part is read at its top level, and further down only where nothing lies there; and a file in two
parts is refused, where `datasets` reads it twice. Hidden files, runs of Weft and models are passed over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from weft.data import hub_columns
from weft.data.dataset_card import card_parts
from weft.errors import DataError
from weft.json_types import JsonObject

Say = Callable[[str], None]
Kind = Callable[[Path], str | None]

TRAIN = "train"
PREFERENCES = "train_prefs"
"""The part of preferences, where a set has others too (HuggingFaceH4/ultrafeedback_binarized)."""
WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words that name a part, as `datasets` has them."""
_EDGE = "[-._ 0-9]"
_PART_PATTERNS = {part: re.compile(f"(?:^|{_EDGE})(?:{'|'.join(words)})(?:{_EDGE}|$)") for part, words in WORDS.items()}
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_SPLIT_PATTERN = re.compile(r"(\w+(?:\.\w+)*)\s*(\[.*\](?:\(\w+\))?)?")
IGNORED = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""Files that describe a data set."""
COUNTS_SUFFIX = ".report.json"
"""What `weft clean` appends to the name of a file that it writes, for the counts beside it."""
MODELS = {"tokenizer_config.json", "adapter_config.json"}
RUNS = {"config.yaml", "metrics.jsonl"}


class HubRows(Protocol):
    """A data set of the `datasets` library."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[JsonObject]: ...
    def select(self, indices: Iterable[int], /) -> HubRows:
        """Return some of the rows."""
        ...


class PartRequest(NamedTuple):
    """A part and a slice of it, such as `train[:10%]`."""

    part: str | None
    piece: str | None = None
    """The slice, as `datasets` writes it; None: all."""


@dataclass(frozen=True)
class Selection:
    """Which rows of a source to read."""

    split: str | None = None
    """A part, or a slice of one, `train[:10%]`; None: see `choose`."""
    held_out: bool = False
    """The rows are to be evaluated on, not trained on."""
    preferences: bool = False
    """The rows are preferences, for which a source may have separate parts: train_prefs, test_prefs."""
    log: Say = field(default=lambda _: None, compare=False, repr=False)
    """Receives sentences on which parts and files are read, and which are not."""

    @property
    def request(self) -> PartRequest:
        """The part and the slice of `split`."""
        return parse_split(self.split)


DEFAULT_SELECTION = Selection()


@dataclass
class Parts:
    """The data files of a folder."""

    files: dict[str, list[Path]] = field(default_factory=dict)
    unassigned: list[Path] = field(default_factory=list)
    """Files in no part."""


def parse_split(split: str | None) -> PartRequest:
    """Parse a part with an optional slice; DataError for anything else, such as two parts."""
    if split is None:
        return PartRequest(None)
    match = _SPLIT_PATTERN.fullmatch(split.strip())
    if match is None:
        raise DataError(
            f"The split '{split}' is no name of a part with a slice: write one such as train, test or train[:10%]."
        )
    return PartRequest(match[1], match[2])


def choose(names: Sequence[str], selection: Selection, source: str) -> str:
    """Return the selected part: the one of the request, else the usual one for training or for evaluation.

    Raises:
        DataError: there is no such part, or several could be the usual one.
    """
    part_name, held_out = selection.request.part, selection.held_out
    flag = "--eval_dataset_split" if held_out else "--dataset_split"
    if part_name is not None:
        if (match := _alike(names, part_name)) is None:
            raise DataError(
                f"'{source}' has no part '{part_name}', but {_quoted_list(names)}: write {flag} {names[0]}."
            )
        return match
    columns = hub_columns.find(source)
    usual = [PREFERENCES] * selection.preferences + [columns.split if columns else TRAIN]
    words = ("validation", "test") if held_out else (TRAIN,)
    for name in [part.replace(TRAIN, word) for part in usual for word in words]:
        if (match := _alike(names, name)) is not None:
            return match
    if len(names) == 1 and (held_out or _family(names[0]) in (None, TRAIN)):
        return names[0]
    purpose = "to measure on" if held_out else "to train on"
    raise DataError(f"'{source}' has {_quoted_list(names)}, and none is clearly {purpose}: write {flag} {names[0]}.")


def _alike(names: Sequence[str], target: str) -> str | None:
    """Return the part of this name, or the only one with a synonymous name (dev, val, validation)."""
    if target in names:
        return target
    same = [name for name in names if _family(target) is not None and _family(name) == _family(target)]
    return same[0] if len(same) == 1 else None


def _family(name: str) -> str | None:
    return next((part for part, words in WORDS.items() if name in words), None)


def _quoted_list(names: Iterable[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return f"the part{'s' * (len(quoted) > 1)} {', '.join(quoted)}"


def parts_of(folder: Path, kind_of: Kind) -> Parts:
    """Assign the data files of a folder to parts; DataError if a file would be in two."""
    files = [(path, path.relative_to(folder).as_posix()) for path in _below(folder, kind_of)]
    parts = Parts()
    shards = {path: [match[1]] for path, name in files if (match := _SHARD.fullmatch(name))}
    folders = {path: _parts_named_by(name.split("/")[:-1]) for path, name in files}
    by_name = {path: _parts_named_by(name.split("/")[-1:]) for path, name in files}
    from_card = card_parts(folder, [name for _, name in files])
    if from_card is not None:
        members = {path: [part for part, file_parts in from_card.items() if name in file_parts] for path, name in files}
    else:
        members = next((assignment for assignment in (shards, folders, by_name) if any(assignment.values())), {})
    for path, name in files:
        file_parts = members.get(path) or []
        if len(file_parts) > 1:
            raise DataError(
                f"'{name}' in '{folder}' is of {_quoted_list(file_parts)} at once: give it a name of one of them."
            )
        (parts.files.setdefault(file_parts[0], []) if file_parts else parts.unassigned).append(path)
    if not parts.files:  # no name says a part: the whole folder is one part without a name
        top = [path for path in parts.unassigned if path.parent == folder]
        parts.files = {"": top or parts.unassigned}
        parts.unassigned = [path for path in parts.unassigned if path not in set(parts.files[""])]
    parts.files = {name: parts.files[name] for name in sorted(parts.files, key=_order)}
    return parts


def _order(name: str) -> tuple[int, str]:
    order = list(WORDS)
    return (order.index(name) if name in order else len(order), name)


def _parts_named_by(words: Sequence[str]) -> list[str]:
    """Return the parts that names of folders or of a file stand for."""
    return [part for part, pattern in _PART_PATTERNS.items() if any(pattern.search(word) for word in words)]


def _below(folder: Path, kind_of: Kind) -> list[Path]:
    """Return the data files of a folder and of those below it, by their names."""
    data_paths = []
    for place, folders, files in os.walk(folder):
        inside = Path(place)
        if inside != folder and (set(files) >= RUNS or MODELS & set(files)):
            folders.clear()  # a list that os.walk reads afterwards: nothing below is visited
            continue
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        described = {*IGNORED, *(name + COUNTS_SUFFIX for name in files)}
        names = [name for name in files if not name.startswith(".") and name not in described]
        data_paths += [inside / name for name in names if kind_of(inside / name) is not None]
    return sorted(data_paths)


def files_of(folder: Path, selection: Selection, kind_of: Kind) -> list[Path]:
    """Return the files of the part that is meant, in the order of their names, and say what is read and what is not.

    Raises:
        DataError: no data file, or no such part.
    """
    parts = parts_of(folder, kind_of)
    if not any(parts.files.values()):
        return []
    if "" in parts.files:
        require_no_parts(selection, str(folder))
        files = parts.files[""]
        ignored = f"; not read: {_name_files(parts.unassigned, folder)} in folders below" if parts.unassigned else ""
        if ignored or len(files) > 1:
            selection.log(f"of '{folder}' {_name_files(files, folder)} is read{ignored}.")
        return files
    part = choose(list(parts.files), selection, str(folder))
    others = [
        f"the part '{name}' ({_name_files(members, folder)})" for name, members in parts.files.items() if name != part
    ]
    others += [f"{_name_files(parts.unassigned, folder)}, in no part"] if parts.unassigned else []
    ignored = f"; not read: {', '.join(others)}" if others else ""
    selection.log(
        f"of '{folder}' the part '{part}' is {_purpose(selection)} ({_name_files(parts.files[part], folder)}){ignored}."
    )
    return parts.files[part]


def _name_files(files: Sequence[Path], folder: Path) -> str:
    """Name files, the first of many."""
    names = [path.relative_to(folder).as_posix() for path in files]
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more files"


def _purpose(selection: Selection) -> str:
    return "measured on" if selection.held_out else "trained on"


def require_no_parts(selection: Selection, source: str) -> None:
    """Raise DataError if a part other than train is selected of a source without parts; all of it is train."""
    if selection.request.part not in (None, TRAIN):
        raise DataError(
            f"'{source}' has no parts, so it has no '{selection.request.part}': leave the split out, or write train, "
            "with a slice such as train[:10%] if need be."
        )


def part_of_set(rows: HubRows | dict[str, HubRows], selection: Selection, source: str) -> HubRows:
    """Return the selected rows of a data set of the `datasets` library, which may have parts.

    Raises:
        DataError: as `choose` and `span` do.
    """
    if isinstance(rows, dict):
        part = choose(list(rows), selection, source)
        if others := [f"'{name}'" for name in rows if name != part]:
            selection.log(f"of '{source}' the part '{part}' is {_purpose(selection)}; not read: {', '.join(others)}.")
        rows = rows[part]
    else:
        require_no_parts(selection, source)
    piece = selection.request.piece
    return rows if piece is None else rows.select(span(len(rows), piece, source))


def span(count: int, piece: str, source: str) -> range:
    """Return the range of a slice of `count` rows, as `datasets` counts it; DataError if the slice is invalid."""
    import datasets

    try:
        (bounds,) = datasets.ReadInstruction.from_spec(TRAIN + piece).to_absolute({TRAIN: count})
    except (ValueError, AssertionError) as error:
        words = next(iter(str(error).strip().splitlines()), "no slice").rstrip(".:")
        raise DataError(
            f"The slice '{piece}' cannot be taken of the {count} rows of '{source}' ({words}): write one such as "
            "[:10%] or [100:200]."
        ) from None
    first, last = bounds.from_ or 0, count if bounds.to is None else bounds.to
    if first >= last:
        raise DataError(f"The slice '{piece}' of the {count} rows of '{source}' is empty: write a larger one.")
    return range(first, last)
