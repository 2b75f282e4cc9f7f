"""Protocols of the objects of transformers that Weft uses, so that mypy can check the calls.

The classes of transformers satisfy them; so does any object of a user with these methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Protocol


class Tokenizer(Protocol):
    """Texts to token ids and back, as transformers' fast tokenizers do it."""

    name_or_path: str
    chat_template: object
    """A text of Jinja, several by name, or None."""
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    eos_token: str | None
    pad_token: str | None

    def __len__(self) -> int: ...
    def __hash__(self) -> int: ...
    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the special tokens."""
        ...

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens."""
        ...

    @property
    def backend_tokenizer(self) -> Any:
        """The tokenizer of the library tokenizers."""
        ...

    def __call__(self, text: str | list[str], **settings: bool) -> Any:
        """Return an encoding by name: `input_ids`, and `offset_mapping` where it is asked for."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True, split_special_tokens: bool = False) -> list[int]:
        """Return the ids of a text."""
        ...

    def add_tokens(self, new_tokens: list[str], *, special_tokens: bool = False) -> int:
        """Add tokens behind the others; return how many were new."""
        ...

    def decode(self, token_ids: object, *, skip_special_tokens: bool = False, **more: bool) -> str:
        """Return the text of ids."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Return every token and its id."""
        ...

    def save_pretrained(self, save_directory: str | PathLike[str]) -> object:
        """Write the tokenizer's files."""
        ...

    def apply_chat_template(self, conversation: Sequence[object], **settings: object) -> Any:
        """Return a conversation as text or ids."""
        ...

    def get_chat_template(self, chat_template: str | None = None) -> str:
        """Return the template in use."""
        ...
