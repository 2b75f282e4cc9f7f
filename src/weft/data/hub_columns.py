"""Data sets of the hub whose columns need no guessing: those that OpenFedLLM names."""

from __future__ import annotations

from typing import NamedTuple


class Columns(NamedTuple):
    """The columns of a data set's questions and answers, and the part to train on."""

    instruction: str = "instruction"
    input: str | None = None
    response: str = "output"
    config: str | None = None
    split: str = "train"
    distinct: bool = False
    """Rows that repeat an instruction are left out."""


_ALPACA = Columns(input="input")

HUB_COLUMNS = {
    "lucasmccabe-lmi/CodeAlpaca-20k": _ALPACA,
    "yahma/alpaca-cleaned": _ALPACA,
    "FinGPT/fingpt-sentiment-train": _ALPACA,
    "tatsu-lab/alpaca": _ALPACA,
    "vicgalle/alpaca-gpt4": _ALPACA,
    "gbharti/finance-alpaca": _ALPACA,
    "WizardLM/WizardLM_evol_instruct_70k": Columns(),
    "TIGER-Lab/MathInstruct": Columns(distinct=True),
    "lighteval/MATH": Columns("problem", None, "solution", config="all"),
    "gsm8k": Columns("question", None, "answer", config="main"),
    "openai/gsm8k": Columns("question", None, "answer", config="main"),
    "medalpaca/medical_meadow_medical_flashcards": Columns("input", None, "output"),
    "HuggingFaceH4/ultrafeedback_binarized": Columns("prompt", None, "messages", split="train_sft"),
}


def find(source: str) -> Columns | None:
    """Return the columns of a data set of the hub, or of its local copy in a folder of its name; else None."""
    if source in HUB_COLUMNS:
        return HUB_COLUMNS[source]
    path = source.replace("\\", "/").rstrip("/")
    return next((columns for name, columns in HUB_COLUMNS.items() if path.endswith("/" + name)), None)
