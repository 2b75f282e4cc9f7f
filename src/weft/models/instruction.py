"""A prompt in words: a text that stands at the beginning of every row, before a model that is frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from weft.core.texts import to_bytes, to_texts

NAME = "instruction.bytes"
"""The text among the model's parameters: its bytes, as numbers."""


def instruction_text(model: nn.Module) -> str:
    """Return the text that is in place at a model with an instruction, which may be a search vector spelled out."""
    instruction: Any = model.get_submodule("instruction")
    return str(instruction.text())


class Instruction(nn.Module):
    """Holds the text where a model's parameters are, so that it is loaded, sent and kept as they are."""

    def __init__(self, length: int, text: str = "") -> None:
        super().__init__()
        self.bytes = nn.Parameter(to_bytes([text], 1, length)[0].float())

    def text(self) -> str:
        """Return the text."""
        return to_texts(self.bytes.detach().round().to("cpu", torch.uint8)[None])[0]
