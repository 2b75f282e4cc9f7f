"""The keyword arguments of `weft.train`, as an editor completes them, are the keys of a run."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from weft.config import RunConfig

FILE = Path(__file__).parents[2] / "src" / "weft" / "typed.py"
HEAD = '''"""The keys of a run as keyword arguments, so that an editor completes and checks `weft.train(...)`.

Made from the pydantic models by `python tests/unit/test_typed_keys.py`, and compared with them by that test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    import datasets
    import pandas

    from weft.json_types import JsonObject
    from weft.keys.data import Client

    Table: TypeAlias = pandas.DataFrame | datasets.Dataset | datasets.DatasetDict
    Rows: TypeAlias = str | PathLike[str] | Sequence[Mapping[str, object]] | Table
    """A name, a path, or the rows themselves."""
    Clients: TypeAlias = Mapping[str, Rows] | Sequence[str | Mapping[str, object] | Client]
    """{name: rows}, ["name=path", ...] or [{"name": ..., "data": ..., "eval": ...}, ...]."""


class Keys(TypedDict, total=False):
    """All keys of a run; `weft sft --help_all` says what each of them is."""

    model: object
    """A model of transformers, or what model_name_or_path takes."""
'''
PATH = "str | PathLike[str]"
WIDER = {
    "model_name_or_path": f"{PATH} | object",
    "tokenizer": f"{PATH} | object | None",
    "clients": "Clients | None",
    "output_dir": PATH,
    **dict.fromkeys(("dataset_name", "eval_dataset_name", "public_data"), "Rows | None"),
    **dict.fromkeys(("local_data_dir", "token_cache", "tokenizer_text", "availability"), f"{PATH} | None"),
}
"""What Python may give beside what a file and flags may."""


def expected() -> str:
    """Return the file as the models have it."""
    lines = []
    for keys in reversed(RunConfig.__mro__[1:]):
        own = getattr(keys, "__annotations__", {})
        lines += [f"    {key}: {WIDER.get(key, own[key])}" for key in own if key in RunConfig.model_fields]
    return HEAD + "\n".join(lines) + "\n"


def test_every_key_is_a_typed_argument():
    same = ast.dump(ast.parse(FILE.read_text(encoding="utf-8"))) == ast.dump(ast.parse(expected()))
    assert same, "keys were added or changed: `python tests/unit/test_typed_keys.py` writes src/weft/typed.py anew"


if __name__ == "__main__":
    FILE.write_text(expected(), encoding="utf-8")
    print(FILE, file=sys.stderr)
