"""Parts of a data set: train, validation, test. Which of a folder's files are in which, and which part is meant.

Files are sorted as the `datasets` library sorts them (datasets/data_files.py): by what README.md declares, else by
`data/NAME-00000-of-00001.*`, else by the names of folders, else by the names of files. Two things differ: a folder
whose files are in no part is read at its top level, and further down only where nothing lies there; and a file in two
parts is refused, where `datasets` reads it twice. Hidden files, runs of Weft and models are passed over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from weft.data import known
from weft.data.declared import declared_parts
from weft.errors import DataError

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
_NAMED = {part: re.compile(f"(?:^|{_EDGE})(?:{'|'.join(words)})(?:{_EDGE}|$)") for part, words in WORDS.items()}
_SHARD = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_ASKED = re.compile(r"(\w+(?:\.\w+)*)\s*(\[.*\](?:\(\w+\))?)?")
IGNORED = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""Files that describe a data set."""
MODELS = {"tokenizer_config.json", "adapter_config.json"}
RUNS = {"config.yaml", "metrics.jsonl"}


class PartRequest(NamedTuple):
    """A part and what is meant of it, `train[:10%]`."""

    part: str | None
    piece: str | None = None
    """The slice, as `datasets` writes it; None: all."""


@dataclass(frozen=True)
class Wanted:
    """Which rows of a source are meant."""

    split: str | None = None
    """A part, or a slice of one, `train[:10%]`; None: see `choose`."""
    held_out: bool = False
    """Rows to measure on."""
    preferences: bool = False
    """They are preferences, which may have parts of their own: train_prefs, test_prefs."""
    say: Say = field(default=lambda _: None, compare=False, repr=False)
    """Told which parts and files are read, and which are not."""

    @property
    def asked(self) -> PartRequest:
        """What is asked for, read."""
        return asked_for(self.split)


ANY = Wanted()


@dataclass
class Parts:
    """The data files of a folder."""

    named: dict[str, list[Path]] = field(default_factory=dict)
    rest: list[Path] = field(default_factory=list)
    """Files in no part."""


def asked_for(split: str | None) -> PartRequest:
    """Read what a user writes for a part; DataError where it is more than one part and a slice."""
    if split is None:
        return PartRequest(None)
    found = _ASKED.fullmatch(split.strip())
    if found is None:
        raise DataError(
            f"The split '{split}' is no name of a part with a slice: write one such as train, test or train[:10%]."
        )
    return PartRequest(found[1], found[2])


def choose(names: Sequence[str], wanted: Wanted, source: str) -> str:
    """Return the part that is meant: the one that is asked for, else that for training or for held-out rows.

    Raises:
        DataError: there is no such part, or it is not clear which is meant.
    """
    asked, held_out = wanted.asked.part, wanted.held_out
    flag = "--eval_dataset_split" if held_out else "--dataset_split"
    if asked is not None:
        if (found := _alike(names, asked)) is None:
            raise DataError(f"'{source}' has no part '{asked}', but {_listed(names)}: write {flag} {names[0]}.")
        return found
    columns = known.find(source)
    usual = [PREFERENCES] * wanted.preferences + [columns.split if columns else TRAIN]
    words = ("validation", "test") if held_out else (TRAIN,)
    for name in [part.replace(TRAIN, word) for part in usual for word in words]:
        if (found := _alike(names, name)) is not None:
            return found
    if len(names) == 1 and (held_out or _family(names[0]) in (None, TRAIN)):
        return names[0]
    meant = "to measure on" if held_out else "to train on"
    raise DataError(f"'{source}' has {_listed(names)}, and none is clearly {meant}: write {flag} {names[0]}.")


def _alike(names: Sequence[str], asked: str) -> str | None:
    """Return the part of that name, or the only one whose name means the same (dev, val, validation)."""
    if asked in names:
        return asked
    same = [name for name in names if _family(asked) is not None and _family(name) == _family(asked)]
    return same[0] if len(same) == 1 else None


def _family(name: str) -> str | None:
    return next((part for part, words in WORDS.items() if name in words), None)


def _listed(names: Iterable[str]) -> str:
    found = [f"'{name}'" for name in names]
    return f"the part{'s' * (len(found) > 1)} {', '.join(found)}"


def parts_of(folder: Path, kind_of: Kind) -> Parts:
    """Sort the data files of a folder into parts; DataError where a file would be in two."""
    files = [(path, path.relative_to(folder).as_posix()) for path in _below(folder, kind_of)]
    found = Parts()
    shards = {path: [match[1]] for path, name in files if (match := _SHARD.fullmatch(name))}
    folders = {path: _parts_named(name.split("/")[:-1]) for path, name in files}
    by_name = {path: _parts_named(name.split("/")[-1:]) for path, name in files}
    told = declared_parts(folder, [name for _, name in files])
    if told is not None:
        members = {path: [part for part, own in told.items() if name in own] for path, name in files}
    else:
        members = next((known for known in (shards, folders, by_name) if any(known.values())), {})
    for path, name in files:
        own = members.get(path) or []
        if len(own) > 1:
            raise DataError(f"'{name}' in '{folder}' is of {_listed(own)} at once: give it a name of one of them.")
        (found.named.setdefault(own[0], []) if own else found.rest).append(path)
    if not found.named:
        top = [path for path in found.rest if path.parent == folder]
        found.named = {"": top or found.rest}
        found.rest = [path for path in found.rest if path not in set(found.named[""])]
    found.named = {name: found.named[name] for name in sorted(found.named, key=_order)}
    return found


def _order(name: str) -> tuple[int, str]:
    known = list(WORDS)
    return (known.index(name) if name in known else len(known), name)


def _parts_named(words: Sequence[str]) -> list[str]:
    """Return the parts that names of folders or of a file stand for."""
    return [part for part, pattern in _NAMED.items() if any(pattern.search(word) for word in words)]


def _below(folder: Path, kind_of: Kind) -> list[Path]:
    """Return the data files of a folder and of those below it, by their names."""
    found = []
    for place, folders, files in os.walk(folder):
        inside = Path(place)
        if inside != folder and (set(files) >= RUNS or MODELS & set(files)):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        names = [name for name in files if not name.startswith(".") and name not in IGNORED]
        found += [inside / name for name in names if kind_of(inside / name) is not None]
    return sorted(found)


def files_of(folder: Path, wanted: Wanted, kind_of: Kind) -> list[Path]:
    """Return the files of the part that is meant, in the order of their names, and say what is read and what is not.

    Raises:
        DataError: no data file, or no such part.
    """
    found = parts_of(folder, kind_of)
    if not any(found.named.values()):
        return []
    if "" in found.named:
        whole(wanted, str(folder))
        files = found.named[""]
        rest = f"; not read: {_some(found.rest, folder)} in folders below" if found.rest else ""
        if rest or len(files) > 1:
            wanted.say(f"of '{folder}' {_some(files, folder)} is read{rest}.")
        return files
    part = choose(list(found.named), wanted, str(folder))
    others = [f"the part '{name}' ({_some(own, folder)})" for name, own in found.named.items() if name != part]
    others += [f"{_some(found.rest, folder)}, in no part"] if found.rest else []
    rest = f"; not read: {', '.join(others)}" if others else ""
    wanted.say(f"of '{folder}' the part '{part}' is {_use(wanted)} ({_some(found.named[part], folder)}){rest}.")
    return found.named[part]


def _some(files: Sequence[Path], folder: Path) -> str:
    """Name files, the first of many."""
    names = [path.relative_to(folder).as_posix() for path in files]
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more files"


def _use(wanted: Wanted) -> str:
    return "measured on" if wanted.held_out else "trained on"


def whole(wanted: Wanted, source: str) -> None:
    """Refuse a part of what has none; `datasets` calls all of it train."""
    if wanted.asked.part not in (None, TRAIN):
        raise DataError(
            f"'{source}' has no parts, so it has no '{wanted.asked.part}': leave the split out, or write train, with a "
            "slice such as train[:10%] if need be."
        )


def part_of_set(found: Any, wanted: Wanted, source: str) -> Any:
    """Return the rows that are meant of a data set, or of its parts, of the `datasets` library.

    Raises:
        DataError: as `choose` and `span` do.
    """
    if isinstance(found, dict):
        part = choose(list(found), wanted, source)
        if others := [f"'{name}'" for name in found if name != part]:
            wanted.say(f"of '{source}' the part '{part}' is {_use(wanted)}; not read: {', '.join(others)}.")
        found = found[part]
    else:
        whole(wanted, source)
    piece = wanted.asked.piece
    return found if piece is None else found.select(span(len(found), piece, source))


def span(count: int, piece: str, source: str) -> range:
    """Return the rows of `count` that a slice means, counted by the `datasets` library; DataError where it cannot."""
    import datasets

    try:
        (cut,) = datasets.ReadInstruction.from_spec(TRAIN + piece).to_absolute({TRAIN: count})
    except (ValueError, AssertionError) as error:
        words = next(iter(str(error).strip().splitlines()), "no slice").rstrip(".:")
        raise DataError(
            f"The slice '{piece}' cannot be taken of the {count} rows of '{source}' ({words}): write one such as "
            "[:10%] or [100:200]."
        ) from None
    first, last = cut.from_ or 0, count if cut.to is None else cut.to
    if first >= last:
        raise DataError(f"The slice '{piece}' of the {count} rows of '{source}' is empty: write a larger one.")
    return range(first, last)
