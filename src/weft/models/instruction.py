"""A prompt as text: an instruction at the beginning of every row, before a frozen model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from weft.core.texts import to_bytes, to_texts

NAME = "instruction.bytes"
"""Name of the parameter that holds the text's bytes as numbers."""


def instruction_text(model: nn.Module) -> str:
    """Return the current text of a model with an instruction, or the words nearest to its search vector."""
    instruction: Any = model.get_submodule("instruction")
    return str(instruction.text())


class Instruction(nn.Module):
    """Holds the text as a parameter, so that it is loaded, sent and saved as all others."""

    def __init__(self, length: int, text: str = "") -> None:
        super().__init__()
        self.bytes = nn.Parameter(to_bytes([text], 1, length)[0].float())

    def text(self) -> str:
        """Return the text."""
        return to_texts(self.bytes.detach().round().to("cpu", torch.uint8)[None])[0]
